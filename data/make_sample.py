"""Make the project's own small data set: three tasks in the course's file format.

    python make_sample.py                          # into the folder this file stands in
    python make_sample.py --out FOLDER --seed 1

A sentence is a frame (a sentence with slots) whose slots are filled from word tables. Its label
follows from how it is put together, by the rules below. Every frame belongs to one split only: a
model meets none of the dev and test frames in training, only their words and constructions.

sst   How good does the writer find it? 0 very negative, 1 negative, 2 neutral, 3 positive, 4 very
      positive.
      * A plain or weakened word is 1 or 3 ("dull", "rather dull"); a strong or strengthened one is
        0 or 4 ("awful", "extremely dull", "hated").
      * A negation turns a word round and leaves it mild: "not dull", "hardly a failure" are 3.
      * Of two opinions the writer's own last word counts: the clause after "but" or "yet", the
        main clause beside "although", "even though" or "despite", what it turned out to be and not
        what was expected or what other people said.
      * "not" or "extremely" at a fact says nothing: "it was extremely late, and the food was good"
        is 3.
      * Facts, open questions, "neither good nor bad", as much praise as blame: 2.
para  1 if both questions ask the same. Synonyms, the passive, another order and the other end of a
      relation ("A before B", "B after A") keep the meaning. Exchanged roles, another word in a
      slot, or the opposite ("sell" for "buy") change it.
sts   5 for the same event in whatever words; each difference costs points (COST), down to 0.8 for
      the same kind of event with all else different; 0 for two different kinds of event.
"""
import argparse
import csv
import hashlib
import random
import re
from pathlib import Path
from typing import NamedTuple

ROWS = {"train": 1500, "dev": 300, "test": 300}
FILES = {  # task -> the name of a split's file
    "sst": {"train": "ids-sst-train", "dev": "ids-sst-dev", "test": "ids-sst-test-student"},
    "para": {"train": "quora-train", "dev": "quora-dev", "test": "quora-test-student"},
    "sts": {"train": "sts-train", "dev": "sts-dev", "test": "sts-test-student"},
}
COLUMNS = {  # the last one is the label, which the test files lack
    "sst": ("sentence", "sentiment"),
    "para": ("sentence1", "sentence2", "is_duplicate"),
    "sts": ("sentence1", "sentence2", "similarity"),
}

# ---------------------------------------------------------------------------------- sst: the words

INTENSIFIERS = ("very", "really", "extremely", "incredibly")
DIMINISHERS = ("fairly", "rather", "pretty", "somewhat")
NEGATORS = ("not", "not", "never", "hardly", "far from", "not at all", "anything but")

GOOD = ("good", "nice", "enjoyable", "impressive", "pleasant", "appealing", "satisfying")
BAD = ("bad", "poor", "weak", "dull", "boring", "unpleasant", "disappointing")
GOOD_STORY = ("funny", "clever", "charming", "moving", "exciting", "touching", "smart", "engaging")
BAD_STORY = ("slow", "silly", "predictable", "flat", "tedious", "stupid", "pointless", "bland")
STRONG = {1: ("brilliant", "wonderful", "perfect", "amazing", "excellent", "terrific"),
          -1: ("terrible", "awful", "horrible", "dreadful", "pathetic", "ridiculous")}

VERBS = {2: ("loved", "adored"), 1: ("liked", "enjoyed"),
         -1: ("disliked", "did not like", "did not enjoy"), -2: ("hated", "could not stand")}
NOUNS = {2: ("a triumph", "an amazing success", "a wonderful success", "a perfect delight"),
         1: ("a success", "a pleasure", "hardly a failure", "far from a failure",
             "anything but a mistake"),
         -1: ("a failure", "a mistake", "hardly a success", "far from a pleasure",
              "anything but a success"),
         -2: ("a disaster", "a terrible mess", "an awful failure", "a horrible mistake")}

STORY_PARTS = ("story", "acting", "script", "ending", "music", "dialogue")
DOMAINS = {  # its things, their parts, whether the words about stories fit it
    "film": (("film", "movie", "comedy", "thriller", "drama"), STORY_PARTS, True),
    "show": (("show", "series", "play"), STORY_PARTS, True),
    "book": (("book", "novel"), ("story", "writing", "ending", "plot", "style", "dialogue"), True),
    "game": (("game", "video game"), ("story", "design", "music", "sound", "ending"), True),
    "food": (("restaurant", "bar", "coffee shop"),
             ("food", "service", "coffee", "bread", "fish", "rice"), False),
    "hotel": (("hotel",), ("room", "service", "view", "food", "pool", "location"), False),
    "music": (("song", "concert", "record"), ("music", "voice", "sound", "band", "style"), False),
}
FILLERS = {
    "friend": ("brother", "sister", "wife", "husband", "boss", "teacher", "mother", "father"),
    "month": ("January", "March", "April", "May", "June", "July", "August"),
    "day": ("Monday", "Tuesday", "Friday", "Saturday", "Sunday"),
    "number": ("three", "four", "five", "six", "seven", "ten", "twenty"),
    "ordinal": ("first", "second", "third", "last"),
    "country": ("India", "China", "Japan", "France", "Canada", "Italy", "Spain"),
}

# --------------------------------------------------------------------------------- sst: the frames
# {win} is the opinion that counts, {lose} an opposite one that does not; {this} and {that} are
# opposite opinions of which neither counts. The ending says what fits in the place: nothing "it
# is ...", _a "a ... film", _w one plain word, _v "I ... it", _n "it is ..." (a noun).
# {deg} and {not} stand at a fact, where they say nothing about the thing.

