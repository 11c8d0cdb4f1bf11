"""Check a run's prediction files and pack them with the code, for the course's leaderboard.

The zip holds predictions/{sst,para,sts}-{dev,test}-output.csv and the .py files of the scripts and
packages. Equal files give equal bytes.
"""

import math
import zipfile
from pathlib import Path

from bert.errors import UserError
from bert.files import atomic_write, read_utf8
from common.tables import text_table
from multitask.evaluation import read_split
from multitask.metrics import COURSE
from multitask.runs import RESUME, read_settings
from multitask.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
DATE = (1980, 1, 1, 0, 0, 0)                                 # of every file in the zip


def problem_of(task, split, text, examples):
    """→ "", or what is wrong with the text of a prediction file for these examples."""
    row, lines = TASKS[task], text.split("\n")
    predicted = [line.rpartition(",")[2].strip() for line in lines[1:-1]]
    if len(predicted) != len(examples):
        return f"it has {len(predicted):,} rows, the data has {len(examples):,}"
    _, right = row.write(row, task, split, [example.id for example in examples], predicted)
    for number, (line, expected) in enumerate(zip(lines, right.split("\n")), 1):
        if line != expected:
            return f"line {number} is {line[:80]!r} instead of {expected!r}"
    for number, prediction in enumerate(predicted, 2):
        if not is_prediction(row, prediction):
            must = "a number" if row.is_regression else f"0 to {row.max_label}"
            return f"line {number} has the prediction {prediction[:40]!r}; it must be {must}"
    return ""


def is_prediction(row, text):
    """Whether a text is a class of the task, or a finite number if it is a regression."""
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) if row.is_regression else value in range(row.max_label + 1)


def check_file(path, task, split, settings):
    """→ cells of the table (rows, verdict), and "" or the problem of one prediction file."""
    if not path.is_file():
        return ["–", "missing"], "it does not exist"
    text, examples = read_utf8(path), read_split(task, split, settings.data, settings.strict_rows)
    problem, rows = problem_of(task, split, text, examples), f"{max(text.count(chr(10)) - 1, 0):,}"
    if problem or split == "test":
        return [rows, "wrong" if problem else "ok"], problem
    metric, function = next(iter(TASKS[task].metrics.items()))
    predicted = [float(line.rpartition(",")[2]) for line in text.splitlines()[1:]]
    score = function(predicted, [example.label for example in examples])
    return [rows, f"ok, {metric} {score:.3f}"], ""


def code_files():
    """→ the scripts beside the packages, and all Python files of the packages."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    return [*ROOT.glob("*.py"), *(file for folder in packages for file in folder.rglob("*.py"))]


def pack(files, out):
    """Write {name in the zip: path} to the zip file `out`: equal files give equal bytes."""
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as packed:
        for name, path in sorted(files.items()):
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, path.read_bytes())


def submit(args):
    """Check the prediction files of a run, dev and test of sst, para and sts: the header, every id
    of the data once and in its order, predictions in range. Then pack them and the code:

        python evaluate.py RUN --split test      # writes the test predictions
        python -m course submit RUN              # → submission.zip
    """
    record, settings, _ = read_settings(args.run)
    if not record["complete"]:
        raise UserError(f"{args.run} is not complete; {RESUME} {args.run} goes on with it")
    missing = [task for task in COURSE if task not in settings.task_names]
    if missing and not args.predictions:
        raise UserError(f"{args.run} does not have the task {', '.join(missing)}; the course wants "
                        f"{', '.join(COURSE)}: gather files of several runs in one folder and name "
                        f"it by --predictions")
    folder = Path(args.predictions or Path(args.run, "predictions"))
    rows, problems, files = [], [], {}
    for task in COURSE:
        for split in ("dev", "test"):
            path = folder / f"{task}-{split}-output.csv"
            cells, problem = check_file(path, task, split, settings)
            rows.append([path.name, *cells])
            files[f"predictions/{path.name}"] = path
            if problem:
                to = f" --predictions {folder}" if args.predictions else ""
                problems.append(f"{path}: {problem}; to write it: python evaluate.py {args.run} "
                                f"--split {split} --limit 0{to}")
    print(text_table([["file", "rows", "verdict"], *rows]))
    if problems:
        raise UserError(problems[0] + f" ({len(problems)} files are to mend)" * (len(problems) > 1))
    code = {path.relative_to(ROOT).as_posix(): path for path in code_files()}
    pack(files | code, args.out)
    print(f"\n{args.out}: {len(files)} prediction files and {len(code)} Python files, "
          f"{Path(args.out).stat().st_size:,} bytes")


def add_submit_flags(parser):
    parser.add_argument("run", metavar="RUN", help="folder of a saved run")
    parser.add_argument("--predictions", metavar="FOLDER", help="default: RUN/predictions")
    parser.add_argument("--out", metavar="FILE", default="submission.zip", help="default: "
                        "submission.zip")
