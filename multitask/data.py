"""From a data file to batches: read → examples → token ids, once → padding-free batches.

The course's files (CS224N's default project) are tab-separated despite their name, with a header
whose first column has no name. A defect is an error that names file and line, with one exception:
rows whose cells are all there but one that the task may lack (Quora's label or second sentence) are
left out. GLUE's files are read the same way, but know no quotes and have fewer columns in common.
"""

import csv
import hashlib
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from bert import Layout, UserError
from bert.files import read_utf8


class Example(NamedTuple):
    """One row: its id, its one or two texts, its label (None where the file holds no labels)."""

    id: str
    texts: tuple
    label: float | None


def find_file(folder, file):
    """Where a task's file is. One with a folder of its own, as RTE/train.tsv, may also lie in a
    folder that is spelled otherwise (rte, SST2 for SST-2), or `folder` may be that folder itself."""
    folder, file = Path(folder), Path(file)

    def spelled(path):
        return path.name.lower().replace("-", "").replace("_", "")

    if (folder / file).exists() or file.parent == Path(".") or not folder.is_dir():
        return folder / file
    places = [folder.resolve(), *sorted(folder.iterdir())]
    return next((place / file.name for place in places
                 if spelled(place) == spelled(file.parent) and (place / file.name).exists()),
                folder / file)


def read_course_file(path, task, strict_rows=False):
    """The examples of one file of the course, as `task` (a row of the Task table) describes it."""
    return _examples(path, _rows(path), task, strict_rows, number="id")


def read_glue_file(path, task, strict_rows=False, columns=None):
    """The same of one file of GLUE: no quotes, labels that may be words, and an example's number is
    its `index` or `id`, or else its place. `columns` name those of a file without a header."""
    lines = [line.rstrip("\r").split("\t") for line in read_utf8(path).split("\n")]
    rows = [(number, row) for number, row in enumerate(lines, start=1) if any(row)]
    if columns and rows and "index" not in rows[0][1]:       # CoLA's test file has a header
        rows.insert(0, (0, columns))
    header = rows[0][1] if rows else ()
    if task.nullable_columns:                                        # as QQP's rows that were cut short
        rows = [(number, [*row, *[""] * (len(header) - len(row))]) for number, row in rows]
    number = next((name for name in ("index", "id") if name in header), None)
    test = task.label not in header                          # every row of it is to be answered
    return _examples(path, iter(rows), task, strict_rows, number, complete=test)


def _examples(path, rows, task, strict_rows, number, complete=False):
    """rows: (line number, cells), the header first. `number` is the column that tells examples
    apart; None: their place does. complete: a row with an empty text, where the task has some, is
    not left out."""
    header_line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path} is empty; it must start with a header line")
    names = [name.strip() for name in header]
    needed = (*[number] * (number is not None), *task.columns)
    absent = [name for name in needed if name not in names]
    if absent:
        raise UserError(f"{path} line {header_line} lacks the column {', '.join(absent)}; the "
                        f"header has {', '.join(filter(None, names))} (columns are separated by "
                        "tabs)")
    labeled = task.label in names
    examples, lines, left_out = [], {}, []
    for place, (line, row) in enumerate(rows):
        if len(row) != len(names):
            raise UserError(f"{path} line {line} has {len(row)} cells where the header has "
                            f"{len(names)}; mend the row (cells are separated by tabs)")
        cells = dict(zip(names, (" ".join(cell.split()) for cell in row)))
        lacking = [name for name in (*needed, *[task.label] * labeled) if not cells[name]]
        excused = not strict_rows and set(lacking) <= set(task.nullable_columns)
        if lacking and excused and not complete:
            left_out.append(line)
            continue
        if lacking and not excused:
            raise UserError(f"{path} line {line} has nothing under {', '.join(lacking)}; "
                            f"fill the cell or remove the row")
        name = str(place) if number is None else cells[number].lower()
        if name in lines:
            raise UserError(f"{path} line {line} has the id {name} of line {lines[name]}; "
                            f"ids must be unique, or predictions could not be told apart")
        lines[name] = line
        label = _label(cells[task.label], task, path, line) if labeled else None
        examples.append(Example(name, tuple(cells[column] for column in task.columns), label))
    if left_out:
        shown = ", ".join(map(str, left_out[:10])) + (", …" if len(left_out) > 10 else "")
        rows = f"{len(left_out)} row{'s' * (len(left_out) > 1)}"
        warnings.warn(f"{path}: left out {rows} with an empty {' or '.join(task.nullable_columns)} "
                      f"(line {shown}); --strict-rows makes this an error", stacklevel=2)
    if not examples:
        raise UserError(f"{path} holds a header and no rows that can be used; nothing can be "
                        f"learned or scored")
    return examples


