"""What runs cost and what they reach, side by side, and beside Wang, Yang & Sun's Tables 1 to 4."""

import time
from argparse import Namespace
from pathlib import Path

import torch

from common.cli import RUN_FLAGS
from common.device import peak_memory
from common.tables import rows_table, write_csv
from multitask import methods
from multitask.evaluation import run_split
from multitask.recipes import RECIPES
from multitask.runs import read_scores
from multitask.session import RunSession
from pruning.cost import matrix_cost, multiply_adds

STEP_TIME, PEAK = "time a step, the first = 1", "peak bytes, inference"
SIZES = {          # arXiv 2303.14704, bert-base-uncased: Tables 2 to 4; Table 1 is in RECIPES
    "glue-full": {"parameters": 109_480_000, PEAK: 418_700_000, STEP_TIME: 49 / 49},
    "glue-lora": {"parameters": 109_700_000, "trained": 259_600, PEAK: 419_600_000,
                  STEP_TIME: 36 / 49},
    "glue-prune-lora": {"parameters": 101_290_000, "trained": 308_700, PEAK: 392_400_000,
                        STEP_TIME: 32 / 49}}
PAPER = {f"paper {RECIPES[name].row}": sizes | {
    f"{task} accuracy": score for task, score in RECIPES[name].published.items()}
    for name, sizes in SIZES.items()}


def add_flags(parser):
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of saved runs")
    parser.add_argument("--csv", metavar="FILE", help="write the table there too")
    parser.add_argument("--device", **RUN_FLAGS["--device"])


def report(args):
    """Compare runs: scores, parameters, bytes, memory, speed and multiply-adds an example. Beside
    runs on GLUE stand the numbers of Wang, Yang & Sun."""
    names = [Path(folder).resolve().name for folder in args.runs]
    titles = names if len(set(names)) == len(names) else args.runs
    columns = {title: measure_run(folder, args.device) for title, folder in zip(titles, args.runs)}
    trained = [found for found in columns.values() if found[STEP_TIME]]
    for found in reversed(trained):                          # the first, by itself, last
        found[STEP_TIME] /= trained[0][STEP_TIME]
    measures = dict.fromkeys(what for found in columns.values() for what in found)
    on_glue = any(f"{task} accuracy" in measures for task in RECIPES["glue-full"].published)
    columns |= PAPER if on_glue else {}
    rows = [{"measure": what} | {title: found.get(what) for title, found in columns.items()}
            for what in measures]
    print(rows_table(rows))
    if on_glue:
        print("\nThe paper's MRPC .6838 and WNLI .5634 are the shares of the larger class.")
    if args.csv:
        write_csv(args.csv, rows)


def measure_run(folder, device):
    """→ {measure: number, None where it is unknown} of one run; speed is measured on its dev sets.
    Training seconds include the evaluations; STEP_TIME is in seconds."""
    session = RunSession(Namespace(run=folder, device=device))
    record, model, folder = session.record, session.model, session.run
    steps, seconds = map(record["times"].get, ("steps", "train_seconds"))
    files = {*folder.glob("model/**/*.safetensors"), folder / "heads.safetensors",
             *methods.weight_files(record["edits"], folder)}
    found = {f"{task} {metric}": value for task, metrics in read_scores(folder).items()
             if isinstance(metrics, dict) for metric, value in metrics.items()}
    found |= {"parameters": sum(p.numel() for p in model.encoders.parameters()),
              "trained": record["parameters"]["trained"],
              "file bytes": sum(file.stat().st_size for file in files),
              "peak bytes, training": record.get("peak_bytes"),
              "training seconds": seconds,
              STEP_TIME: seconds / steps if seconds and steps else None}
    on_gpu = session.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(session.device)
    examples, seconds, work = 0, 0.0, 0
    for task, split in session.first_splits.items():
        run_split(model, task, split, session.device, session.autocast)      # slower: the first
        began = time.perf_counter()
        run_split(model, task, split, session.device, session.autocast)
        seconds += time.perf_counter() - began
        examples += len(split)
        work += split_cost(model, task, split)
    return found | {PEAK: peak_memory(session.device) if on_gpu else None,
                    "examples/s": examples / seconds, "multiply-adds": round(work / examples)}


def split_cost(model, task, split):
    """Multiply-adds of the encoder for all examples of a Split."""
    bert = model.encoder(task)
    rows = None if model.poolings[task].all_rows else torch.ones(len(split), dtype=torch.long)
    pooler = matrix_cost(bert.pooler) if model.pooling_name == "pooler" else 0
    return sum(multiply_adds(bert, [len(ids) for ids in token_ids], rows, model.adapters.get(task))
               + len(split) * pooler for token_ids, _ in split.segments)
