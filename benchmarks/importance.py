"""Is importance worth measuring? Accuracy after 10, 30, 50 and 70 % of the heads are removed: the
least important ones, random ones (five draws), or the most important ones; no training after it.

    python benchmarks/importance.py                      # four tasks of GLUE, seeds 0, 1 and 2
    python benchmarks/importance.py --tasks rte --seeds 0

It trains benchmarks/glue.py's run of the recipe glue-full for each task and seed, then prunes it in
every way. What is done already is not repeated, and a stopped run goes on. The results of each run,
and a picture, lie in --out. PLAINBERT_WEIGHTS and PLAINBERT_DATA: see README.md.
"""

import copy
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from glue import train  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bert.files import write_json  # noqa: E402
from common.cli import Parser, run_script  # noqa: E402
from common.plots import COLORS, STYLES, new_figure, save_figure  # noqa: E402
from common.tables import markdown_table  # noqa: E402
from multitask import runs  # noqa: E402
from multitask.evaluation import load_split, run_split  # noqa: E402
from multitask.tasks import TASKS  # noqa: E402
from pruning import choose, normalize, remove_heads  # noqa: E402
from pruning.measure import measure, training_sample  # noqa: E402

ORDERS = {"importance": 1, "importance, norm by layer": 1,   # how many draws
          "random": 5, "inverse": 1}
FRACTIONS = (0.1, 0.3, 0.5, 0.7)
CPU = torch.device("cpu")


def sweep(task, seed, folder, examples):
    """Yield {"task", "order", "removed", "score", …} for every way to prune one run."""
    model, tokenizer, settings, _ = runs.open_run(folder)
    dev = load_split(task, TASKS[task].dev_sets[0], settings.data, tokenizer, settings)
    sample = training_sample(tokenizer, settings, [task], examples)
    raw = measure(model, sample, settings, CPU)[task]
    metric = next(iter(TASKS[task].metrics.values()))
    whole = model.bert

    def line(order, draw, removed):
        outputs = run_split(model, task, dev, CPU, nullcontext)
        return {"task": task, "seed": seed, "order": order, "draw": draw, "removed": removed,
                "score": metric(TASKS[task].predict(outputs).tolist(), dev.labels.tolist())}

    yield line("none", 0, 0.0)
    for removed in FRACTIONS:
        keep = round((1 - removed) * raw.numel())
        for order, draws in ORDERS.items():
            scores = normalize(raw, "layer" if "layer" in order else "global")
            for draw in range(draws):
                bert = copy.deepcopy(whole)
                remove_heads(bert, choose(scores, keep, order.split(",")[0], seed=draw))
                model.encoders["shared"] = bert
                yield line(order, draw, removed)


def average(lines, tasks, order, removed):
    """The mean over draws, seeds and tasks, each task with the same weight."""
    wanted = [[line["score"] for line in lines if line["task"] == task
               and line["removed"] == removed and line["order"] in (order, "none")]
              for task in tasks]
    return mean(mean(scores) for scores in wanted)


def draw(lines, tasks, path):
    """Draw the scores over the share of heads removed, for each task and for their mean."""
    figure = new_figure(2.6 * (len(tasks) + 1), 3)
    panels = [*([task] for task in tasks), tasks]
    for axes, shown in zip(figure.subplots(1, len(panels)), panels):
        axes.set_prop_cycle(color=COLORS, linestyle=STYLES)
        for order in ORDERS:
            points = [average(lines, shown, order, removed) for removed in (0.0, *FRACTIONS)]
            axes.plot([0, *(100 * f for f in FRACTIONS)], points, marker="o", label=order)
        axes.set(title=shown[0] if len(shown) == 1 else "mean", xlabel="% of heads removed")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), title="kept by", ncols=len(ORDERS),
                  loc="outside lower center")
    save_figure(figure, path, dpi=100)


def table(lines, tasks):
    """A table in Markdown: for each order the mean over tasks, seeds and draws."""
    head = ["kept by", "0 %", *(f"{f:.0%}" for f in FRACTIONS)]
    rows = [[order, *(f"{average(lines, tasks, order, f):.3f}" for f in (0.0, *FRACTIONS))]
            for order in ORDERS]
    return markdown_table([head, *rows])


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--tasks", default="rte,mrpc,sst2,qnli")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--examples", type=int, default=1000, help="to measure importance on")
    parser.add_argument("--out", type=Path, default=Path("runs/glue"))
    args = parser.parse_args()
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    tasks, lines = args.tasks.split(","), []
    for seed in map(int, args.seeds.split(",")):
        for task in tasks:
            folder = train("glue-full", task, seed, args.out)
            results = args.out / f"importance-{task}-{seed}.json"
            if not results.is_file():
                ways = 1 + len(FRACTIONS) * sum(ORDERS.values())
                found = sweep(task, seed, folder, args.examples)
                write_json(results, list(tqdm(found, folder.name, ways)))
            lines += json.loads(results.read_text(encoding="utf-8"))
    draw(lines, tasks, args.out / "importance.png")
    print(f"mean over {', '.join(tasks)}, seeds {args.seeds}\n\n{table(lines, tasks)}\n"
          f"picture: {args.out / 'importance.png'}")


if __name__ == "__main__":
    run_script(main)