def _rows(path):
    """(line number, cells) of every row; a quoted cell may go over several lines."""
    text = read_utf8(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    start = 1
    try:
        for row in reader:
            swallowed = next((cell for cell in row if "\n" in cell and "\t" in cell), None)
            if swallowed is not None:
                raise csv.Error("a quoted cell runs over tabs into the next lines")
            if row:                                          # blank lines are no rows
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path} line {start}: broken quote ({error}); a cell that begins with a "
                        f'quote must end with one, and hold any inner quote twice ("")') from error


def _label(text, task, path, line):
    if task.string_labels:
        if text not in task.label_names:
            raise UserError(f"{path} line {line}: {task.label} is {text!r}; it must be one of "
                            f"{', '.join(task.label_names)}")
        return float(task.label_names.index(text))
    try:
        label = float(text)
    except ValueError:
        label = math.nan
    if not 0 <= label <= task.max_label or not (task.is_regression or label == int(label)):
        kind = "number" if task.is_regression else "whole number"
        raise UserError(f"{path} line {line}: {task.label} is {text!r}; "
                        f"it must be a {kind} from 0 to {task.max_label}")
    return label


class Batch(NamedTuple):
    """Token ids and types [sequences, tokens], how they lie, which rows are [CLS], labels [B]. Of
    pairs encoded separately the first sentences come first, then the second ones: sequences =
    2B."""

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    layout: Layout
    cls_rows: Layout
    labels: torch.Tensor | None

    def with_adapters(self, adapters):
        """The same batch, which knows what adapter serves which sequence (Layout.served_by)."""
        return self._replace(layout=self.layout.with_adapters(adapters),
                             cls_rows=self.cls_rows.with_adapters(adapters))

    def to(self, device):
        """The same batch on `device`, copied from pinned memory without waiting."""
        if device.type == "cpu":
            return self
        return Batch(*(None if part is None else part.pin_memory().to(device, non_blocking=True)
                       for part in self))


@dataclass
class Split:
    """The examples of one file, tokenized once. `sides`: one (ids, types) a text encoded for
    itself, each with one list of tokens an example."""

    ids: list
    labels: torch.Tensor | None
    segments: list
    tokenizer: object

    def __len__(self):
        return len(self.ids)

    def batch(self, indices):
        ids = [ids[i] for ids, _ in self.segments for i in indices]
        types = [types[i] for _, types in self.segments for i in indices]
        tensors = self.tokenizer.pad(ids, types)
        layout = Layout(tensors["attention_mask"])
        labels = None if self.labels is None else self.labels[list(indices)]
        return Batch(tensors["input_ids"], tensors["token_type_ids"],
                     layout, layout.cls_rows(), labels)

    def by_length(self, tokens):
        """Lists of indices, all of them once, longest first, about `tokens` real tokens in each."""
        lengths = [sum(len(ids[i]) for ids, _ in self.segments) for i in range(len(self))]
        batches, room = [], 0
        for i in sorted(range(len(self)), key=lambda i: -lengths[i]):
            if room < lengths[i]:
                batches.append([])
                room = tokens
            batches[-1].append(i)
            room -= lengths[i]
        return batches


def tokenize(examples, tokenizer, pairs="joint"):
    """→ Split. pairs="joint": both texts of a pair in one sequence; "separate": each in its own."""
    texts = list(zip(*(example.texts for example in examples)))
    labels = None if examples[0].label is None else torch.tensor([e.label for e in examples])
    segments = ([tokenizer.encode(*texts)] if pairs == "joint"
             else [tokenizer.encode(side) for side in texts])
    return Split([example.id for example in examples], labels, segments, tokenizer)


def checksum(content):
    """The first 16 hex digits of the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]
