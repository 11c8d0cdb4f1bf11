"""The files of the course (CS224N's default project): tab-separated despite their name, with a
header whose first column has no name. A defect is an error that names file and line. Only rows in
which nothing but the task's nullable columns is empty (Quora's label or second sentence) are left
out, with a warning."""

import csv
import io
import math
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from bert import UserError
from bert.files import read_utf8


class Example(NamedTuple):
    """One row: its id, its one or two texts, its label (None where the file holds no labels)."""

    id: str
    texts: tuple
    label: float | None


def find_file(folder, file):
    """The path of a task's file in `folder`. Of a file such as RTE/train.tsv the folder may have
    another spelling (rte, SST2 for SST-2), or `folder` may be it."""
    folder, file, dashes = Path(folder), Path(file), str.maketrans("", "", "-_")
    own = file.parent.name.lower().translate(dashes)         # "": a file of the folder itself
    for place in (folder / file.parent, folder.resolve(), *sorted(folder.glob("*"))) if own else ():
        if place.name.lower().translate(dashes) == own and (place / file.name).exists():
            return place / file.name
    return folder / file


def read_course_file(path, task, strict_rows=False):
    """The examples of one file of the course, as `task` (a row of the Task table) describes it."""
    return parse_examples(path, _rows(path), task, strict_rows, number="id")


def parse_examples(path, rows, task, strict_rows, number, complete=False):
    """rows: (line number, cells), the header first → [Example]. `number` is the column with the ids
    (None: they are numbered). complete: rows with empty texts are kept where the task allows it."""
    header_line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path} is empty; it must start with a header line")
    names = [name.strip() for name in header]
    needed = [name for name in (number, *task.columns) if name]
    missing = [name for name in needed if name not in names]
    if missing:
        raise UserError(f"{path} line {header_line} lacks the column {', '.join(missing)}; it has "
                        f"{', '.join(filter(None, names))} (columns are separated by tabs)")
    labeled = task.label in names
    twice = [name for name in (*needed, *[task.label] * labeled) if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} line {header_line} has the column {', '.join(twice)} twice; "
                        f"rename or remove one")
    examples, lines, left_out = [], {}, []
    for place, (line, row) in enumerate(rows):
        if len(row) != len(names):
            raise UserError(f"{path} line {line} has {len(row)} cells where the header has "
                            f"{len(names)}; mend the row (cells are separated by tabs)")
        cells = dict(zip(names, (" ".join(cell.split()) for cell in row)))
        empty = [name for name in (*needed, *[task.label] * labeled) if not cells[name]]
        if empty and (strict_rows or not set(empty) <= set(task.nullable_columns)):
            raise UserError(f"{path} line {line} has nothing under {', '.join(empty)}; "
                            f"fill the cell or remove the row")
        if empty and not complete:
            left_out.append(line)
            continue
        name = str(place) if number is None else cells[number].lower()
        if name in lines:
            raise UserError(f"{path} line {line} has the id {name} of line {lines[name]}; "
                            f"ids must be unique, or predictions could not be told apart")
        lines[name] = line
        label = _label(cells[task.label], task, path, line) if labeled else None
        examples.append(Example(name, tuple(cells[column] for column in task.columns), label))
    if left_out:
        shown = ", ".join(map(str, left_out[:10])) + (", …" if len(left_out) > 10 else "")
        warnings.warn(f"{path}: left out {len(left_out)} row{'s' * (len(left_out) > 1)} with an "
                      f"empty {' or '.join(task.nullable_columns)} (line {shown}); --strict-rows "
                      f"makes this an error", stacklevel=2)
    if not examples:
        raise UserError(f"{path} holds a header and no rows that can be used")
    return examples


def _rows(path):
    """(line number, cells) of every row; a quoted cell may go over several lines."""
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), delimiter="\t", strict=True)
    start = 1
    try:
        for row in reader:
            if any("\t" in cell and ("\n" in cell or "\r" in cell) for cell in row):
                raise csv.Error("a quoted cell runs over tabs into the next lines")
            if row:                                          # blank lines are no rows
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise UserError(f"{path} line {start}: a cell is longer than {csv.field_size_limit():,}"
                            f" characters; shorten it, or close its quote") from error
        raise UserError(f"{path} line {start}: broken quote ({error}); a cell that begins with a "
                        f'quote must end with one, and hold any inner quote twice ("")') from error


def _label(text, task, path, line):
    must = (f"one of {', '.join(task.label_names)}" if task.string_labels else
            f"a {'' if task.is_regression else 'whole '}number from 0 to {task.max_label}")
    label = math.nan
    if task.string_labels:
        label = float(task.label_names.index(text)) if text in task.label_names else label
    elif re.fullmatch(r"[0-9]+(\.[0-9]*)?(e-[0-9]+)?", text):            # e-05: as pandas writes
        label = float(text)
    if not 0 <= label <= task.max_label or not (task.is_regression or label == int(label)):
        raise UserError(f"{path} line {line}: {task.label} is {text!r}; it must be {must}")
    return label


def write_course_file(row, task, split, ids, predicted):
    """→ name and text of the course's prediction file, to the letter (spaces and spelling too)."""
    lines = [f"id \t {row.header} \n"] + [f"{i} , {p} \n" for i, p in zip(ids, predicted)]
    return f"{task}-{split}-output.csv", "".join(lines)