SST_FRAMES = {
    "train": (
        # one opinion
        "The {part} of this {thing} is {win}.",
        "I thought the {thing} was {win} from beginning to end.",
        "We went to see the {film} last night, and it was {win}.",
        "If you ask me, the {part} of the {thing} is {win}.",
        "I {win_v} the {part} of this {thing}.",
        "For me the {thing} was {win_n}.",
        "Everything about the {thing} is {win}, from the {part} to the {other}.",
        "My {friend} and I {win_v} the {thing}.",
        "The {book} I finished yesterday is {win}.",
        "You will remember this {thing} for its {win_a} {part}.",
        "After two hours the {show} was over, and I must say it was {win_n}.",
        # but, yet
        "The {part} is {lose}, but the {thing} itself is {win}.",
        "The {part} may be {lose_a}, but the {thing} as a whole is {win}.",
        "I {lose_v} the {part}, but I {win_v} the {thing}.",
        "At first the {thing} seemed {lose_a}, but in the end it was {win}.",
        "My {friend} found it {lose_a}, but I found it {win_a}.",
        "The {hotel} sounds {lose_a} in the reviews, but it is {win}.",
        "The first half of the {show} is {lose}, but the second half is {win}.",
        "They told me the {thing} was {lose}, yet I think it is {win}.",
        "The {part} is {lose}, yet the {thing} is {win_n}.",
        "The cover of the {book} is {lose}, but the story inside is {win}.",
        "People say the {food} is {lose}, but my visit there was {win}.",
        "Other people {lose_v} the {thing}, but I {win_v} it.",
        "Some say the {part} is {lose}, but I say it is {win}.",
        "The review says the {part} is {lose}, but if you ask me it is {win}.",
        "I did not know whether the {film} was {lose_a}, but it turned out to be {win_a}.",
        "My {friend} asked me whether the {thing} was {lose_a}, and I said it was {win}.",
        # although, even though, despite
        "Although the {part} is {lose}, the {thing} is {win}.",
        "Although I {lose_v} the {part}, I {win_v} the {thing} itself.",
        "Although my {friend} called it {lose_a}, the {film} is {win}.",
        "Even though the {part} was {lose}, I {win_v} the {thing}.",
        "Even though the first part of the {book} is {lose}, the rest is {win}.",
        "The {thing} is {win}, although the {part} is {lose}.",
        "I {win_v} the {thing}, although the {part} was {lose}.",
        "The {thing} is {win_n}, even though the {part} is {lose}.",
        "The {part} was {win}, even though everyone said it would be {lose_a}.",
        "Despite the {lose_a} {part}, the {thing} is {win}.",
        "Despite its {lose_a} {part}, this is a {win_a} {thing}.",
        "The {thing} is {win} despite the {lose_a} {part}.",
        "We {win_v} the {hotel} despite its {lose_a} {part}.",
        # expected and found
        "I expected a {lose_a} {thing} and got a {win_a} one.",
        "I was told the {thing} was {lose}, but it turned out to be {win_a}.",
        "What looked like a {lose_a} {thing} turned out to be a {win_a} one.",
        "Instead of the {lose_a} {thing} I expected, I found a {win_a} one.",
        "I thought it would be {lose_n}, but the {thing} was {win_n}.",
        # a strengthened fact
        "After a {deg} long drive to the {hotel} we found that the {part} was {win}.",
        "This {deg} long {film} is {win}.",
        "The {deg} young actor in the {show} is {win}.",
        "It was {deg} late when we got to the {food}, and the {part} was {win}.",
        "I read this {deg} long {book} in a week, and I {win_v} it.",
        "The {deg} old {hotel} near the station is {win}.",
        "We sat in a {deg} large room, and the {music} was {win}.",
        "The theater was {deg} dark, and the {film} was {win}.",
        "The {show} comes on {deg} early in the morning, and the {part} is {win}.",
        "The {food} is in a {deg} small building, and the {part} is {win}.",
        "This {game} is {deg} new, and the {part} is {win}.",
        # a negated fact
        "It was {not} my first visit to the {food}, and the {part} was {win}.",
        "I had {not} read the reviews, and I {win_v} the {film}.",
        "The {hotel} was {not} full in {month}, and the {part} was {win}.",
        "My {friend} was {not} with us, and the {thing} was {win}.",
        "The {film} is {not} based on a true story, and it is {win}.",
        "This is {not} the {ordinal} {book} in the series, and the {part} is {win}.",
        "The lead actor is {not} famous, and the {part} of the {show} is {win}.",
        "We had {not} asked for a table by the window, and the {part} of the {food} was {win}.",
        "The {game} is {not} made for children, and its {part} is {win}.",
        "It was {not} raining when we got to the {hotel}, and the {part} was {win}.",
        # facts
        "The {film} is two hours long and was made in {country}.",
        "The {film} opens in theaters on the {ordinal} {day} in {month}.",
        "This is the {ordinal} {book} in a series of {number}.",
        "The {show} has {number} parts and is on every {day}.",
        "The {hotel} has {number} rooms and opens in {month}.",
        "The {music} is {number} minutes long and comes from {country}.",
        # opinions that nobody holds, or as many on either side
        "My {friend} asked me whether the {part} was {this_a}.",
        "I have not seen the {film} yet, so I do not know whether it is {this_a}.",
        "The review does not say if the {part} of the {thing} is {this_a} or {that_a}.",
        "The {part} is neither {this_w} nor {that_w}.",
        "Some say the {part} is {this}, others say it is {that}.",
        "One half of the {thing} is {this}, and the other half is {that}.",
        "The {part} is just as {this_w} as the {other} is {that_w}.",
        "For every {this_a} moment in the {show} there is a {that_a} one.",
        "Is the {thing} {this_a} or {that_a}? I can not decide.",
        "I am going to the {hotel} in {month} to find out whether the {part} is {this_a}.",
        "I {this_v} one half of the {thing}, and I {that_v} the other half.",
    ),
    "dev": (
        "To me the {part} of the {thing} was {win}.",
        "From the first minute to the last the {show} was {win}.",
        "I must say the {thing} I saw on {day} was {win_n}.",
        "I {lose_v} the first hour of the {film}, but the rest is {win}.",
        "The {part} of the {thing} was {lose}, but as a whole it was {win}.",
        "My {friend} thinks the {thing} is {lose}, yet I think it is {win}.",
        "Others say the {thing} is {lose}, but I say it is {win}.",
        "My {friend} asked me if the {part} was {lose_a}, and I said it was {win}.",
        "Although the {thing} seemed {lose_a} at first, it is {win}.",
        "Even though my {friend} {lose_v} it, I {win_v} the {show}.",
        "I think the {thing} is {win}, even though its {part} is {lose}.",
        "This is a {win_a} {thing} despite its {lose_a} {part}.",
        "We expected a {lose_a} {thing}, but it turned out to be {win_n}.",
        "The {deg} small {food} near my house is {win}.",
        "I arrived {deg} early, and the {part} of the {show} was {win}.",
        "It is a {deg} long {book}, and the {part} is {win}.",
        "I was {not} alone in the theater, and the {film} was {win}.",
        "The {food} was {not} full on {day}, and the {part} was {win}.",
        "It was {not} my first night at the {hotel}, and the {part} was {win}.",
        "The {book} has {number} parts and came out in {month}.",
        "My {friend} wants to know whether the {part} of the {thing} is {this_a}.",
        "Half of us say the {thing} is {this}, the other half say it is {that}.",
        "I have not read the {book}, so I can not say if it is {this_a} or {that_a}.",
        "The {part} of the {thing} is neither {this_w} nor {that_w}.",
    ),
    "test": (
        "I must say that the {part} was {win}.",
        "Last night we saw the {show}, and I {win_v} it.",
        "The {thing} my {friend} gave me is {win_n}.",
        "The {part} seemed {lose_a} to me, but the {thing} itself is {win}.",
        "My {friend} {lose_v} the {thing}, yet I {win_v} it.",
        "The first {book} in the series is {lose}, but this one is {win}.",
        "Some of us say the {thing} is {lose}, but I think it is {win}.",
        "I did not know if the {book} was {lose_a}, but it turned out to be {win_n}.",
        "Although people told me it was {lose}, I {win_v} the {thing}.",
        "Even though the {part} seems {lose_a}, the {thing} as a whole is {win}.",
        "I {win_v} this {thing}, even though I {lose_v} its {part}.",
        "Despite the {lose_a} {part}, I {win_v} this {thing}.",
        "I expected the {part} to be {lose_a}, but it turned out to be {win_a}.",
        "The {deg} young singer of the {music} is {win}.",
        "The {hotel} is in a {deg} old building, and the {part} is {win}.",
        "It was {deg} dark in the {food}, and the {part} was {win}.",
        "The {film} was {not} made in {country}, and the {part} is {win}.",
        "I was {not} with my {friend}, and I think the {thing} is {win}.",
        "The {food} is {not} in the center, and its {part} is {win}.",
        "The {show} opens in {month} and has {number} parts.",
        "My {friend} wants to find out if the {thing} is {this_a} or {that_a}.",
        "Some of us {this_v} the {thing}, others {that_v} it.",
        "I do not know yet whether the {book} is {this_a}.",
        "The {thing} is as {this_w} at the beginning as it is {that_w} at the end.",
    ),
}

