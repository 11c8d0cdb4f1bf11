"""Parts of benchmarks/speed.py: training steps, inference and evaluation beside transformers."""

import tempfile
from contextlib import nullcontext
from functools import partial

import torch

from benchmarks.bench import PRECISIONS, batches
from benchmarks.side_by_side import CPU, PeerSide, Side, evaluate_padded
from benchmarks.speed_report import speed_row
from bert import Bert, BertConfig
from multitask.evaluation import run_split

PAIR = ("plainbert", "transformers")
MINILM = {                               # what → (batch size, by length, planned seconds)
    "32 in random order": (32, False, 30), "8 in random order": (8, False, 12),
    "128 in random order": (128, False, 30), "32 of like length": (32, True, 18)}


def sides(bench, weights=None):
    """→ our Side and the PeerSide, on the SST training sentences"""
    split, (ours, peer) = bench.split(), bench.models(weights)
    return Side(ours, split), PeerSide(peer, split)


def pair_of(bench, both, work, precision, items, planned):
    """Time `work` ("step" or "infer") of both sides in a precision → {name: [seconds]}"""
    for side in both:
        side.autocast = PRECISIONS[precision]
    return bench.in_turn({name: getattr(side, work) for name, side in zip(PAIR, both)}, items,
                         planned)


def training(bench):
    both = sides(bench)
    for precision in PRECISIONS:
        for what, (size, by_length, planned) in MINILM.items():
            items = batches(both[1].split, size, by_length)
            times = pair_of(bench, both, "step", precision, items, planned)
            yield speed_row("training", f"MiniLM {precision}, batches of {what}", times, size)


def base(bench):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        Bert(BertConfig(vocab_size=30522)).save_pretrained(folder)
        both = sides(bench, folder)
    for precision in PRECISIONS:
        times = pair_of(bench, both, "step", precision, batches(both[1].split, 8), 35)
        yield speed_row("training", f"bert-base's shape {precision}, batches of 8", times, 8)


def inference(bench):
    both = sides(bench)
    for precision in PRECISIONS:
        with both[0].model.encoder("sst").fixed_weights():   # as in each of our evaluations
            times = pair_of(bench, both, "infer", precision, batches(both[1].split, 32), 10)
        yield speed_row("inference", f"MiniLM {precision}, batches of 32 in random order", times,
                        32)


def evaluate_ours(model, splits):
    return {task: run_split(model, task, split, CPU, nullcontext) for task, split in splits.items()}


def evaluation(bench):
    model, peer = bench.models()
    splits = bench.dev_splits(bench.pick(0, 60))
    examples, outputs = sum(map(len, splits.values())), {}

    def keep(name, function, *arguments):
        return lambda _: outputs.update({name: function(*arguments)})

    ours, *theirs = names = ("plainbert", "in the file's order", "sorted by length")
    times = bench.in_turn(dict(zip(names, (
        keep(names[0], evaluate_ours, model, splits),
        keep(names[1], evaluate_padded, peer, splits),
        keep(names[2], partial(evaluate_padded, by_length=True), peer, splits)))),
        range(100), 105, warm=0, least=2)
    for name in theirs:
        difference = max((outputs[ours][task] - outputs[name][task]).abs().max() for task in splits)
        yield speed_row("inference", f"MiniLM fp32, all dev files, theirs {name}",
                        {ours: times[ours], name: times[name]}, examples,
                        note=f"outputs differ by at most {difference:.0e}")
