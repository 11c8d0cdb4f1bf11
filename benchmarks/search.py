"""The search behind the recipe `best`: candidates are compared on one half of the dev sets only.

    python benchmarks/search.py

Each candidate is trained on all of the course's training data with seed 0. Its dev predictions
are scored by halves: the checksum of an example's id decides its half. The first half chooses; the
second, printed beside it, shows what the choice is worth. Complete runs are not repeated, and a
stopped run goes on. PLAINBERT_WEIGHTS and PLAINBERT_DATA: see README.md.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from recipes import train_run  # noqa: E402

from bert.files import fingerprint  # noqa: E402
from common.cli import Parser, run_script  # noqa: E402
from multitask.course import read_course_file  # noqa: E402
from multitask.metrics import summary  # noqa: E402
from multitask.tasks import TASKS  # noqa: E402

BUDGET = "--precision bf16"
CANDIDATES = {
    "base": "--epochs 1",
    "layer-decay": "--epochs 1 --layer-decay 0.9",
}


def half(identity):
    """The half of the dev set, 0 or 1, that an example's id falls into."""
    return int(fingerprint(identity), 16) % 2


def scores_by_half(run, data):
    """→ [scores of the first half, of the second]"""
    scores = [{}, {}]
    for task in ("sst", "para", "sts"):
        file = run / "predictions" / f"{task}-dev-output.csv"
        lines = file.read_text(encoding="utf-8").splitlines()[1:]
        predicted = dict(line.split(" , ") for line in lines)
        row = TASKS[task]
        examples = read_course_file(data / row.files["dev"], row)
        for which in (0, 1):
            mine = [e for e in examples if half(e.id) == which]
            for name, metric in row.metrics.items():
                scores[which].setdefault(task, {})[name] = metric(
                    [float(predicted[e.id]) for e in mine], [e.label for e in mine])
    return [summary(s) for s in scores]


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=(*CANDIDATES, []), metavar="CANDIDATE",
                        help=f"some of {', '.join(CANDIDATES)} (default: all)")
    names = parser.parse_args().names or list(CANDIDATES)
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    found = {}
    for name in names:
        run = Path("runs/search") / name
        train_run(run, f"{CANDIDATES[name]} {BUDGET}")
        found[name] = scores_by_half(run, Path(os.environ["PLAINBERT_DATA"]) / "cs224n")
    print(f"{'candidate':12} {'first half: sst':>15} {'para':>6} {'sts':>6} {'overall':>8}   "
          f"{'second half: overall':>20}")
    for name, (first, second) in sorted(found.items(), key=lambda item: -item[1][0]["overall"]):
        tasks = [next(iter(first[task].values())) for task in ("sst", "para", "sts")]
        print(f"{name:12} {tasks[0]:15.3f} {tasks[1]:6.3f} {tasks[2]:6.3f} "
              f"{first['overall']:8.4f}   {second['overall']:20.4f}")


if __name__ == "__main__":
    run_script(main)