# --------------------------------------------------------------------------- pairs: the word tables
# An entry is one meaning. "/" separates the ways to say it; "," the forms that frames call {slot},
# {slot2} and {slot3}.

CITIES = ("London", "Paris", "Boston", "Chicago", "Delhi", "Mumbai", "Dubai", "Sydney",
          "Washington", "Tokyo")
ROUTE = ("Delhi", "Mumbai", "Bangalore", "Pune", "Chennai", "Hyderabad", "Goa")
COUNTRIES = ("India", "China", "Japan", "Germany", "France", "Canada", "Australia", "England",
             "Mexico", "Italy", "Spain", "Brazil", "Egypt", "Korea", "Turkey", "Greece")
IN_COUNTRIES = tuple(f"in {country}" for country in COUNTRIES)
LANGUAGES = ("English", "Hindi", "French", "German", "Spanish", "Chinese", "Japanese", "Russian")
ANIMALS = ("cats", "dogs", "birds", "cows", "sheep", "bears", "horses", "monkeys", "snakes")
PEOPLE = ("teachers", "students", "parents", "children/kids", "women", "men", "actors", "players",
          "engineers", "workers", "doctors", "police officers")
RELATIVES = ("brother", "sister", "boss", "best friend", "wife", "teacher", "mother/mom",
             "father/dad")
GOODS = ("letter", "book", "phone/mobile phone", "gift/present", "laptop", "camera",
         "bike/bicycle", "watch")
YEARS = ("1990", "1995", "2000", "2005", "2010", "2012", "2015")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "ten", "twenty")
DAYS = ("on Monday", "on Tuesday", "on Friday", "on Saturday", "on Sunday")
MONTHS = ("in January", "in March", "in April", "in May", "in June", "in July", "in August")
SOMEBODY = ("man/guy", "woman/lady", "boy", "girl", "soldier", "doctor", "teacher", "student",
            "police officer")
ANYBODY = ("man/guy", "woman/lady", "boy", "girl", "dog", "cat", "horse", "monkey", "bear")
OUTSIDE = ("in the park", "on the beach", "in the street", "in the field", "in the snow",
           "in the yard")
INSIDE = ("in the kitchen", "in the hotel", "in the restaurant", "at home", "at school")
PLACES = ("house", "school", "church", "river", "station", "store/shop", "lake", "hotel",
          "hospital", "bank")
COLOURS = ("red", "blue", "black", "white", "green", "yellow", "brown")
OBJECTS = ("cup", "book", "bottle", "box", "bag", "ball", "phone", "glass", "knife")
FIRMS = ("the bank", "the airline", "the oil company", "the hotel group", "the newspaper",
         "the phone company", "the car company", "the film studio")
GAMES = ("football/soccer", "cricket", "chess", "cards", "tennis", "video games")

# base form, -ing form, participle
FEEL = ("fear,fearing,feared", "hate,hating,hated/dislike,disliking,disliked",
        "love,loving,loved", "watch,watching,watched", "help,helping,helped",
        "attack,attacking,attacked", "follow,following,followed", "ignore,ignoring,ignored",
        "protect,protecting,protected")
TREAT = ("trust,trusting,trusted", "respect,respecting,respected", "help,helping,helped",
         "follow,following,followed", "watch,watching,watched", "ignore,ignoring,ignored",
         "protect,protecting,protected", "teach,teaching,taught", "pay,paying,paid")
PUSH = ("push,pushing,pushed", "follow,following,followed", "pull,pulling,pulled",
        "watch,watching,watched/observe,observing,observed", "help,helping,helped",
        "chase,chasing,chased", "attack,attacking,attacked")
PREPARE = ("cut,cutting,cut/slice,slicing,sliced", "cook,cooking,cooked", "eat,eating,eaten",
           "wash,washing,washed", "fry,frying,fried", "burn,burning,burned")
# base form, -ing form, "he ..."
GO = ("run,running,runs", "walk,walking,walks", "drive,driving,drives", "ride,riding,rides")
DO = ("dance,dancing,dances", "sing,singing,sings", "sleep,sleeping,sleeps",
      "talk,talking,talks/speak,speaking,speaks", "read,reading,reads", "wait,waiting,waits",
      "laugh,laughing,laughs")
# "I ..." and the -ing form
HABITS = ("eat,eating", "run,running", "sleep,sleeping", "study,studying", "walk,walking",
          "drink coffee,drinking coffee", "exercise,exercising/work out,working out",
          "swim,swimming", "read,reading")
# "he ..." and the -ing form
DEEDS = ("washed the car,washing the car", "fed the dog,feeding the dog",
         "read the paper,reading the paper", "cleaned the kitchen,cleaning the kitchen",
         "called the police,calling the police", "made some coffee,making some coffee",
         "cut the grass,cutting the grass", "went to the bank,going to the bank")

# a relation, and the same relation read from its other end
CITY_IS = ("cheaper,more expensive", "more expensive,cheaper", "safer,more dangerous",
           "more dangerous,safer", "bigger,smaller/larger,smaller", "smaller,bigger/smaller,larger",
           "warmer,colder", "colder,warmer")
ANIMAL_IS = ("faster,slower", "slower,faster", "bigger,smaller/larger,smaller",
             "smaller,bigger/smaller,larger", "stronger,weaker", "weaker,stronger")
LANGUAGE_IS = ("easier,harder/easier,more difficult", "harder,easier/more difficult,easier",
               "more useful,less useful", "less useful,more useful")
PERSON_IS = ("taller,shorter", "shorter,taller", "older,younger", "younger,older",
             "stronger,weaker", "weaker,stronger", "faster,slower", "slower,faster")
LIES = ("in front of,behind", "behind,in front of", "on top of,under", "under,on top of",
        "to the left of,to the right of", "to the right of,to the left of")

