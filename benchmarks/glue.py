"""Pruning-Adapter on GLUE (Wang, Yang & Sun 2023): the whole encoder trained, LoRA, and LoRA after
the removal of 30 % of the heads.

    python benchmarks/glue.py                            # five tasks, seeds 0, 1 and 2
    python benchmarks/glue.py --tasks rte --seeds 0 --rows glue-lora,recovered

    glue-prune-lora     removes heads of the checkpoint, before any training, as in the paper
    recovered           removes heads of glue-full's run, then trains adapters for one epoch
    recovered-random    the same with random heads
    recovered-lora      the same as recovered, from glue-lora's run, merged first

At most 4,000 rows of each task are trained on. Learning rates are ours, by the encoder's width.
Complete runs are not repeated, and a stopped run goes on.
PLAINBERT_WEIGHTS and PLAINBERT_DATA (its glue/): see README.md.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from recipes import ROOT, train_run  # noqa: E402

from common.cli import Parser, run_script  # noqa: E402
from common.tables import markdown_table  # noqa: E402
from multitask.metrics import main_scores  # noqa: E402
from multitask.recipes import RECIPES  # noqa: E402
from multitask.report import mean_and_spread  # noqa: E402
from multitask.runs import read_fields, read_scores  # noqa: E402

BUDGET = "--limit 4000 --lr 0 --head-lr 1e-3 --warmup 0.1 --pooling cls --precision bf16"
EPOCHS = {"rte": 4, "wnli": 5}                               # of small tasks; others: 3
ROWS = ("glue-full", "glue-lora", "glue-prune-lora", "recovered", "recovered-random",
        "recovered-lora")


def train(name, task, seed, out):
    """Train one run, unless it is there → its folder."""
    folder, more = out / f"{name}-{task}-{seed}", f"--epochs {EPOCHS.get(task, 3)}"
    if name == "recovered":
        more = f"--epochs 1 --from {train('glue-full', task, seed, out)}"
    elif name == "recovered-random":
        pruned = edited(train("glue-full", task, seed, out), "random", "pruning", "prune",
                        "--heads", "0.6944", "--order", "random", "--seed", str(seed))
        more = f"--epochs 1 --from {pruned} --keep-heads="
    elif name == "recovered-lora":
        merged = edited(train("glue-lora", task, seed, out), "merged", "lora", "merge")
        more = f"--epochs 1 --from {merged}"
    train_run(folder, f"--recipe {recipe_of(name)} --tasks {task} --seed {seed} {BUDGET} {more}",
              "glue")
    return folder


def recipe_of(row):
    return row if row in RECIPES else "glue-prune-lora"


def edited(run, how, package, command, *flags):
    """Make a run of another by `python -m package command`, unless it is there → its folder."""
    folder = run.with_name(f"{run.name}-{how}").resolve()
    if not (folder / "metrics.json").is_file():
        subprocess.run([sys.executable, "-m", package, command, str(run.resolve()), *flags,
                        "--out", str(folder), "--overwrite"], check=True, cwd=ROOT)
    return folder


def row(name, tasks, seeds, out):
    """Cells of a table: scores by task, their mean without WNLI, weights trained, minutes."""
    folders = {task: [out / f"{name}-{task}-{seed}" for seed in seeds] for task in tasks}
    scores = {task: [main_scores(read_scores(folder))[task] for folder in of_task]
              for task, of_task in folders.items()}
    means = [sum(column) / len(column) for column in
             zip(*(values for task, values in scores.items() if task != "wnli"))]
    records = [read_fields(folder) for of_task in folders.values() for folder in of_task]
    minutes = sum(record["times"]["train_seconds"] for record in records) / 60 / len(seeds)
    published = RECIPES[recipe_of(name)].published
    return [f"`{name}`", *map(mean_and_spread, scores.values()), mean_and_spread(means),
            f"{records[0]['parameters']['trained']:,}", f"{minutes:.0f}",
            *(f"{published[task]:.3f}" for task in tasks)]


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--tasks", default="rte,mrpc,sst2,qnli,wnli")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/glue"))
    args = parser.parse_args()
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    tasks, seeds, names = (text.split(",") for text in (args.tasks, args.seeds, args.rows))
    for seed in seeds:
        for task in tasks:
            for name in names:
                train(name, task, seed, args.out)
    head = ["", *tasks, "mean without wnli", "weights trained", "minutes",
            *(f"published: {task}" for task in tasks)]
    print(markdown_table([head, *(row(name, tasks, seeds, args.out) for name in names)]))


if __name__ == "__main__":
    run_script(main)
