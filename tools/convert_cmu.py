"""Convert a file of CMU's course (11-711) to the layout of CS224N's, which the tasks here read.

    python tools/convert_cmu.py sst-train.txt ids-sst-train.csv

Lines are "label ||| sentence"; the ids are their numbers, from 0.
"""

import argparse
import csv


def convert(lines):
    """→ rows of the tab-separated file, the header first; ValueError where a line has no |||."""
    rows = [("", "id", "sentence", "sentiment")]
    for number, line in enumerate(lines):
        label, bars, sentence = line.partition("|||")
        if not bars:
            raise ValueError(f"line {number + 1} is not \"label ||| sentence\": {line.strip()!r}")
        rows.append((number, number, sentence.strip(), label.strip()))
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="CMU's file")
    parser.add_argument("target", help="the file to write, as ids-sst-train.csv")
    args = parser.parse_args(arguments)
    try:
        with open(args.source, encoding="utf-8") as source:
            rows = convert(source)
    except (OSError, ValueError) as error:
        parser.error(f"{args.source}: {error}")
    with open(args.target, "w", encoding="utf-8", newline="") as target:
        csv.writer(target, "excel-tab", lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