# slot {way}: neighbours are opposites
BUY = ("buy/purchase", "sell")
BEGIN = ("start/begin", "stop/quit/give up")
RAISE = ("increase/raise", "reduce/lower")
PRICES_GO = ("rise/go up", "fall/drop/go down")
TAKE = ("drink coffee/have coffee", "not drink coffee/never drink coffee/avoid coffee",
        "eat meat/have meat", "not eat meat/never eat meat/avoid meat",
        "eat sugar/have sugar", "not eat sugar/never eat sugar/avoid sugar",
        "drink milk/have milk", "not drink milk/never drink milk/avoid milk")

# ------------------------------------------------------------------------------ pairs: the families


class Family(NamedTuple):
    """Frames that mean the same when their slots mean the same.

    Slots called a and b are two roles; {a} and {b} exchanged make another meaning. What stands in
    [brackets] is a detail that a sentence may leave out.
    """
    slots: dict   # slot -> word table
    train: tuple
    dev: tuple = ()
    test: tuple = ()


PARA_FAMILIES = (
    # who does it to whom
    Family(dict(a=ANIMALS, b=ANIMALS, act=FEEL),
           train=("Why do {a} {act} {b}?",
                  "Why are {b} {act3} by {a}?",
                  "What makes {a} {act} {b}?"),
           dev=("What is the reason that {a} {act} {b}?",
                "What is the reason that {b} are {act3} by {a}?")),
    Family(dict(a=PEOPLE, b=PEOPLE, act=TREAT),
           train=("Do {a} {act} {b}?",
                  "Are {b} {act3} by {a}?",
                  "Is it true that {a} {act} {b}?"),
           test=("Is it true that {b} are {act3} by {a}?",
                 "Would you say that {a} {act} {b}?")),
    Family(dict(a=PEOPLE, b=PEOPLE, act=TREAT),
           train=("Should {a} {act} {b}?",
                  "Should {b} be {act3} by {a}?",
                  "Do you think that {a} should {act} {b}?"),
           dev=("Do you think that {b} should be {act3} by {a}?",
                "Would you say that {a} should {act} {b}?")),
    Family(dict(a=ANIMALS, b=ANIMALS, act=PUSH),
           train=("Can {a} {act} {b}?",
                  "Can {b} be {act3} by {a}?",
                  "Is it possible for {a} to {act} {b}?"),
           test=("Are {a} able to {act} {b}?",
                 "Is it possible for {b} to be {act3} by {a}?")),
    Family(dict(a=RELATIVES, b=RELATIVES,
                what=("money", "a car", "a book", "a laptop", "a bike", "a house/a home")),
           train=("Why did my {a} give {what} to my {b}?",
                  "Why did my {b} get {what} from my {a}?",
                  "Why was {what} given to my {b} by my {a}?"),
           dev=("What made my {a} give {what} to my {b}?",
                "What is the reason that my {b} got {what} from my {a}?")),
    Family(dict(a=RELATIVES, b=RELATIVES,
                what=("house/home", "car", "business/company", "phone", "camera", "boat")),
           train=("Is it legal for my {a} to sell a {what} to my {b}?",
                  "Can my {a} legally sell a {what} to my {b}?",
                  "Is it legal for my {b} to buy a {what} from my {a}?"),
           test=("Can my {b} legally buy a {what} from my {a}?",
                 "Does the law allow my {a} to sell a {what} to my {b}?")),
    Family(dict(a=COUNTRIES, b=COUNTRIES,
                what=("final", "first match", "second match", "last match", "World Cup")),
           train=("Did {a} beat {b} in the {what}?",
                  "Did {b} lose to {a} in the {what}?",
                  "Was {b} beaten by {a} in the {what}?"),
           dev=("Is it true that {a} beat {b} in the {what}?",
                "Is it true that {b} lost to {a} in the {what}?")),
    # from one to the other
    Family(dict(a=ROUTE, b=ROUTE, what=("bus", "train", "car", "taxi/cab", "plane")),
           train=("How do I get from {a} to {b} by {what}?",
                  "How do I get to {b} from {a} by {what}?",
                  "What is the best way to travel from {a} to {b} by {what}?"),
           dev=("What is the best way to get to {b} from {a} by {what}?",
                "How can I travel from {a} to {b} by {what}?")),
    Family(dict(a=ROUTE, b=ROUTE, what=("bus", "train", "flight/plane", "night train")),
           train=("How much does a {what} ticket from {a} to {b} cost?",
                  "What is the price of a {what} ticket from {a} to {b}?",
                  "What is the price of a {what} ticket to {b} from {a}?"),
           test=("How much does a {what} ticket to {b} from {a} cost?",
                 "How much do I have to pay for a {what} ticket from {a} to {b}?")),
    Family(dict(a=COUNTRIES, b=COUNTRIES, what=GOODS),
           train=("How can I send a {what} from {a} to {b}?",
                  "What is the best way to send a {what} to {b} from {a}?",
                  "I live in {a}. How can I send a {what} to {b}?"),
           dev=("What is the best way to send a {what} from {a} to {b}?",
                "I am in {a}. How do I send a {what} to {b}?")),
    Family(dict(a=LANGUAGES, b=LANGUAGES, what=("letter", "book/novel", "song", "story", "text")),
           train=("How do I translate a {what} from {a} to {b}?",
                  "How do I translate a {what} to {b} from {a}?",
                  "I have a {what} in {a}. What is the best way to translate it to {b}?"),
           test=("What is the best way to translate a {what} from {a} to {b}?",
                 "I have a {what} in {a}. How do I translate it to {b}?")),
    # more and less, before and after
    Family(dict(a=CITIES, b=CITIES, more=CITY_IS),
           train=("Is {a} {more} than {b}?",
                  "Is {b} {more2} than {a}?",
                  "Would you say that {a} is {more} than {b}?"),
           dev=("Do you think that {a} is {more} than {b}?",
                "Do you think that {b} is {more2} than {a}?")),
    Family(dict(a=LANGUAGES, b=LANGUAGES, more=LANGUAGE_IS),
           train=("Is it {more} to learn {a} than {b}?",
                  "Is it {more2} to learn {b} than {a}?",
                  "Is learning {a} {more} than learning {b}?"),
           test=("Would you say that learning {a} is {more} than learning {b}?",
                 "Do you think it is {more2} to learn {b} than {a}?")),
    Family(dict(a=ANIMALS, b=ANIMALS, more=ANIMAL_IS),
           train=("Why are {a} {more} than {b}?",
                  "Why are {b} {more2} than {a}?",
                  "What makes {a} {more} than {b}?"),
           test=("What is the reason that {a} are {more} than {b}?",
                 "What is the reason that {b} are {more2} than {a}?")),
    Family(dict(a=LANGUAGES, b=LANGUAGES),
           train=("Should I learn {a} before {b}?",
                  "Should I learn {b} after {a}?",
                  "Is it better to learn {a} before I learn {b}?"),
           test=("Is it better to learn {b} after {a}?",
                 "Is it a good idea to learn {a} before I learn {b}?")),
    Family(dict(a=HABITS, b=HABITS),
           train=("Should I {a} before I {b}?",
                  "Should I {b} after I {a}?",
                  "Is it a good idea to {a} before {b2}?"),
           dev=("Is it better to {a} before I {b}?",
                "Is it better to {b} after {a2}?")),
    # numbers
    Family(dict(a=("5", "6", "8", "10", "12", "15", "20"),
                b=("5", "6", "8", "10", "12", "15", "20")),
           train=("How can I lose {a} pounds in {b} weeks?",
                  "What is the best way to lose {a} pounds in {b} weeks?",
                  "In {b} weeks, how can I lose {a} pounds?"),
           test=("How do I lose {a} pounds in {b} weeks?",
                 "I have {b} weeks. How can I lose {a} pounds?")),
    Family(dict(a=("20", "25", "30", "35", "40", "50", "60"),
                b=("20", "25", "30", "35", "40", "50", "60")),
           train=("Can a {a} year old man marry a {b} year old woman?",
                  "Can a {b} year old woman marry a {a} year old man?",
                  "Is it possible for a {a} year old man to marry a {b} year old woman?"),
           dev=("Is it possible for a {b} year old woman to marry a {a} year old man?",
                "Can a {a} year old man and a {b} year old woman get married?")),
    Family(dict(what=LANGUAGES + ("Java", "Python", "the guitar", "the piano"),
                number=("2", "3", "4", "5", "6", "10")),
           train=("How can I learn {what} in {number} months?",
                  "What is the best way to learn {what} in {number} months?",
                  "I have {number} months. How can I learn {what}?"),
           test=("I want to learn {what} in {number} months. What should I do?",
                 "In {number} months, how can I learn {what}?")),
    # the opposite
    Family(dict(way=TAKE, when=("at night", "in the morning", "before I sleep/before I go to bed",
                                "when I am sick/when I am ill")),
           train=("Should I {way} {when}?",
                  "Is it a good idea to {way} {when}?",
                  "Do you think that I should {way} {when}?"),
           dev=("Would you say that I should {way} {when}?",
                "Would it be a good idea to {way} {when}?")),
    Family(dict(way=BUY, what=("used car/second hand car", "phone/mobile phone", "house/home",
                               "laptop", "bike/bicycle", "camera", "watch"), where=CITIES),
           train=("Where can I {way} a {what} in {where}?",
                  "What is the best place to {way} a {what} in {where}?",
                  "I am in {where}. Where can I {way} a {what}?"),
           test=("In {where}, what is the best place to {way} a {what}?",
                 "I live in {where}. Where should I go to {way} a {what}?")),
    Family(dict(way=BEGIN, what=("smoking", "drinking coffee", "drinking milk", "eating meat",
                                 "working at night", "eating sugar", "playing video games",
                                 "watching movies")),
           train=("How do I {way} {what}?",
                  "What is the best way to {way} {what}?",
                  "I want to {way} {what}. What should I do?"),
           dev=("I want to {way} {what}. How do I do it?",
                "How can I {way} {what}?")),
    Family(dict(way=RAISE, what=("my blood pressure", "my body temperature",
                                 "the volume of my phone", "the price of my house",
                                 "the rent of my house", "the temperature of my room")),
           train=("What should I do to {way} {what}?",
                  "What can I do to {way} {what}?",
                  "Is there a good way to {way} {what}?"),
           test=("I want to {way} {what}. How can I do it?",
                 "Can you tell me how to {way} {what}?")),
    # the same question in other words
    Family(dict(where=COUNTRIES, when=YEARS),
           train=("How many people lived in {where} in {when}?",
                  "What was the population of {where} in {when}?",
                  "In {when}, how big was the population of {where}?"),
           dev=("How large was the population of {where} in {when}?",
                "In {when}, how many people lived in {where}?")),
    Family(dict(what=("president", "prime minister", "foreign minister", "finance minister"),
                where=COUNTRIES, when=YEARS),
           train=("Who was the {what} of {where} in {when}?",
                  "In {when}, who was the {what} of {where}?",
                  "What was the name of the {what} of {where} in {when}?"),
           test=("Which person was the {what} of {where} in {when}?",
                 "In {when}, what was the name of the {what} of {where}?")),
    Family(dict(what=("doctor", "lawyer", "teacher", "police officer", "actor",
                      "taxi driver/cab driver", "software engineer"), where=CITIES),
           train=("How much money does a {what} make in {where}?",
                  "What is the salary of a {what} in {where}?",
                  "How much does a {what} earn in {where}?"),
           dev=("In {where}, how much money does a {what} earn?",
                "In {where}, what is the salary of a {what}?")),
    # order does not matter here, so these are no roles
    Family(dict(x=LANGUAGES, y=LANGUAGES),
           train=("What is the difference between {x} and {y}?",
                  "What is the difference between {y} and {x}?",
                  "How is {x} different from {y}?"),
           test=("How are {x} and {y} different?",
                 "In what way is {y} different from {x}?")),
    Family(dict(x=CITIES, y=CITIES),
           train=("What is the distance between {x} and {y}?",
                  "What is the distance between {y} and {x}?",
                  "How far apart are {x} and {y}?"),
           dev=("How far apart are the cities of {y} and {x}?",
                "How great is the distance between {x} and {y}?")),
)

