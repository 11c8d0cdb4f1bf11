"""Train the recipes of Alappat and of Fuest & Tacke on the course's data, all with the same budget,
and compare them with what the papers printed.

    python benchmarks/recipes.py                         # all of them, seeds 0 and 1
    python benchmarks/recipes.py --recipes mb-comb,mb-comb-gs --seeds 0
    python benchmarks/recipes.py --recipes lora2 --flags "--lora 8" --out runs/lora2-r8

The papers trained bert-base for ten epochs; here every recipe has the same rows, steps, batch and
learning rates (by width: 1e-4 of MiniLM, 2e-3 of its adapters), so that only its method differs.
Complete runs are not repeated, and a stopped run goes on. PLAINBERT_WEIGHTS and PLAINBERT_DATA: see
README.md.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from multitask.recipes import RECIPES  # noqa: E402

BUDGET = ("--limit 6000 --epochs 1 --batch-size 16 --lr 0 --head-lr 1e-3 --warmup 0.1 --decay "
          "--clip 1 --weight-decay 0.01 --precision bf16")


def train_run(folder, flags, data="cs224n"):
    """One run, unless it is there: from its beginning, or from where it was stopped."""
    record = folder / "run.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["complete"]:
        return
    script = [sys.executable, str(ROOT / "train_multitask.py")]
    if record.is_file():
        command = [*script, "--resume", str(folder)]
    else:
        command = [*script, "--bert", os.environ["PLAINBERT_WEIGHTS"], "--data",
                   str(Path(os.environ["PLAINBERT_DATA"]) / data), "--out", str(folder),
                   *flags.split()]
    subprocess.run(command, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(
        name for name in RECIPES if name.startswith(("mb", "baseline"))))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--budget", default=BUDGET, help=f"flags of every run (default: {BUDGET})")
    parser.add_argument("--flags", default="", help="more flags, to vary a recipe: give another "
                                                    "--out too")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    args = parser.parse_args()
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    folders = []
    for seed in args.seeds.split(","):
        for recipe in args.recipes.split(","):
            folders.append(args.out / f"{recipe}-{seed}")
            train_run(folders[-1], f"--recipe {recipe} --seed {seed} {args.budget} {args.flags}")
    subprocess.run([sys.executable, str(ROOT / "evaluate.py"), "--compare", *map(str, folders),
                    "--out", str(args.out)], check=True)


if __name__ == "__main__":
    main()
