"""Compare the costs and scores of runs in one table."""

import time
from argparse import Namespace
from pathlib import Path

import torch

from common.cli import RUN_FLAGS
from common.tables import text_table, write_csv
from multitask import methods
from multitask.evaluation import run_split
from multitask.runs import read_scores
from multitask.session import RunSession
from pruning.cost import matrix_cost, multiply_adds


def add_flags(parser):
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of saved runs")
    parser.add_argument("--csv", metavar="FILE", help="also write the table to this file")
    parser.add_argument("--device", **RUN_FLAGS["--device"])


def report(args):
    """Compare runs: scores, parameters, bytes, speed and multiply-adds an example."""
    names = [Path(folder).resolve().name for folder in args.runs]
    titles = names if len(set(names)) == len(names) else args.runs
    columns = {title: measure_run(folder, args.device) for title, folder in zip(titles, args.runs)}
    rows = [{"measure": what} | {title: found.get(what) for title, found in columns.items()}
            for what in dict.fromkeys(what for found in columns.values() for what in found)]
    print(text_table([["", *columns], *([*map(shown, row.values())] for row in rows)]))
    if args.csv:
        write_csv(args.csv, rows)


def measure_run(folder, device):
    """→ {measure: number} of one run; speed is measured on its dev sets."""
    session = RunSession(Namespace(run=folder, device=device))
    record, model, folder = session.record, session.model, session.run
    files = [*folder.glob("model/**/*.safetensors"), folder / "heads.safetensors",
             *methods.weight_files(record["edits"], folder)]
    found = {f"{task} {metric}": value for task, metrics in read_scores(folder).items()
             if isinstance(metrics, dict) for metric, value in metrics.items()}
    found |= {"parameters": sum(p.numel() for p in model.encoders.parameters()),
              "trained": record["parameters"]["trained"],
              "file bytes": sum(file.stat().st_size for file in files),
              "training seconds": record["times"].get("train_seconds")}
    examples, seconds, work = 0, 0.0, 0
    for task, split in session.first_splits.items():
        run_split(model, task, split, session.device, session.autocast)      # warm-up, not timed
        began = time.perf_counter()
        run_split(model, task, split, session.device, session.autocast)
        seconds += time.perf_counter() - began
        examples += len(split)
        work += split_cost(model, task, split)
    return found | {"examples/s": examples / seconds, "multiply-adds": round(work / examples)}


def split_cost(model, task, split):
    """Multiply-adds of the encoder for all examples of a Split."""
    bert = model.encoder(task)
    rows = None if model.poolings[task].all_rows else torch.ones(len(split), dtype=torch.long)
    pooler = matrix_cost(bert.pooler) if model.pooling_name == "pooler" else 0
    return sum(multiply_adds(bert, [len(ids) for ids in token_ids], rows, model.adapters.get(task))
               + len(split) * pooler for token_ids, _ in split.segments)


def shown(value):
    if isinstance(value, str):
        return value
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
