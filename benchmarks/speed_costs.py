"""Parts of benchmarks/speed.py: tokenizing, start-up, memory, operations, and how near a step is to
the least time that its matrix products and its optimizer can take."""

import json
import statistics

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bench import PRECISIONS, ROOT, batches, can_measure_memory, run_python
from benchmarks.side_by_side import quiet_transformers, seconds
from benchmarks.speed_report import make_row, speed_row
from benchmarks.speed_steps import sides
from multitask.evaluation import read_split

SIZE = 32
PASSES = 7           # of AdamW over its numbers: reads weight, gradient, two moments; writes three
NOT_COUNTED = ("aten::empty", "aten::new_empty", "aten::detach")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


class Count(TorchDispatchMode):
    """Count the operations that run within this context, without views and empty tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not (function.is_view or function.name().startswith(NOT_COUNTED))
        return function(*args, **(kwargs or {}))


class Products(TorchDispatchMode):
    """Record the two factors of every matrix product within this context, as tensors on "meta" of
    the same shape, strides and type. Products inside a fused kernel are not seen."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().split(".")[0] in PRODUCTS:
            self.factors.append([torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
                for tensor in args[-2:]])
        return function(*args, **(kwargs or {}))


def tokenizer(bench):
    texts = [text for task in ("sst", "para") for example in read_split(task, "train", bench.data)
             for text in example.texts][:bench.pick(20_000, 2_000)]
    theirs = quiet_transformers().AutoTokenizer.from_pretrained(bench.weights)
    limit = bench.tokenizer.limit
    assert bench.tokenizer.encode(texts[:100])[0] == theirs(texts[:100])["input_ids"]
    times = bench.in_turn({
        "ours": lambda chunk: bench.tokenizer.encode(chunk),
        "theirs": lambda chunk: theirs(chunk, truncation=True, max_length=limit),
    }, (texts[i % len(texts):][:1000] for i in range(0, 10 ** 9, 1000)), 8)
    yield speed_row("resources", "tokenizing, 1,000 sentences a call", times, 1000,
                    unit="sentences/s")


def start(bench):
    times = bench.in_turn({
        "ours": lambda _: run_python(ROOT / "train_multitask.py", "--help"),
        "theirs": lambda _: run_python("-c", "import transformers; transformers.BertModel"),
    }, range(100), 20, warm=1, least=3)
    ours, theirs = times.values()
    yield make_row("resources", "start: train_multitask.py --help; import BertModel", "s",
                   map(statistics.median, times.values()), [b / a for a, b in zip(ours, theirs)])


def memory(bench):
    if not can_measure_memory():
        return
    found = {}
    for kind in ("ours", "transformers"):
        found[kind] = json.loads(run_python(ROOT / "benchmarks/own_process.py", "steps", kind))
        bench.advance(15)
    loaded, peak = zip(*found.values())
    yield make_row("resources", "peak memory of five steps of 32, libraries included", "MiB", peak,
                   [peak[1] / peak[0]], note=f"{loaded[0]:.0f} and {loaded[1]:.0f} before them")


def operations(bench):
    both, counts = sides(bench), []
    indices = next(batches(both[1].split, SIZE))
    for side in both:
        side.model.train()
        side.forward(indices)                                # warm
        with Count() as mode:
            side.forward(indices)
        counts.append(mode.count)
    yield make_row("resources", "operations of a forward pass in training, batch of 32",
                   "operations", counts, [counts[1] / counts[0]])


def memory_bandwidth(bench):
    """→ bytes a second of c = a + b on arrays that no cache holds: two are read, one written"""
    a, b, c = (torch.ones(bench.pick(2 ** 26, 2 ** 22)) for _ in range(3))
    times = [seconds(lambda: torch.add(a, b, out=c)) for _ in range(10)]
    return 3 * 4 * a.numel() / min(times)


def replay(factors):
    """→ a function that computes nothing but the recorded matrix products, on random numbers"""
    made = {}

    def tensor_like(meta):
        key = (tuple(meta.shape), meta.stride(), meta.dtype)
        if key not in made:
            made[key] = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype).normal_()
        return made[key]

    pairs = [[tensor_like(meta) for meta in factor] for factor in factors]

    def run(_):
        with torch.inference_mode():
            for a, b in pairs:
                (torch.mm if a.dim() == 2 else torch.bmm)(a, b)

    return run


def limit(bench):
    side, peer = sides(bench)
    indices = next(batches(peer.split, SIZE))
    numbers = sum(p.numel() for p in side.trained)
    for precision, autocast in PRECISIONS.items():
        side.autocast = autocast
        side.step(indices)                                   # makes the optimizer's state
        with Products() as recorded:
            side.backward(indices)
        side.optimizer.zero_grad()
        optimizer = PASSES * 4 * numbers / memory_bandwidth(bench)
        times = bench.in_turn({"step": lambda _: side.step(indices),
                               "products": replay(recorded.factors)}, range(1000), 12)
        step, products = map(statistics.median, times.values())
        yield make_row(
            "limit", f"MiniLM {precision}, step of 32", "ms",
            (1000 * step, 1000 * (products + optimizer)),
            [(b + optimizer) / a for a, b in zip(times["step"], times["products"])],
            peer_name="its arithmetic alone",
            note=f"{len(recorded.factors)} products {1000 * products:.0f} ms, AdamW "
                 f"{1000 * optimizer:.0f} ms")
