"""Parts of benchmarks/speed.py: whether time grows in proportion to the examples and to the tokens
of a sentence, and whether memory stays flat over many steps."""

import json
import statistics
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, cycle, islice

import torch

from benchmarks.bench import ROOT, can_measure_memory, run_python
from benchmarks.side_by_side import CPU, seconds
from benchmarks.speed_report import make_row
from multitask.data import Split
from multitask.evaluation import run_split


def evaluate(bench, model, split, repeats=1):
    """→ [seconds of an evaluation of the split]"""
    found = []
    for _ in range(repeats):
        found.append(seconds(run_split, model, "sst", split, CPU, nullcontext))
        bench.advance(found[-1])
    return found


def repeated(split, count):
    """→ a Split of `count` examples: those of `split`, again and again"""
    def stretch(rows):
        return list(islice(cycle(rows), count))

    return replace(split, ids=stretch(split.ids), labels=None,
                   segments=[tuple(map(stretch, segment)) for segment in split.segments])


def of_length(split, tokens, total):
    """→ a Split of total / tokens sequences of that length, of the sentences' words in order"""
    words = cycle(chain.from_iterable(ids[1:-1] for ids in split.segments[0][0]))
    cls, sep = split.segments[0][0][0][0], split.segments[0][0][0][-1]
    ids = [[cls, *islice(words, tokens - 2), sep] for _ in range(total // tokens)]
    types = [[0] * tokens for _ in ids]
    return Split(list(range(len(ids))), None, [(ids, types)], split.tokenizer)


def real_tokens(split):
    return sum(map(len, split.segments[0][0]))


def rows_of(measured):
    """Yield a row for each (name, split, times), whose ratio is its time a token beside the
    first's."""
    first = statistics.median(measured[0][2]) / real_tokens(measured[0][1])
    for name, split, times in measured:
        tokens = real_tokens(split)
        yield make_row("growth", name, "s", (statistics.median(times), None),
                       [spent / tokens / first for spent in times],
                       note=f"{1e6 * statistics.median(times) / tokens:.1f} µs a real token of "
                            f"{tokens:,}")


def growth(bench):
    model, _ = bench.models()
    split, scale = bench.split("sst", "dev"), bench.pick(1000, 30)
    evaluate(bench, model, repeated(split, scale))           # warm
    splits = {n: repeated(split, n * scale) for n in (1, 4, 16)}
    yield from rows_of([(f"evaluation of {len(part):,} SST sentences", part,
                         evaluate(bench, model, part, repeats=4 // n or 1))
                        for n, part in splits.items()])
    total = bench.pick(2 ** 14, 2 ** 10)
    splits = {n: of_length(split, n, total) for n in (16, 64, 256)}
    yield from rows_of([(f"evaluation of {len(part):,} sentences of {n} tokens", part,
                         evaluate(bench, model, part, bench.pick(4, 1)))
                        for n, part in splits.items()])


def flat(bench):
    if not can_measure_memory():
        return
    steps = bench.pick(2000, 100)
    found = json.loads(run_python(ROOT / "benchmarks/own_process.py", "flat", steps))
    assert len(found) == 10 and torch.tensor(found).isfinite().all()
    yield make_row("growth", f"memory after {steps:,} steps of the tiny model", "MiB",
                   (found[-1], found[0]), [found[-1] / found[0]],
                   peer_name=f"after {steps // 10:,}",
                   note="from " + " to ".join(f"{f(found):.0f}" for f in (min, max)))
