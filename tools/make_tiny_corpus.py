"""Make the text that the tiny checkpoint was trained on, from the TRAINING files of the course's
data and GLUE, without any line of a dev or test file.

    python tools/make_tiny_corpus.py --data "$PLAINBERT_DATA" --out text

Reads DATA/cs224n/*.csv and DATA/glue/*/*.tsv. Writes text files of one sentence or passage a line,
and pairs.txt, where a line is the two texts of a training pair with a tab between them. Every line
is unique, its white space collapsed. A passage of more than 60 words is split between its
sentences; a sentence of more than 60 words is cut into pieces of 60.

A line is left out if a dev or test file contains it, as a whole text or as one of the pieces into
which this script would split that text (compared in lower case, by letters and digits only). An
SST-2 line is a phrase of a longer sentence: it is also left out if it occurs inside a text of SST's
or SST-2's dev or test files.
"""
import argparse
import csv
import io
import re
from pathlib import Path

MAX_WORDS = 60
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


def list_files(data, name):
    """→ training file, [every other file of the same source: dev, test]."""
    folder, stem, _, quoted = SOURCES[name]
    ending, prefix = (".csv", stem + "-") if quoted else (".tsv", "")
    found = sorted((data / folder).glob(f"{prefix}*{ending}"))
    train = data / folder / f"{prefix}train{ending}"
    return train, [path for path in found if path != train]


def read_cells(path, columns, quoted):
    """Yield the cells of these columns, row by row, with collapsed white space. Rows that lack one
    are left out."""
    content = path.read_text(encoding="utf-8-sig")
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    rows = csv.reader(io.StringIO(content, newline=""), delimiter="\t", quoting=quoting)
    header = next(rows)
    indices = [header.index(column) for column in columns]
    for row in rows:
        cells = [" ".join(row[index].split()) for index in indices if index < len(row)]
        if len(cells) == len(indices) and all(cells):
            yield from cells


def split_text(text):
    """→ pieces of at most 60 words: the text itself, or as many whole sentences a piece as fit."""
    if len(text.split()) <= MAX_WORDS:
        return [text]
    pieces, piece = [], []
    for sentence in re.split(r"(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+", text):
        words = sentence.split()
        if piece and len(piece) + len(words) > MAX_WORDS:
            pieces, piece = pieces + [piece], []
        piece = piece + words
        while len(piece) > MAX_WORDS:
            pieces, piece = pieces + [piece[:MAX_WORDS]], piece[MAX_WORDS:]
    return [" ".join(words) for words in pieces + [piece] if words]


def text_key(text):
    """Letters and digits in lower case: two lines with the same key count as the same."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


class HeldOutTexts:
    """The texts of all dev and test files."""

    def __init__(self, data):
        self.keys = set()                                    # of the texts and their pieces
        self.movie_texts = {}                                # {(word, word): SST texts with them}
        for name, (_, _, columns, quoted) in SOURCES.items():
            for path in list_files(data, name)[1]:
                for text in read_cells(path, columns, quoted):
                    self.keys |= {text_key(text), *map(text_key, split_text(text))}
                    words = text_key(text).split() if name in ("sst", "sst2") else []
                    for bigram in set(zip(words, words[1:])):
                        self.movie_texts.setdefault(bigram, []).append(f" {text_key(text)} ")

    def contain(self, name, key):
        """Whether a line of source `name` with this key must be left out."""
        words = key.split()
        candidates = self.movie_texts.get(tuple(words[:2]), ()) if name == "sst2" else ()
        inside = len(words) > 2 and any(f" {key} " in text for text in candidates)
        return not key or key in self.keys or inside


def pair_lines(cells, held_out):
    """Yield the pairs of short texts, neither of them held out, as lines of pairs.txt."""
    for first, second in zip(cells[::2], cells[1::2]):
        keys = {text_key(first), text_key(second)}
        short = all(len(text.split()) <= MAX_WORDS for text in (first, second))
        if short and all(keys) and len(keys) == 2 and not keys & held_out.keys:
            yield f"{first}\t{second}"


def write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.name:12} {len(lines):8,} {sum(len(line.split()) for line in lines):10,}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cs224n/ and glue/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the text files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    held_out, seen, pairs = HeldOutTexts(args.data), set(), {}
    print(f"{'file':12} {'lines':>8} {'words':>10}")
    for name, (_, _, columns, quoted) in SOURCES.items():
        cells, lines = list(read_cells(list_files(args.data, name)[0], columns, quoted)), []
        for text in cells:
            for line in split_text(text) if text_key(text) not in held_out.keys else ():
                key = text_key(line)
                if key not in seen and not held_out.contain(name, key):
                    seen.add(key)
                    lines.append(line)
        if len(columns) == 2:
            pairs |= dict.fromkeys(pair_lines(cells, held_out))
        write_lines(args.out / f"{name}.txt", lines)
    write_lines(args.out / "pairs.txt", list(pairs))


if __name__ == "__main__":
    main()
