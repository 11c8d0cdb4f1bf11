"""The text that this checkpoint was trained on, from the TRAINING files of the course's data and
GLUE; no line of any dev or test file.

    python bert/tiny/make_text.py --data "$PLAINBERT_DATA" --out text

It reads DATA/cs224n/*.csv and DATA/glue/*/*.tsv, and writes text files of one sentence or passage a
line, and pairs.txt, where a line is the two texts of a training pair with a tab between them. Every
line is unique, its white space collapsed. A passage of more than 60 words is split between its
sentences; a sentence of more than 60 words is cut into pieces of 60. A line is left out if a dev or
test file holds it, as a whole text or as one of the pieces that this script would make of that text
(compared in lower case, by letters and digits only). An SST-2 line is a phrase of a longer
sentence: it is left out too if it occurs inside a text of SST's or SST-2's dev or test files. """
import argparse
import csv
import io
import re
from pathlib import Path

WORDS = 60
SOURCES = {  # name -> (folder, file stem, columns, quoted)
    "sst": ("cs224n", "ids-sst", ("sentence",), True),
    "cfimdb": ("cs224n", "ids-cfimdb", ("sentence",), True),
    "quora": ("cs224n", "quora", ("sentence1", "sentence2"), True),
    "sts": ("cs224n", "sts", ("sentence1", "sentence2"), True),
    "mrpc": ("glue/MRPC", "", ("#1 String", "#2 String"), False),
    "rte": ("glue/RTE", "", ("sentence1", "sentence2"), False),
    "wnli": ("glue/WNLI", "", ("sentence1", "sentence2"), False),
    "sst2": ("glue/SST-2", "", ("sentence",), False),
    "qnli": ("glue/QNLI", "", ("question", "sentence"), False),
}


def pair_lines(rows, kept_out):
    """The pairs of short texts, of which neither is in a dev or test file, as lines of
    pairs.txt."""
    for first, second in zip(rows[::2], rows[1::2]):
        short = all(len(text.split()) <= WORDS and key(text) for text in (first, second))
        if short and not {key(first), key(second)} & kept_out and key(first) != key(second):
            yield f"{first}\t{second}"


def files(data, name):
    """→ (training file, [every other file of the same source: dev, test])."""
    folder, stem, _, quoted = SOURCES[name]
    ending, prefix = (".csv", stem + "-") if quoted else (".tsv", "")
    found = sorted((data / folder).glob(f"{prefix}*{ending}"))
    train = data / folder / f"{prefix}train{ending}"
    return train, [path for path in found if path != train]


def texts(path, columns, quoted):
    """The cells of these columns, row by row, white space collapsed; rows that lack one are left
    out."""
    content = path.read_text(encoding="utf-8-sig")
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    rows = csv.reader(io.StringIO(content, newline=""), delimiter="\t", quoting=quoting)
    header = next(rows)
    places = [header.index(column) for column in columns]
    for row in rows:
        cells = [" ".join(row[place].split()) for place in places if place < len(row)]
        if len(cells) == len(places) and all(cells):
            yield from cells


def pieces(text):
    """The text itself if it has at most 60 words; else as many whole sentences a piece as fit."""
    if len(text.split()) <= WORDS:
        return [text]
    found, now = [], []
    for sentence in re.split(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+", text):
        words = sentence.split()
        if now and len(now) + len(words) > WORDS:
            found, now = found + [now], []
        now = now + words
        while len(now) > WORDS:
            found, now = found + [now[:WORDS]], now[WORDS:]
    return [" ".join(words) for words in found + [now] if words]


def key(text):
    """What two lines are compared by: letters and digits in lower case."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def held_out_keys(data):
    """→ keys of all dev and test texts and their pieces, and the movie texts among them by their
    first two words of every place: {(word, word): texts}"""
    keys, grams = set(), {}
    for name, (_, _, columns, quoted) in SOURCES.items():
        for path in files(data, name)[1]:
            for text in texts(path, columns, quoted):
                keys |= {key(text), *map(key, pieces(text))}
                words = key(text).split() if name in ("sst", "sst2") else []
                for pair in set(zip(words, words[1:])):
                    grams.setdefault(pair, []).append(f" {key(text)} ")
    return keys, grams


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cs224n/ and glue/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the text files")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kept_out, grams = held_out_keys(given.data)

    def held_out(name, line):
        words = line.split()
        phrase = name == "sst2" and len(words) > 2           # a part of a longer sentence
        inside = phrase and any(f" {line} " in text for text in grams.get(tuple(words[:2]), ()))
        return not line or line in kept_out or inside

    seen, pairs = set(), {}
    print(f"{'file':12} {'lines':>8} {'words':>10}")
    for name, (_, _, columns, quoted) in SOURCES.items():
        rows, lines = list(texts(files(given.data, name)[0], columns, quoted)), []
        for text in rows:
            for line in pieces(text) if key(text) not in kept_out else ():
                if key(line) not in seen and not held_out(name, key(line)):
                    seen.add(key(line))
                    lines.append(line)
        if len(columns) == 2:
            pairs |= dict.fromkeys(pair_lines(rows, kept_out))
        write(given.out / f"{name}.txt", lines)
    write(given.out / "pairs.txt", list(pairs))


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.name:12} {len(lines):8,} {sum(len(line.split()) for line in lines):10,}")


if __name__ == "__main__":
    main()