STS_FAMILIES = (
    # who does it to whom
    Family(dict(a=ANYBODY, b=ANYBODY, act=PUSH, where=OUTSIDE),
           train=("The {a} is {act2} the {b} [{where}].",
                  "The {b} is being {act3} by the {a} [{where}].",
                  "[{where},] the {a} is {act2} the {b}."),
           dev=("[{where},] the {b} is being {act3} by the {a}.",
                "We can see the {a} {act2} the {b} [{where}].")),
    Family(dict(a=SOMEBODY, b=SOMEBODY, where=OUTSIDE,
                what=("a flower", "a book", "a letter", "some money", "a ball", "a phone")),
           train=("The {a} is giving {what} to the {b} [{where}].",
                  "The {a} is giving the {b} {what} [{where}].",
                  "[{where},] the {b} is getting {what} from the {a}."),
           test=("[{where},] the {a} is giving {what} to the {b}.",
                 "The {b} is getting {what} from the {a} [{where}].")),
    Family(dict(a=SOMEBODY, b=SOMEBODY, when=("on Monday", "on Friday", "in May", "in June"),
                what=("a letter", "a message", "an email", "a note", "a report")),
           train=("The {a} wrote {what} to the {b} [{when}].",
                  "The {b} got {what} from the {a} [{when}].",
                  "[{when},] the {a} wrote the {b} {what}."),
           dev=("[{when},] the {b} got {what} from the {a}.",
                "The {a} wrote the {b} {what} [{when}].")),
    Family(dict(a=SOMEBODY, b=SOMEBODY, where=INSIDE,
                what=("read", "dance", "sing", "cook", "drive", "paint")),
           train=("The {a} is teaching the {b} to {what} [{where}].",
                  "The {b} is being taught to {what} by the {a} [{where}].",
                  "[{where},] the {b} is learning to {what} from the {a}."),
           test=("[{where},] the {a} is teaching the {b} to {what}.",
                 "The {b} is learning to {what} from the {a} [{where}].")),
    Family(dict(a=COUNTRIES, b=COUNTRIES, when=DAYS,
                what=("final", "first match", "second match", "last match", "World Cup")),
           train=("{a} beats {b} in the {what} [{when}].",
                  "{b} loses to {a} in the {what} [{when}].",
                  "{b} is beaten by {a} in the {what} [{when}]."),
           dev=("[{when},] {a} beats {b} in the {what}.",
                "[{when},] {b} loses to {a} in the {what}.")),
    Family(dict(a=COUNTRIES, b=COUNTRIES, when=DAYS,
                what=("the fire", "the crisis", "the delay", "the problem",
                      "the crash/the accident")),
           train=("{a} blames {b} for {what} [{when}].",
                  "{b} is blamed by {a} for {what} [{when}].",
                  "[{when},] {a} says that {b} is to blame for {what}."),
           test=("[{when},] {a} blames {b} for {what}.",
                 "{a} says that {b} is to blame for {what} [{when}].")),
    Family(dict(a=FIRMS, b=FIRMS, number=NUMBERS, when=MONTHS),
           train=("{a} buys {b} for {number} million dollars [{when}].",
                  "{b} is bought by {a} for {number} million dollars [{when}].",
                  "{b} is sold to {a} for {number} million dollars [{when}]."),
           dev=("[{when},] {a} buys {b} for {number} million dollars.",
                "[{when},] {b} is sold to {a} for {number} million dollars.")),
    Family(dict(a=COUNTRIES, b=COUNTRIES, when=DAYS),
           train=("The president of {a} met the prime minister of {b} [{when}].",
                  "The prime minister of {b} met the president of {a} [{when}].",
                  "[{when},] the president of {a} had a meeting with the prime minister of {b}."),
           test=("[{when},] the prime minister of {b} met the president of {a}.",
                 "The president of {a} had a meeting with the prime minister of {b} [{when}].")),
    # from, to; left, right; taller, shorter; before, after
    Family(dict(who=SOMEBODY, a=PLACES, b=PLACES, act=GO,
                when=("in the rain", "in the snow", "at night", "in the morning")),
           train=("The {who} is {act2} from the {a} to the {b} [{when}].",
                  "The {who} is {act2} to the {b} from the {a} [{when}].",
                  "[{when},] the {who} {act3} from the {a} to the {b}."),
           dev=("[{when},] the {who} is {act2} to the {b} from the {a}.",
                "The {who} {act3} to the {b} from the {a} [{when}].")),
    Family(dict(a=ROUTE, b=ROUTE, what=("bus", "train", "flight/plane", "taxi/cab"), when=DAYS,
                act=("late/delayed", "full", "empty", "on time")),
           train=("The {what} from {a} to {b} was {act} [{when}].",
                  "The {what} to {b} from {a} was {act} [{when}].",
                  "[{when},] the {what} from {a} to {b} was {act}."),
           test=("[{when},] the {what} to {b} from {a} was {act}.",
                 "We hear that the {what} from {a} to {b} was {act} [{when}].")),
    Family(dict(a=OBJECTS, b=OBJECTS, more=LIES,
                where=("on the table", "on the floor", "on the bed")),
           train=("The {a} [{where}] is {more} the {b}.",
                  "The {b} [{where}] is {more2} the {a}.",
                  "[{where},] the {a} is {more} the {b}."),
           dev=("[{where},] there is a {a} {more} the {b}.",
                "We can see that the {b} [{where}] is {more2} the {a}.")),
    Family(dict(a=SOMEBODY, b=SOMEBODY, more=PERSON_IS, where=("in the picture", "in the story")),
           train=("The {a} [{where}] is {more} than the {b}.",
                  "The {b} [{where}] is {more2} than the {a}.",
                  "[{where},] the {a} is {more} than the {b}."),
           test=("[{where},] we can see that the {b} is {more2} than the {a}.",
                 "We can see that the {a} is {more} than the {b} [{where}].")),
    Family(dict(who=SOMEBODY, a=DEEDS, b=DEEDS, when=DAYS),
           train=("The {who} {a} before {b2} [{when}].",
                  "The {who} {b} after {a2} [{when}].",
                  "[{when},] the {who} {a} before {b2}."),
           dev=("[{when},] the {who} {b} after {a2}.",
                "After {a2}, the {who} {b} [{when}].")),
    # somebody does something somewhere
    Family(dict(who=SOMEBODY, what=("guitar", "piano", "flute", "drum", "violin"),
                where=("on the stage", "in the park", "at school", "in the street", "at home")),
           train=("A {who} is playing a {what} [{where}].",
                  "[{where},] a {who} is playing a {what}.",
                  "A {what} is being played by a {who} [{where}]."),
           dev=("[{where},] a {what} is being played by a {who}.",
                "There is a {who} playing a {what} [{where}].")),
    Family(dict(who=SOMEBODY, act=PREPARE, where=INSIDE,
                what=("onion", "potato", "tomato", "egg", "fish", "chicken")),
           train=("A {who} is {act2} the {what} [{where}].",
                  "[{where},] a {who} is {act2} the {what}.",
                  "The {what} is being {act3} by a {who} [{where}]."),
           test=("[{where},] the {what} is being {act3} by a {who}.",
                 "There is a {who} {act2} the {what} [{where}].")),
    Family(dict(who=("cat", "dog", "horse", "bird", "cow"), where=OUTSIDE,
                colour=("black", "white", "brown", "gray/grey"),
                act=("sleep,sleeping", "sit,sitting", "stand,standing", "eat,eating",
                     "jump,jumping")),
           train=("A {colour} {who} is {act2} [{where}].",
                  "[{where},] a {colour} {who} is {act2}.",
                  "There is a {colour} {who} {act2} [{where}]."),
           test=("[{where},] there is a {colour} {who} {act2}.",
                 "A {who} that is {colour} is {act2} [{where}].")),
    Family(dict(who=SOMEBODY, colour=COLOURS, what=("hat", "shirt", "dress", "suit"), act=DO,
                where=OUTSIDE),
           train=("A {who} in a {colour} {what} is {act2} [{where}].",
                  "A {who} wearing a {colour} {what} is {act2} [{where}].",
                  "[{where},] a {who} in a {colour} {what} is {act2}."),
           dev=("[{where},] a {who} wearing a {colour} {what} is {act2}.",
                "There is a {who} in a {colour} {what} {act2} [{where}].")),
    Family(dict(who=SOMEBODY, colour=COLOURS, what=("car", "bus", "truck", "taxi/cab"),
                where=("down the street/down the road", "through the town", "to the station",
                       "along the river", "out of the city")),
           train=("A {who} is driving a {colour} {what} [{where}].",
                  "A {colour} {what} is being driven by a {who} [{where}].",
                  "There is a {who} driving a {colour} {what} [{where}]."),
           test=("A {who} is seen driving a {colour} {what} [{where}].",
                 "We can see a {who} driving a {colour} {what} [{where}].")),
    Family(dict(number=NUMBERS, who=("men", "women", "boys", "girls", "children/kids", "students"),
                what=GAMES, where=OUTSIDE + INSIDE),
           train=("{number} {who} are playing {what} [{where}].",
                  "[{where},] {number} {who} are playing {what}.",
                  "A group of {number} {who} is playing {what} [{where}]."),
           dev=("[{where},] a group of {number} {who} is playing {what}.",
                "There are {number} {who} playing {what} [{where}].")),
    Family(dict(number=NUMBERS,
                who=("men", "women", "tourists", "children/kids", "soldiers", "students"),
                what=("the bus", "the train", "the doctor", "the president", "the taxi/the cab"),
                where=("at the station", "in the rain", "in the street/on the road",
                       "at the hotel")),
           train=("{number} {who} are waiting for {what} [{where}].",
                  "[{where},] {number} {who} are waiting for {what}.",
                  "There are {number} {who} waiting for {what} [{where}]."),
           test=("[{where},] there are {number} {who} waiting for {what}.",
                 "A group of {number} {who} is waiting for {what} [{where}].")),
    Family(dict(who=SOMEBODY, what=("door", "wall", "car", "house", "table", "boat"),
                colour=COLOURS, when=DAYS),
           train=("The {who} painted the {what} {colour} [{when}].",
                  "The {what} was painted {colour} by the {who} [{when}].",
                  "[{when},] the {who} painted the {what} {colour}."),
           dev=("[{when},] the {what} was painted {colour} by the {who}.",
                "We saw the {who} paint the {what} {colour} [{when}].")),
    # news
    Family(dict(number=NUMBERS,
                who=("men", "women", "students", "soldiers", "workers", "officials"),
                what=("a fight", "a protest", "a bank robbery", "an attack", "a football match"),
                where=IN_COUNTRIES),
           train=("Police arrest {number} {who} after {what} [{where}].",
                  "{number} {who} are arrested by police after {what} [{where}].",
                  "[{where},] police arrest {number} {who} after {what}."),
           test=("[{where},] {number} {who} are arrested by police after {what}.",
                 "After {what} [{where}], police arrest {number} {who}.")),
    Family(dict(number=NUMBERS, who=("people", "men", "women", "soldiers", "workers", "tourists"),
                what=("fire", "bus crash/bus accident", "train crash/train accident",
                      "explosion/blast", "storm"),
                where=IN_COUNTRIES),
           train=("A {what} kills {number} {who} [{where}].",
                  "{number} {who} are killed by a {what} [{where}].",
                  "{number} {who} die in a {what} [{where}]."),
           dev=("[{where},] a {what} kills {number} {who}.",
                "[{where},] {number} {who} die in a {what}.")),
    Family(dict(what=("oil", "gas", "gold", "food", "milk", "rice", "tea", "coffee"), way=PRICES_GO,
                number=NUMBERS, where=IN_COUNTRIES),
           train=("{what} prices {way} by {number} percent [{where}].",
                  "[{where},] {what} prices {way} by {number} percent.",
                  "The prices of {what} {way} by {number} percent [{where}]."),
           test=("[{where},] the prices of {what} {way} by {number} percent.",
                 "Prices of {what} {way} by {number} percent [{where}].")),
)

