"""What runs cost and what they reach, side by side, and beside Wang et al.'s Tables 1 to 4."""

import csv
import io
import json
import time
from pathlib import Path

import torch

from bert.files import atomic_write
from common.device import peak_memory, pick_device
from multitask import methods, runs
from multitask.evaluation import load_split, run_split
from multitask.recipes import RECIPES
from multitask.tasks import TASKS
from pruning.cost import multiply_adds

STEP_TIME, PEAK = "time a step, the first = 1", "peak bytes, inference"
SIZES = {           # arXiv 2303.14704, bert-base-uncased: Tables 2 to 4; Table 1 is in the recipes
    "glue-full": {"parameters": 109.48e6, PEAK: 418.7e6, STEP_TIME: 49 / 49},
    "glue-lora": {"parameters": 109.7e6, "trained": 259.6e3, PEAK: 419.6e6, STEP_TIME: 36 / 49},
    "glue-prune-lora": {"parameters": 101.29e6, "trained": 308.7e3, PEAK: 392.4e6,
                        STEP_TIME: 32 / 49},
}
PAPER = {f"paper {RECIPES[name].row}": sizes | {f"{task} accuracy": value for task, value in
                                                RECIPES[name].published.items()}
         for name, sizes in SIZES.items()}


def measure_run(folder, device_name="auto"):
    """→ {what: number} of one run; its dev sets are run for speed. Training's time includes the
    evaluations; memory at inference is known on a GPU only."""
    folder = Path(folder)
    model, tokenizer, settings, record = runs.open_run(folder)
    device, autocast = pick_device(device_name, settings.precision)
    model.to(device)
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    found = {f"{task} {metric}": value for task, metrics in scores.items()
             if isinstance(metrics, dict) for metric, value in metrics.items()}
    found |= {"parameters": sum(p.numel() for p in model.encoders.parameters()),
              "trained": record.get("parameters", {}).get("trained"),
              "file bytes": sum(file.stat().st_size for file in (
                  *folder.glob("model/**/*.safetensors"), *methods.weight_files(record["edits"], folder),
                  folder / "heads.safetensors")),
              "peak bytes, training": record.get("peak_bytes"),
              "training seconds": record["times"].get("train_seconds")}
    if found["training seconds"] and "steps" in record["times"]:         # not only edited
        found[STEP_TIME] = found["training seconds"] / record["times"]["steps"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    examples, seconds, work = 0, 0.0, 0
    for task in model.heads:
        split = load_split(task, TASKS[task].dev_sets[0], settings.data, tokenizer, settings,
                           settings.limit)
        run_split(model, task, split, device, autocast)      # the first time is slower
        began = time.perf_counter()
        run_split(model, task, split, device, autocast)      # its outputs are on the CPU: all done
        seconds += time.perf_counter() - began
        examples += len(split)
        work += sum(multiply_adds(model.encoder(task), [len(ids) for ids in side], settings.pooling,
                                  model.adapters.get(task)) for side, _ in split.segments)
    return found | {PEAK: peak_memory(device) if device.type == "cuda" else None,
                    "examples/s": examples / seconds, "multiply-adds": work / examples}


def report(args):
    """Scores, parameters, bytes, memory, speed and multiply-adds of runs; with GLUE's tasks the
    paper's Pruning-Adapter rows stand beside them."""
    names = [Path(folder).resolve().name for folder in args.runs]
    titles = names if len(set(names)) == len(names) else args.runs
    columns = {title: measure_run(folder, args.device) for title, folder in zip(titles, args.runs)}
    first = next((found[STEP_TIME] for found in columns.values() if STEP_TIME in found), None)
    for found in columns.values():
        if STEP_TIME in found:
            found[STEP_TIME] /= first
    ours = dict.fromkeys(what for found in columns.values() for what in found)
    on_glue = any(f"{task} accuracy" in ours for task in RECIPES["glue-full"].published)
    columns |= PAPER if on_glue else {}
    print(table(list(ours), columns))
    if on_glue:
        print("\nThe paper's MRPC .6838 and WNLI .5634 are the shares of the larger class.")
    if args.csv:
        write_csv(args.csv, list(ours), columns)


def shown(value):
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
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
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
