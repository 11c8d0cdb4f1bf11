"""What runs cost and what they reach, side by side, and beside paper B's Tables 1 to 4."""

import csv
import io
import json
import time
from pathlib import Path

from bert.cli import pick_device
from bert.files import writing
from multitask import runs
from multitask.evaluation import load_split, run_split
from multitask.tasks import TASKS
from pruning.cost import multiply_adds

PAPER = {                              # arXiv 2303.14704, bert-base-uncased; dev accuracy
    "paper: full": {"mnli accuracy": .8456, "mrpc accuracy": .8014, "qnli accuracy": .9154,
                    "rte accuracy": .6245, "sst2 accuracy": .9243, "wnli accuracy": .4085,
                    "parameters": 109.48e6, "peak bytes": 418.7e6, "training, relative": 49},
    "paper: LoRA": {"mnli accuracy": .7724, "mrpc accuracy": .6838, "qnli accuracy": .8805,
                    "rte accuracy": .6065, "sst2 accuracy": .9163, "wnli accuracy": .4366,
                    "parameters": 109.7e6, "trained": 259.6e3, "peak bytes": 419.6e6,
                    "training, relative": 36},
    "paper: prune, LoRA": {"mnli accuracy": .7816, "mrpc accuracy": .6838, "qnli accuracy": .8728,
                           "rte accuracy": .5993, "sst2 accuracy": .9106, "wnli accuracy": .5634,
                           "parameters": 101.29e6, "trained": 308.7e3, "peak bytes": 392.4e6,
                           "training, relative": 32},
}


def measure_run(folder, device_name="auto"):
    """→ {what: number} of one run; its dev sets are run for speed."""
    model, tokenizer, settings, record = runs.open_run(folder)
    device, autocast = pick_device(device_name, settings.precision)
    model.to(device)
    scores = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    found = {f"{task} {metric}": value for task, metrics in scores.items()
             if isinstance(metrics, dict) for metric, value in metrics.items()}
    found |= {"parameters": sum(p.numel() for p in model.encoders.parameters()),
              "trained": record.get("parameters", {}).get("trained"),
              "file bytes": sum(f.stat().st_size for f in Path(folder).rglob("*.safetensors")),
              "peak bytes": record.get("peak_bytes"),
              "training seconds": record["times"].get("train_seconds")}
    examples, seconds, work = 0, 0.0, 0
    for task in model.heads:
        split = load_split(task, TASKS[task].dev_sets[0], settings.data, tokenizer, settings,
                           settings.limit)
        run_split(model, task, split, device, autocast)      # the first time is slower
        began = time.perf_counter()
        run_split(model, task, split, device, autocast)      # its outputs are on the CPU: all done
        seconds += time.perf_counter() - began
        examples += len(split)
        work += sum(multiply_adds(model.encoder(task), [len(ids) for ids in side], settings.read)
                    for side, _ in split.sides)
    return found | {"examples/s": examples / seconds, "multiply-adds": work / examples}


def report(args):
    """Scores, parameters, bytes, memory, speed and multiply-adds of runs; with GLUE's tasks the
    paper's Pruning-Adapter rows stand beside them."""
    columns = {str(folder): measure_run(folder, args.device) for folder in args.runs}
    ours = {what: None for found in columns.values() for what in found}
    if any(set(found) & set(ours) - {"parameters", "trained", "peak bytes"}
           for found in PAPER.values()):
        columns |= PAPER
        ours["training, relative"] = None
    print(table(list(ours), columns))
    if "paper: full" in columns:
        print("\nThe paper's MRPC .6838 and WNLI .5634 are the shares of the larger class.")
    if args.csv:
        write_csv(args.csv, list(ours), columns)


def shown(value):
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:,.0f}" if value > 100 else f"{value:.1f}"


def table(rows, columns):
    """Lines of text: a row for each measure, a column for each run."""
    cells = [["", *columns]] + [[row, *(shown(found.get(row)) for found in columns.values())]
                                for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(f"{cell:<{width}}" if n == 0 else f"{cell:>{width}}"
                               for n, (cell, width) in enumerate(zip(line, widths)))
                     for line in cells)


def write_csv(path, rows, columns):
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["measure", *columns])
    lines.writerows([row, *(found.get(row, "") for found in columns.values())] for row in rows)
    with writing(path) as file:
        file.write(text.getvalue().encode())