# ----------------------------------------------------------------------------- sts: what differs

COST = {
    "where": 1.5, "when": 1.5, "colour": 1.5, "number": 1.5,   # another detail
    "what": 2.5, "who": 2.5, "a": 2.5, "b": 2.5,               # another participant
    "act": 3.0, "way": 3.0, "more": 3.0,                       # another action or relation
    "swap": 3.0,                                               # the two roles exchanged
    "drop": 0.8,                                               # a detail left out
}
ALL_DIFFERENT, UNRELATED = 0.8, 0.0   # scores: another event of this kind, another kind of event

# ----------------------------------------------------- the shares, to make it all harder or easier

SAME_FRAME = 0.2   # of all pairs: one frame twice, so that only words differ
SWAPPED = 0.33     # of the non-duplicates with two roles: these exchanged; else other words
TWO_WORDS = 0.3    # of the other non-duplicates: two words changed; else one
STS_MIX = {"same": 23, "drop": 9, "one": 23, "swap": 12, "two": 9, "all": 12, "unrelated": 12}
STS_PLAN = [edit for edit, share in STS_MIX.items() for _ in range(share)]


class Row(NamedTuple):
    sentences: tuple
    label: float
    frames: tuple      # the frame of each sentence


# -------------------------------------------------------------------------------------- the rules


