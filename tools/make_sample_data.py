"""Make the project's own small data set: three tasks in the course's file format.

    python tools/make_sample_data.py                          # writes data/
    python tools/make_sample_data.py --out FOLDER --seed 1

A sentence is a frame (a sentence with slots) whose slots are filled from word tables. Its label
follows from its construction, by the rules below. Every frame belongs to one split only: the frames
of dev and test do not occur in training, only their words and constructions do.

sst   How good does the writer find it? 0 very negative, 1 negative, 2 neutral, 3 positive, 4 very
      positive.
      * A plain or weakened word is 1 or 3 ("dull", "rather dull"); a strong or strengthened one is
        0 or 4 ("awful", "extremely dull", "hated").
      * A negation reverses a word and makes it mild: "not dull", "hardly a failure" are 3.
      * Of two opinions the writer's own final one counts: the clause after "but" or "yet", the main
        clause beside "although", "even though" or "despite", what it turned out to be instead of
        what was expected or what other people said.
      * "not" or "extremely" at a fact has no effect: "it was extremely late, and the food was good"
        is 3.
      * Facts, open questions, "neither good nor bad", as much praise as blame: 2.
para  1 if both questions ask the same in other words, 0 if the second asks the opposite. The
      difference is the key, a pair of opposites, each with several wordings: "start", "begin" and
      "stop", "end"; "easy", "not hard" and "hard", "not easy"; "from Delhi to London", "to London
      from Delhi" and "from London to Delhi". The two questions use different wordings and different
      frames, so neither a word nor the number of shared words reveals the label.
sts   5 for the same event in any words. The opposite costs OPPOSITE points, another word in
      a detail DETAIL each (STS_EDITS); 0 for two different kinds of event.
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
# opposite opinions of which neither counts. The ending is the kind of word that fits: none "it
# is ...", _a "a ... film", _w one plain word, _v "I ... it", _n "it is ..." (a noun).
# {deg} and {not} modify a fact, which does not affect the label.

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
# An entry is one meaning, and "/" separates its wordings. A key is a table of two entries that are
# opposites.

BEGIN = ("start/begin", "stop/end")
RAISE = ("increase/raise", "reduce/lower")
SWITCH = ("turn on/switch on", "turn off/switch off")
LOVE = ("love/like", "hate/do not like")
HELP = ("help/support", "attack/fight")
TRUST = ("trust/believe", "doubt/question")
EASY = ("easy/simple", "hard/not easy")
SAFE = ("safe/harmless", "dangerous/not safe")
WISE = ("a good idea/a great idea", "a bad idea/a mistake")
HAPPY = ("happy/glad", "sad/not happy")
BIG = ("big/large", "small/little")
OLD = ("old/ancient", "new/modern")
ROUTE = ("from Delhi to London/to London from Delhi", "from London to Delhi/to Delhi from London")
FIRST = ("eat before I run/eat first and then run", "run before I eat/run first and then eat")

HABITS = ("smoking", "eating meat", "drinking coffee", "working at night", "watching movies",
          "playing video games", "eating sugar", "learning French")
EVENTS = ("the war", "the game", "the show", "the work")
COSTS = ("the price of gas", "the rent of the house", "the cost of the trip", "taxes")
DEVICES = ("the light", "the camera", "the radio", "the computer")
LIKED = ("cats", "dogs", "history", "winter")
GROUPS = ("the government", "the police", "the army", "the new law")
SOURCES = ("doctors", "the news", "scientists", "the newspaper", "the president", "the police")
SKILLS = ("learn French", "cook rice", "find a job in India", "play the guitar", "learn Java",
          "write a book", "lose weight", "learn to swim")
RISKS = ("travel at night", "eat fish every day", "drink the water in Mexico", "drive in the rain",
         "swim in the river", "run after dark", "live near an airport", "eat raw meat")
PLANS = ("buy a house", "leave the country", "tell the truth", "marry young", "study history",
         "learn two languages", "give up a good job", "lend money to friends")
MINE = ("my mother/my mom", "my dog", "my boss", "my teacher", "my brother", "my girlfriend",
        "my wife", "my best friend")
PEOPLE = ("men", "women", "students", "children/kids")
PERSONS = ("the man/the guy", "the woman/the lady", "the doctor", "the president")
BUILDINGS = ("houses", "churches", "schools", "hotels", "restaurants", "theaters")
BUILDING = ("house", "church", "room", "boat")
CITIES = ("London", "Paris", "Delhi", "Tokyo", "Boston", "Chicago", "Mumbai", "Sydney")
IN_CITIES = ("in London", "in Paris", "in Delhi", "in Tokyo")
DAILY = ("every day", "in the morning", "at night", "on Sunday", "in the evening")
VEHICLES = ("by train", "by car", "by plane", "by boat")


class Kind(NamedTuple):
    """Frames that mean the same if their slots do, by split, and the topics that fill them: a topic
    is {slot: word table}; its slot "key" holds the opposites."""
    topics: tuple
    train: tuple
    dev: tuple
    test: tuple


PARA_KINDS = (
    Kind((dict(key=BEGIN, what=HABITS), dict(key=RAISE, what=COSTS),
          dict(key=SWITCH, what=DEVICES)),
         train=("How do I {key} {what}?",
                "How can I {key} {what}?",
                "What is the best way to {key} {what}?",
                "What should I do to {key} {what}?"),
         dev=("Can you tell me how to {key} {what}?",
              "I want to {key} {what}. What should I do?"),
         test=("I want to {key} {what}. How do I do it?",
               "Is there a good way to {key} {what}?")),
    Kind((dict(key=LOVE, who=PEOPLE, what=LIKED), dict(key=HELP, who=PEOPLE, what=GROUPS),
          dict(key=TRUST, who=PEOPLE, what=SOURCES)),
         train=("Why do {who} {key} {what}?",
                "What makes {who} {key} {what}?",
                "Why is it that {who} {key} {what}?",
                "Why do so many {who} {key} {what}?"),
         dev=("What is the reason that {who} {key} {what}?",
              "Can you tell me why {who} {key} {what}?"),
         test=("What are the reasons why {who} {key} {what}?",
               "I want to know why {who} {key} {what}.")),
    Kind((dict(key=EASY, what=SKILLS), dict(key=SAFE, what=RISKS), dict(key=WISE, what=PLANS)),
         train=("Is it {key} to {what}?",
                "Do you think it is {key} to {what}?",
                "Would you say that it is {key} to {what}?",
                "Is it really {key} to {what}?"),
         dev=("Is it true that it is {key} to {what}?",
              "Why is it {key} to {what}?"),
         test=("Would you think it is {key} to {what}?",
               "In your opinion, is it {key} to {what}?")),
    Kind((dict(key=HAPPY, who=MINE),),
         train=("Why is {who} {key}?",
                "What is the reason that {who} is {key}?",
                "Why is it that {who} is {key}?"),
         dev=("Can you tell me why {who} is {key}?",
              "What are the reasons why {who} is {key}?"),
         test=("I want to know why {who} is {key}.",
               "Is there a reason why {who} is {key}?")),
    Kind((dict(key=BIG, what=BUILDINGS, where=CITIES), dict(key=OLD, what=BUILDINGS, where=CITIES)),
         train=("Where can I find {key} {what} in {where}?",
                "Where are there {key} {what} in {where}?",
                "What is the best place in {where} to find {key} {what}?"),
         dev=("I am in {where}. Where can I find {key} {what}?",
              "In {where}, where are there {key} {what}?"),
         test=("In {where}, what is the best place to find {key} {what}?",
               "Where should I look for {key} {what} in {where}?")),
    Kind((dict(key=ROUTE, how=VEHICLES),),
         train=("How do I get {key} {how}?",
                "How can I travel {key} {how}?",
                "What is the best way to go {key} {how}?"),
         dev=("How should I travel {key} {how}?",
              "What is the best way to get {key} {how}?"),
         test=("Can I go {key} {how}?",
               "Is it possible to travel {key} {how}?")),
    Kind((dict(key=FIRST, when=DAILY),),
         train=("Should I {key} {when}?",
                "Is it better to {key} {when}?",
                "Do you think that I should {key} {when}?"),
         dev=("Would you say that I should {key} {when}?",
              "Is it a good idea to {key} {when}?"),
         test=("Is it right to {key} {when}?",
               "Would it be good to {key} {when}?")),
)

STS_KINDS = (
    Kind((dict(key=BEGIN, who=PERSONS, what=EVENTS, where=IN_CITIES),
          dict(key=RAISE, who=PERSONS, what=COSTS, where=IN_CITIES),
          dict(key=SWITCH, who=PERSONS, what=DEVICES, where=IN_CITIES)),
         train=("{who} will {key} {what} {where}.",
                "{where}, {who} will {key} {what}.",
                "{who} is going to {key} {what} {where}.",
                "{where}, {who} plans to {key} {what}.",
                "They say that {who} will {key} {what} {where}."),
         dev=("{who} wants to {key} {what} {where}.",
              "{where}, {who} is going to {key} {what}."),
         test=("{where}, {who} wants to {key} {what}.",
               "They say that {who} is going to {key} {what} {where}.")),
    Kind((dict(key=LOVE, who=PEOPLE, what=LIKED, where=IN_CITIES),
          dict(key=HELP, who=PEOPLE, what=GROUPS, where=IN_CITIES)),
         train=("{who} {key} {what} {where}.",
                "{where}, {who} {key} {what}.",
                "Most {who} {where} {key} {what}.",
                "We know that {who} {key} {what} {where}.",
                "They say that {who} {where} {key} {what}."),
         dev=("{where}, most {who} {key} {what}.",
              "I think that {who} {key} {what} {where}."),
         test=("{where}, many {who} {key} {what}.",
               "We hear that {who} {where} {key} {what}.")),
    Kind((dict(key=HAPPY, who=PERSONS, where=IN_CITIES),),
         train=("{who} is {key} {where}.",
                "{where}, {who} is {key}.",
                "We know that {who} is {key} {where}.",
                "{where}, {who} feels {key}.",
                "They say that {who} {where} is {key}."),
         dev=("{where}, we know that {who} is {key}.",
              "{who} feels {key} {where}."),
         test=("{where}, they say that {who} is {key}.",
               "{who} seems to be {key} {where}.")),
    Kind((dict(key=BIG, who=PERSONS, what=BUILDING, where=IN_CITIES),),
         train=("{who} has a {key} {what} {where}.",
                "{where}, {who} has a {key} {what}.",
                "{who} bought a {key} {what} {where}.",
                "We know that {who} has a {key} {what} {where}.",
                "They say that {who} has a {key} {what} {where}."),
         dev=("{where}, {who} bought a {key} {what}.",
              "We know that {who} bought a {key} {what} {where}."),
         test=("{where}, we know that {who} has a {key} {what}.",
               "They say that {who} bought a {key} {what} {where}.")),
    Kind((dict(key=ROUTE, who=PERSONS, how=VEHICLES),),
         train=("{who} travels {key} {how}.",
                "{who} is going {key} {how}.",
                "{how}, {who} goes {key}.",
                "They say that {who} travels {key} {how}."),
         dev=("{who} goes {key} {how}.",
              "{how}, {who} is going {key}."),
         test=("We know that {who} goes {key} {how}.",
               "{how}, {who} travels {key}.")),
)

OPPOSITE, DETAIL = 3.0, 0.8    # the points, of 5, that a difference costs
STS_EDITS = {                  # the difference: (its share in percent, opposite, details)
    "nothing": (24, False, 0), "a detail": (11, False, 1), "two details": (6, False, 2),
    "the opposite": (25, True, 0), "and a detail": (12, True, 1), "and two": (4, True, 2),
    "everything": (18, None, None)}
STS_PLAN = [edit for edit, (share, *_) in STS_EDITS.items() for _ in range(share)]


class Row(NamedTuple):
    sentences: tuple
    label: float
    frames: tuple      # the frame of each sentence


# -------------------------------------------------------------------------------------- the rules


def write_out(text):
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
    """Words for the slots without an opinion, and whether the words about stories fit."""
    domain = next((d for d in DOMAINS if "{" + d + "}" in frame), rng.choice(sorted(DOMAINS)))
    things, parts, story = DOMAINS[domain]
    words = {slot: rng.choice(table) for slot, table in FILLERS.items()}
    words["thing"] = words[domain] = rng.choice(things)
    words["part"], words["other"] = rng.sample(parts, 2)
    return words, story


def sst_row(rng, split, label):
    """One sentence with this label: {win} has its value, or for label 2 the frame has no {win}.

    {lose} is mostly mild beside a strong {win} and strong beside a mild one, and a fact is
    strengthened or negated where the opinion is not, so that the words alone do not reveal the
    label. None if a word of opinion occurs twice.
    """
    frame = rng.choice([f for f in SST_FRAMES[split] if ("{win" in f) == (label != 2)])
    words, story = things_and_fillers(rng, frame)
    value = label - 2 or rng.choice((-2, -1, 1, 2))
    sign, strong = (1 if value > 0 else -1), abs(value) == 2
    loser = -sign * (1 if strong == (rng.random() < 0.85) else 2)
    for name, opinion_value in (("win", value), ("lose", loser), ("this", value), ("that", loser)):
        words.update(opinion(rng, name, opinion_value, story))
    words["deg"] = rng.choice(DIMINISHERS + ("",) if strong else INTENSIFIERS)
    negated = re.search(r"\b(not|never)\b", words["win"] + " " + words["win_v"])
    words["not"] = "" if negated or rng.random() < 0.2 else "not"
    sentence = write_out(frame.format_map(words))
    used = re.findall(r"\w+", sentence)
    repeats = any(used.count(word) > 1 for word in GOOD + BAD + GOOD_STORY + BAD_STORY)
    return None if repeats else Row((sentence,), label, (frame,))


def draw(rng, topic):
    """Draw a meaning: for each slot an entry of its word table."""
    return {slot: rng.choice(table) for slot, table in topic.items()}


def oppose(topic, meaning):
    """The meaning with the opposite key."""
    one, two = topic["key"]
    return {**meaning, "key": two if meaning["key"] == one else one}


def change(rng, topic, meaning, details):
    """The meaning with other entries in `details` slots beside the key."""
    slots = rng.sample([slot for slot in topic if slot != "key"], details)
    return {**meaning, **{slot: rng.choice([entry for entry in topic[slot]
                                            if entry != meaning[slot]]) for slot in slots}}


def fill(rng, frame, meaning, avoid=""):
    """→ the frame as a sentence of this meaning, and its wording of the key, which is not
    `avoid`."""
    words = {slot: rng.choice([w for w in entry.split("/") if slot != "key" or w != avoid])
             for slot, entry in meaning.items()}
    return write_out(frame.format_map(words)), words["key"]


def pair_row(rng, kind, split, meaning, other, label):
    """A row of two frames of this kind, one for each meaning."""
    frames = rng.sample(getattr(kind, split), 2)
    first, wording = fill(rng, frames[0], meaning)
    second, _ = fill(rng, frames[1], other, wording)
    return Row((first, second), label, tuple(frames))


def pick(rng, kinds):
    """Draw a topic, all with the same probability → its kind, the topic."""
    return rng.choice([(kind, topic) for kind in kinds for topic in kind.topics])


def para_row(rng, split, duplicate):
    """Two questions that mean the same or, if no duplicate, the opposite."""
    kind, topic = pick(rng, PARA_KINDS)
    meaning = draw(rng, topic)
    other = meaning if duplicate else oppose(topic, meaning)
    return pair_row(rng, kind, split, meaning, other, duplicate)


def sts_row(rng, split, edit):
    """Two statements of one topic that differ by this edit, or of two kinds."""
    kind, topic = pick(rng, STS_KINDS)
    meaning = other = draw(rng, topic)
    _, opposite, details = STS_EDITS[edit]
    if edit == "everything":
        return unrelated_row(rng, split, kind, meaning)
    other = change(rng, topic, oppose(topic, meaning) if opposite else meaning, details)
    points = 5 - OPPOSITE * opposite - DETAIL * details
    return pair_row(rng, kind, split, meaning, other, round(points, 1))


def unrelated_row(rng, split, kind, meaning):
    """A statement of this kind beside one of another kind."""
    other, topic = pick(rng, [other for other in STS_KINDS if other is not kind])
    frames = [rng.choice(getattr(each, split)) for each in (kind, other)]
    sentences = [fill(rng, *each)[0] for each in zip(frames, (meaning, draw(rng, topic)))]
    return Row(tuple(sentences), 0.0, tuple(frames))


# ----------------------------------------------------------------------------------- all the rows


def make_row(task, rng, split, index):
    """The row number `index` of a plan with evenly spread labels; None if the draw is refused."""
    if task == "sst":
        return sst_row(rng, split, index % 5)
    if task == "para":
        return para_row(rng, split, float(index % 2))
    return sts_row(rng, split, STS_PLAN[index % len(STS_PLAN)])


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
    """25 hexadecimal digits, as in the course's ids."""
    return hashlib.sha1(repr(content).encode()).hexdigest()[:25]


def write_split(path, task, split, rows):
    """Write one tab-separated file: row number, id, sentences and, except in test, the label."""
    columns = COLUMNS[task] if split != "test" else COLUMNS[task][:-1]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("", "id", *columns))
        for index, row in enumerate(rows):
            cells = (*row.sentences, row.label)[:len(columns)]
            writer.writerow((index, row_id(task, split, index, row.sentences), *cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "data",
                        help="folder of the nine files (default: data/)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another data set")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    for task, splits in generate(settings.seed).items():
        for split, rows in splits.items():
            write_split(settings.out / f"{FILES[task][split]}.csv", task, split, rows)
            print(f"{FILES[task][split]}.csv: {len(rows)} rows")


if __name__ == "__main__":
    main()
