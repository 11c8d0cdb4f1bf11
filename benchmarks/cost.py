"""Processor time and memory of each recipe on one CPU core, from its first steps.

    python benchmarks/cost.py                            # every recipe, with PLAINBERT_WEIGHTS
    python benchmarks/cost.py --recipes best --flags "--batch-size 16 --accumulate 2"
    python benchmarks/cost.py --recipes best,lora-best --base --steps 6

Each recipe starts as it would with all of its data, in a process of its own, and is stopped after
--steps steps; then the first ROWS rows of each dev set are evaluated, and model and state are
saved. Time is the processor's (user and system). Other programs on the machine slow it down by its
caches, memory and hyper-threads: so a matrix product is timed beside every step, and all times are
divided by how much slower it is than at its fastest. `minutes` is an estimate: start + steps · mean
step + epochs · evaluation of the whole dev sets. Memory is the most that the process has held.
--base takes a random encoder of bert-base's shape. The precision is train_multitask.py's default,
--precision auto; --flags "--precision fp32" takes another.
PLAINBERT_WEIGHTS and PLAINBERT_DATA: see README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import train_multitask  # noqa: E402
from bert import Bert, BertConfig, Tokenizer  # noqa: E402
from common.device import peak_memory  # noqa: E402
from common.log import progress_bar  # noqa: E402
from common.tables import markdown_table  # noqa: E402
from multitask.preparation import prepare  # noqa: E402
from multitask.recipes import RECIPES  # noqa: E402

ROWS, WARM = 200, 2                                          # WARM steps are not in the mean


class Enough(Exception):
    """The steps to measure are done."""


def first_rows(split):
    return replace(split, ids=split.ids[:ROWS], labels=split.labels[:ROWS],
                   segments=[(ids[:ROWS], types[:ROWS]) for ids, types in split.segments])


def product():
    """→ processor seconds of a fixed matrix product"""
    matrix = torch.ones(1024, 1024)
    began = time.process_time()
    matrix @ matrix
    return time.process_time() - began


def measure(flags, steps):
    """Train, evaluate and save for a moment → {"steps", "step" and "minutes" (as they were on a
    busy machine), "product" (mean seconds), "memory"}"""
    given = train_multitask.parse(flags)
    recipe = [given.pop(name) for name in ("resume", "recipe", "recipes")][1]
    settings, runs = train_multitask.new_settings(given, recipe), []
    ends, starts, products = [], [], []                      # of steps

    def prepare_and_count(*arguments):
        run = prepare(*arguments)
        set_learning_rates = run.schedule.set_learning_rates

        def count(*values):
            ends.append(time.process_time())
            products.extend(product() for _ in range(3))
            starts.append(time.process_time())
            if len(ends) > steps:
                raise Enough
            set_learning_rates(*values)

        run.schedule.set_learning_rates = count
        runs.append(run)
        return run

    train_multitask.prepare = prepare_and_count
    with tempfile.TemporaryDirectory() as folder:
        try:
            train_multitask.train(settings, Path(folder) / "run", recipe)
        except Enough:
            run, whole = runs[0], sum(len(split) for named in runs[0].dev.values()
                                      for split in named.values())
            print(f"{recipe}: {steps} steps measured", file=sys.stderr)
        run.dev = {task: {name: first_rows(split) for name, split in named.items()}
                   for task, named in run.dev.items()}
        part = sum(len(split) for named in run.dev.values() for split in named.values())
        with progress_bar("evaluate", 1, "time", silent=True) as bar:
            began = time.process_time()
            train_multitask.evaluate_and_keep_best(run, bar)
            evaluation = (time.process_time() - began) * whole / part
        train_multitask.save_progress(run)
    step = mean(end - start for start, end in zip(starts[WARM:], ends[WARM + 1:]))
    schedule = run.schedule
    total = ends[0] + schedule.steps * step + schedule.epochs * evaluation
    return {"steps": schedule.steps, "step": step, "minutes": total / 60,
            "product": mean(products), "memory": peak_memory(run.device)}


def make_base(folder):
    """Write a random encoder of bert-base's shape, with the tokenizer of PLAINBERT_WEIGHTS."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained(os.environ["PLAINBERT_WEIGHTS"])
    Bert(BertConfig(vocab_size=tokenizer.vocab_size, hidden_size=768, num_hidden_layers=12,
                    num_attention_heads=12, intermediate_size=3072)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def row_of(recipe, weights, flags, steps, fastest):
    """→ cells of the table, measured in a process of its own with one thread. fastest: seconds of
    the matrix product on an idle core."""
    data = Path(os.environ["PLAINBERT_DATA"], "glue" if recipe.startswith("glue") else "cs224n")
    command = [sys.executable, __file__, "--steps", str(steps), "--measure", json.dumps(
        ["--recipe", recipe, "--bert", str(weights), "--data", str(data), "--device", "cpu",
         *flags.split()])]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
                          stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    slower = found["product"] / fastest
    return [f"`{recipe}`" + f" `{flags}`" * bool(flags), f"{found['steps']:,}",
            f"{found['step'] / slower:.2f}", f"{found['minutes'] / slower:,.0f}",
            f"{found['memory'] / 2 ** 30:.2f}", f"{slower:.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--flags", default="", help="more flags, to vary the recipes")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--base", action="store_true", help="a random encoder, bert-base's shape")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print("\n" + json.dumps(measure(json.loads(args.measure), args.steps)))
    with tempfile.TemporaryDirectory() as folder:
        if args.base:
            make_base(folder)
        torch.set_num_threads(1)
        fastest = min(product() for _ in range(200))
        weights = folder if args.base else os.environ["PLAINBERT_WEIGHTS"]
        print(markdown_table([["recipe", "steps", "seconds a step", "minutes (estimate)",
                               "memory (GiB)", "times were divided by"]]), end="")
        for name in args.recipes.split(","):
            cells = row_of(name, weights, args.flags, args.steps, fastest)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