def tidy(text):
    """A filled frame as written English: single spaces, "an" before a vowel, a capital first."""
    text = " ".join(text.split())
    text = re.sub(r" (?=[.,?])", "", text).lstrip(", ")
    text = re.sub(r"\b([Aa]) (?=[aeio]|un(?!i))", r"\1n ", text)
    return text[0].upper() + text[1:]


def adjective(rng, value, story, negation=True):
    """Words for an opinion of this value: -2 and 2 strong or strengthened, -1 and 1 plain,
    weakened or (where it fits) the negation of the opposite word."""
    words = {1: GOOD + GOOD_STORY * story, -1: BAD + BAD_STORY * story}
    sign = 1 if value > 0 else -1
    if abs(value) == 2:
        strengthened = f"{rng.choice(INTENSIFIERS)} {rng.choice(words[sign])}"
        return rng.choice((strengthened, strengthened, rng.choice(STRONG[sign])))
    plain = rng.choice(words[sign])
    weakened = f"{rng.choice(DIMINISHERS)} {plain}"
    negated = f"{rng.choice(NEGATORS)} {rng.choice(words[-sign])}"
    return rng.choice((plain, weakened, negated, negated) if negation else (plain, weakened))


def opinion(rng, name, value, story):
    """All the forms of one opinion, by the slots that take them."""
    sign = 1 if value > 0 else -1
    return {name: adjective(rng, value, story),
            f"{name}_a": adjective(rng, value, story, negation=False),
            f"{name}_w": rng.choice({1: GOOD, -1: BAD}[sign]),
            f"{name}_v": rng.choice(VERBS[value]),
            f"{name}_n": rng.choice(NOUNS[value])}


def things_and_fillers(rng, frame):
    """Words for the slots that hold no opinion, and whether the words about stories fit."""
    domain = next((d for d in DOMAINS if "{" + d + "}" in frame), rng.choice(sorted(DOMAINS)))
    things, parts, story = DOMAINS[domain]
    words = {slot: rng.choice(table) for slot, table in FILLERS.items()}
    words["thing"] = words[domain] = rng.choice(things)
    words["part"], words["other"] = rng.sample(parts, 2)
    return words, story


