"""What the parts of benchmarks/speed.py share: models, data, and measurements in turn."""

import copy
import gc
import os
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import torch

from benchmarks.side_by_side import Peer, seconds
from bert import Bert, Tokenizer, UserError
from multitask.evaluation import load_split
from multitask.model import build_model
from multitask.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"fp32": nullcontext, "bf16": partial(torch.autocast, "cpu", torch.bfloat16)}
QUICK = 0.02                                                 # of each row's seconds, with --quick


class Stopped(Exception):
    """Ctrl-C was pressed between two measurements."""


class Bench:
    """`bar` counts planned seconds; `stop` is a StopSignal."""

    def __init__(self, quick, bar, stop):
        self.quick, self.bar, self.stop = quick, bar, stop
        self.weights = os.environ["PLAINBERT_WEIGHTS"]
        self.data = Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
        self.settings = Settings(bert=self.weights, data=str(self.data))
        self.tokenizer = Tokenizer.from_pretrained(self.weights)
        self.split = cache(self._load_split)
        self.left = 0.0                  # of the running part's planned seconds

    def _load_split(self, task="sst", name="train", limit=0):
        return load_split(task, name, self.data, self.tokenizer, self.settings, limit)

    def dev_splits(self, limit=0):
        """→ {task: Split} of all dev files"""
        return {task: self.split(task, "dev", limit) for task in self.settings.task_names}

    def models(self, weights=None):
        """→ our MultitaskModel of these weights (default: PLAINBERT_WEIGHTS), and its Peer"""
        torch.manual_seed(0)
        ours = build_model(Bert.from_pretrained(weights or self.weights), self.settings)
        return ours, Peer(weights or self.weights, copy.deepcopy(ours.heads))

    def pick(self, whole, quick):
        """→ a size: `whole`, or with --quick the other"""
        return quick if self.quick else whole

    def begin(self, planned):
        """Start a part of so many planned seconds."""
        gc.collect()
        self.advance(self.left)
        self.left = planned

    def advance(self, spent):
        """Move the bar on, within what is planned for the part; stop here after Ctrl-C."""
        part = min(spent, self.left)
        self.left -= part
        self.bar.update(min(part, max(self.bar.total - self.bar.n, 0)))
        if self.stop.asked:
            raise Stopped

    def in_turn(self, functions, items, planned, warm=3, least=5):
        """Call every function with each item, in an order that changes → {name: [seconds]}. The
        first `warm` items do not count. It ends where a further item would take longer than the
        planned seconds, but not before `least` items counted."""
        if self.quick:
            planned, warm, least = QUICK * planned, min(warm, 1), 1
        times, began = {name: [] for name in functions}, time.perf_counter()
        for number, item in enumerate(items):
            before = time.perf_counter()
            for name in list(functions)[::1 if number % 2 else -1]:
                spent = seconds(functions[name], item)
                if number >= warm:
                    times[name].append(spent)
            now = time.perf_counter()
            self.advance(now - before)
            per_item = (now - began) / (number + 1)
            if number + 1 >= warm + least and now - began + per_item > planned:
                return times
        return times


def batches(split, size, by_length=False, seed=0):
    """Yield lists of `size` indices for ever: in random order, or of sentences of like length."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(split), generator=generator).tolist()
        if by_length:
            order.sort(key=lambda i: len(split.segments[0][0][i]))
        whole = [order[i:i + size] for i in range(0, len(order) - size + 1, size)]
        for number in torch.randperm(len(whole), generator=generator).tolist():
            yield whole[number]


def run_python(*words):
    """Run Python in a process of its own, which a Ctrl-C in the terminal does not reach → what it
    printed. UserError if it fails."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, start_new_session=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"python {' '.join(map(str, words))} failed: {last}")
    return done.stdout


def can_measure_memory():
    """Whether the system tells a process's own peak, as Linux does; if not, warn."""
    known = Path("/proc/self/status").exists()
    if not known:
        warnings.warn("memory is measured on Linux only; this part is left out", stacklevel=2)
    return known
