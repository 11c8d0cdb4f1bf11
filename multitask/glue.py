"""The nine tasks of GLUE (Wang et al. 2018, arXiv 1804.07461) as rows of the Task table, from the
benchmark's own files, as path/to/glue/RTE/train.tsv of --data path/to/glue.

The files are tab-separated without any quoting, and each has columns of its own; CoLA's have no
header. Predictions for test files are written as the benchmark takes them in: `index`, a tab,
`prediction`, in words where the labels are words; those for dev files in the same form.

Left out: the diagnostic set AX, and scores for test files, whose labels are not public."""

from functools import partial

from bert.files import read_utf8
from multitask.course import parse_examples
from multitask.metrics import accuracy, f1, matthews, pearson, spearman
from multitask.tasks import SIMILARITY, Task


def read_glue_file(path, task, strict_rows=False, columns=None):
    """The examples of one file of GLUE. An example's id is its `index` or `id`, or else its number
    in the file. `columns` names the columns of a file without a header."""
    lines = [line.rstrip("\r").split("\t") for line in read_utf8(path).split("\n")]
    rows = [(number, row) for number, row in enumerate(lines, start=1) if any(row)]
    header = [name.strip() for name in rows[0][1]] if rows else ()
    if columns and rows and "index" not in header:           # CoLA's test file has a header
        rows.insert(0, (0, columns))
        header = columns
    if task.nullable_columns:                                # as QQP's rows that were cut short
        rows = [(number, [*row, *[""] * (len(header) - len(row))]) for number, row in rows]
    number = next((name for name in ("index", "id") if name in header), None)
    test = task.label not in header                          # every row of it is to be answered
    return parse_examples(path, iter(rows), task, strict_rows, number, complete=test)


def write(row, task, split, ids, predicted, name):
    """→ name and text of a prediction file: RTE.tsv, or of a dev set dev-RTE.tsv."""
    kind, _, which = split.partition("_")
    if row.is_regression:
        answers = [min(max(p, 0), row.max_label) for p in predicted]     # scores of 0 to 5
    else:
        answers = [row.label_names[int(p)] if row.string_labels else int(p) for p in predicted]
    lines = ["index\tprediction\n"] + [f"{i}\t{answer}\n" for i, answer in zip(ids, answers)]
    suffix = {"matched": "-m", "mismatched": "-mm", "": ""}[which]
    return f"{'' if kind == 'test' else kind + '-'}{name}{suffix}.tsv", "".join(lines)


def row(name, columns, label, label_names, dev_sets=("dev",), **more):
    """A task of classes, unless `more` says otherwise."""
    test_sets = tuple(split.replace("dev", "test") for split in dev_sets)
    usual = {"outputs": len(label_names), "read_examples": read_glue_file}
    return Task(
        files={split: f"{name}/{split}.tsv" for split in ("train", *dev_sets, *test_sets)},
        columns=columns, label=label, label_names=label_names, dev_sets=dev_sets,
        test_sets=test_sets, write=partial(write, name=name), **usual | more)


SENTENCES = ("sentence1", "sentence2")
ENTAILED = ("entailment", "not_entailment")
WITH_F1 = {"accuracy": accuracy, "f1": f1}

GLUE = {
    "mnli": row("MNLI", SENTENCES, "gold_label", ("contradiction", "entailment", "neutral"),
                string_labels=True, dev_sets=("dev_matched", "dev_mismatched")),
    "mrpc": row("MRPC", ("#1 String", "#2 String"), "Quality", ("not equivalent", "equivalent"),
                metrics=WITH_F1),
    "qnli": row("QNLI", ("question", "sentence"), "label", ENTAILED, string_labels=True),
    "rte": row("RTE", SENTENCES, "label", ENTAILED, string_labels=True),
    "sst2": row("SST-2", ("sentence",), "label", ("negative", "positive")),
    "wnli": row("WNLI", SENTENCES, "label", ("does not follow", "follows")),
    "qqp": row("QQP", ("question1", "question2"), "is_duplicate",
               ("not a duplicate", "a duplicate"), metrics=WITH_F1,
               nullable_columns=("question1", "question2", "is_duplicate")),
    "stsb": row("STS-B", SENTENCES, "score", **SIMILARITY,
                metrics={"pearson": pearson, "spearman": spearman}),
    "cola": row("CoLA", ("sentence",), "label", ("unacceptable", "acceptable"),
                metrics={"matthews": matthews, "accuracy": accuracy},
                read_examples=partial(read_glue_file,
                                      columns=("source", "label", "star", "sentence"))),
}