def sst_row(rng, split, label):
    """One sentence of this label: {win} has its value, or for label 2 the frame has no {win}.

    The loser is mostly mild against a strong winner and strong against a mild one, and a fact is
    strengthened or negated where the opinion is not: the words alone do not give the label away.
    None if a word of opinion came twice.
    """
    frame = rng.choice([f for f in SST_FRAMES[split] if ("{win" in f) == (label != 2)])
    words, story = things_and_fillers(rng, frame)
    value = label - 2 or rng.choice((-2, -1, 1, 2))
    sign, strong = (1 if value > 0 else -1), abs(value) == 2
    loser = -sign * (1 if strong == (rng.random() < 0.85) else 2)
    for name, its_value in (("win", value), ("lose", loser), ("this", value), ("that", loser)):
        words.update(opinion(rng, name, its_value, story))
    words["deg"] = rng.choice(DIMINISHERS + ("",) if strong else INTENSIFIERS)
    negated = re.search(r"\b(not|never)\b", words["win"] + " " + words["win_v"])
    words["not"] = "" if negated or rng.random() < 0.2 else "not"
    sentence = tidy(frame.format_map(words))
    used = re.findall(r"\w+", sentence)
    repeats = any(used.count(word) > 1 for word in GOOD + BAD + GOOD_STORY + BAD_STORY)
    return None if repeats else Row((sentence,), label, (frame,))


def draw(rng, family):
    """A meaning: a word for each slot, no word twice."""
    meaning = {}
    for slot, table in family.slots.items():
        meaning[slot] = rng.choice([word for word in table if word not in meaning.values()])
    return meaning


def change(rng, family, meaning, slots):
    """The meaning with other words in these slots; in {way} it is the opposite word."""
    changed = dict(meaning)
    for slot in slots:
        table = family.slots[slot]
        taken = (*meaning.values(), *changed.values())
        opposite = table[table.index(meaning[slot]) ^ 1] if slot == "way" else None
        changed[slot] = opposite or rng.choice([word for word in table if word not in taken])
    return changed


def swap(meaning):
    """The meaning with its two roles exchanged."""
    return {**meaning, "a": meaning["b"], "b": meaning["a"]}


def fill(rng, frame, meaning, drop=False):
    """The frame as a sentence, each meaning in one of its ways; `drop` leaves the detail out."""
    words = {}
    for slot, ways in meaning.items():
        forms = rng.choice(ways.split("/")).split(",")
        words.update(zip((slot, f"{slot}2", f"{slot}3"), forms))
    frame = re.sub(r"\[.*?\]", "", frame) if drop else re.sub(r"[\[\]]", "", frame)
    return tidy(frame.format_map(words))


def start_pair(rng, families, split):
    """A family, two of its frames in this split (seldom one frame twice) and a meaning for them."""
    family = rng.choice([family for family in families if getattr(family, split)])
    frames = getattr(family, split)
    frames = (rng.choice(frames),) * 2 if rng.random() < SAME_FRAME else rng.sample(frames, 2)
    return family, frames, draw(rng, family)


def pair_row(rng, frames, sentences, label):
    """A row of two sentences in random order."""
    order = rng.sample((0, 1), 2)
    return Row(tuple(sentences[i] for i in order), label, tuple(frames[i] for i in order))


def para_row(rng, split, duplicate):
    """Two questions of one family: one meaning, or its roles exchanged or a word or two changed."""
    family, frames, meaning = start_pair(rng, PARA_FAMILIES, split)
    other = meaning
    if not duplicate and "a" in meaning and rng.random() < SWAPPED:
        other = swap(meaning)
    elif not duplicate:
        slots = rng.sample(list(meaning), 2 if rng.random() < TWO_WORDS else 1)
        other = change(rng, family, meaning, slots)
    sentences = fill(rng, frames[0], meaning), fill(rng, frames[1], other)
    return pair_row(rng, frames, sentences, duplicate)


def sts_edit(rng, family, meaning, edit):
    """The meaning after this edit, and the points that it costs."""
    if edit == "swap":
        return swap(meaning), COST["swap"]
    if edit == "drop":
        return meaning, COST["drop"]
    slots = rng.sample(list(meaning), {"same": 0, "one": 1, "two": 2, "all": len(meaning)}[edit])
    return change(rng, family, meaning, slots), sum(COST[slot] for slot in slots)


def sts_row(rng, split, edit):
    """Two sentences of one family that differ by this edit; none if the family has no roles."""
    family, frames, meaning = start_pair(rng, STS_FAMILIES, split)
    if edit == "swap" and "a" not in meaning:
        return None
    changed, cost = sts_edit(rng, family, meaning, edit)
    sentences = fill(rng, frames[0], meaning), fill(rng, frames[1], changed, drop=edit == "drop")
    return pair_row(rng, frames, sentences, round(max(5.0 - cost, ALL_DIFFERENT), 1))


def unrelated_row(rng, split):
    """Two sentences of different families; none if the same family came twice."""
    one, frames, meaning = start_pair(rng, STS_FAMILIES, split)
    two, other_frames, other_meaning = start_pair(rng, STS_FAMILIES, split)
    frames = frames[0], other_frames[1]
    sentences = fill(rng, frames[0], meaning), fill(rng, frames[1], other_meaning)
    return pair_row(rng, frames, sentences, UNRELATED) if one is not two else None


# ----------------------------------------------------------------------------------- all the rows


def make_row(task, rng, split, index):
    """The row at this place of the plan, by which labels come out evenly; none if it failed."""
    if task == "sst":
        return sst_row(rng, split, index % 5)
    if task == "para":
        return para_row(rng, split, float(index % 2))
    edit = STS_PLAN[index % len(STS_PLAN)]
    return unrelated_row(rng, split) if edit == "unrelated" else sts_row(rng, split, edit)


def split_rows(task, split, seed):
    """The rows of one split, shuffled; no row twice and no pair of equal sentences."""
    rng = random.Random(f"{seed} {task} {split}")
    rows = {}
    while len(rows) < ROWS[split]:
        row = make_row(task, rng, split, len(rows))
        if row and len(set(row.sentences)) == len(row.sentences):
            rows.setdefault(tuple(sorted(row.sentences)), row)
    rows = list(rows.values())
    rng.shuffle(rows)
    return rows


def generate(seed=0):
    """{task: {split: [Row]}}, the same for the same seed everywhere."""
    return {task: {split: split_rows(task, split, seed) for split in ROWS} for task in FILES}


def row_id(*content):
    """25 hexadecimal digits, as the course's ids have."""
    return hashlib.sha1(repr(content).encode()).hexdigest()[:25]


def write_split(path, task, split, rows):
    """One tab-separated file: row number, id, sentences and, but for the test split, the label."""
    columns = COLUMNS[task] if split != "test" else COLUMNS[task][:-1]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("", "id", *columns))
        for index, row in enumerate(rows):
            cells = (*row.sentences, row.label)[:len(columns)]
            writer.writerow((index, row_id(task, split, index, row.sentences), *cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent,
                        help="folder for the nine files (default: the folder of this script)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another data set")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    for task, splits in generate(settings.seed).items():
        for split, rows in splits.items():
            write_split(settings.out / f"{FILES[task][split]}.csv", task, split, rows)
            print(f"{FILES[task][split]}.csv: {len(rows)} rows")


if __name__ == "__main__":
    main()
