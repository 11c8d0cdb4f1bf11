"""What gradient surgery costs: a training step of three tasks, MiniLM, batches of 8.

    python benchmarks/surgery.py

In turn, on the same batches: `plain` (three forward and backward passes, gradients add up),
`pcgrad` and `pcgrad-tensor` (the same passes with surgery), `merged` (no surgery, one encoder pass
over the three batches together). Each step ends in clipping and AdamW. Then the peak memory of
each, in a process of its own. PLAINBERT_WEIGHTS and PLAINBERT_DATA: see README.md.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from bert import Bert, Layout, Tokenizer  # noqa: E402
from common.cli import Parser, run_script  # noqa: E402
from common.optimization import adamw, parameter_groups  # noqa: E402
from multitask import pcgrad  # noqa: E402
from multitask.data import Batch  # noqa: E402
from multitask.evaluation import load_split  # noqa: E402
from multitask.model import build_model  # noqa: E402
from multitask.schedule import BatchSampler  # noqa: E402
from multitask.settings import Settings  # noqa: E402
from multitask.tasks import TASKS  # noqa: E402

SIZE, STEPS, WARM = 8, 30, 3
KINDS = ("plain", *pcgrad.SURGERY, "merged")


def apart(model, batches, shared, mode):
    """Three passes; with surgery unless the mode is "plain"."""
    gradients = []
    for task, batch in batches.items():
        TASKS[task].loss(model(task, batch), batch.labels).backward()
        if mode != "plain":
            gradients.append(pcgrad.pop_grads(shared))
    if gradients:
        combined, grams = pcgrad.SURGERY[mode](gradients, seed=0, step=1)
        pcgrad.set_grads(shared, combined)
        pcgrad.cosines(grams, list(batches))


def one_pass(model, batches):
    """{task: Batch} → {task: outputs}: one encoder pass for the batches of all tasks, in which each
    sequence is served by its own task's adapter, if the model has adapters."""
    layouts = [batch.layout for batch in batches.values()]
    width = max(layout.tokens for layout in layouts)

    def stack(grids):
        return torch.cat([F.pad(grid, (0, width - grid.size(1))) for grid in grids])

    layout = Layout(stack(layout.mask for layout in layouts)).with_adapters(
        [(model.adapters.get(task), batch.layout.batch) for task, batch in batches.items()])
    together = Batch(stack(batch.input_ids for batch in batches.values()),
                     stack(batch.token_type_ids for batch in batches.values()),
                     layout, layout.cls_rows(), None)
    vectors = model.vectors(next(iter(batches)), together)   # poolings without parameters are alike
    parts = vectors.split([layout.batch for layout in layouts])
    return {task: model.apply_head(task, part) for task, part in zip(batches, parts)}


def merged(model, batches):
    """A step that makes one pass of the encoder over all sequences."""
    outputs = one_pass(model, batches)
    sum(TASKS[task].loss(outputs[task], batch.labels) for task, batch in batches.items()).backward()


class Bench:
    def __init__(self):
        weights = os.environ["PLAINBERT_WEIGHTS"]
        data = Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
        settings = Settings(bert=weights, data=str(data))
        tokenizer = Tokenizer.from_pretrained(weights)
        self.model = build_model(Bert.from_pretrained(weights), settings).train()
        self.shared = list(self.model.encoders.parameters())
        self.optimizer = adamw(parameter_groups([(self.model, {"max_lr": 0.0})], 0.01))
        self.splits = {task: load_split(task, "train", data, tokenizer, settings, 2000)
                       for task in settings.task_names}
        self.orders = {task: BatchSampler(2000, SIZE, 0) for task in self.splits}

    def next_batches(self):
        return {task: split.batch(next(self.orders[task])) for task, split in self.splits.items()}

    def step(self, kind, batches):
        began = time.perf_counter()
        if kind == "merged":
            merged(self.model, batches)
        else:
            apart(self.model, batches, self.shared, kind)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began


def peak_of(bench, kind):
    """The most memory that steps of this kind hold, in MiB (Linux)."""
    bench.step(kind, bench.next_batches())                   # makes the optimizer's state
    Path("/proc/self/clear_refs").write_text("5")            # the peak starts anew
    for _ in range(5):
        bench.step(kind, bench.next_batches())
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=KINDS, help="only its peak memory")
    kind = parser.parse_args().kind
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    bench = Bench()
    if kind:
        return print(peak_of(bench, kind))
    times = {kind: [] for kind in KINDS}
    for number in range(STEPS + WARM):
        batches = bench.next_batches()
        for kind in (KINDS if number % 2 else KINDS[::-1]):
            seconds = bench.step(kind, batches)
            if number >= WARM:
                times[kind].append(seconds)
    copy = sum(p.numel() * 4 for p in bench.shared) / 2 ** 20
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads; gradients of the "
          f"shared weights: {copy:.0f} MiB a copy")
    base = None
    for kind in KINDS:
        ratios = sorted(a / b for a, b in zip(times[kind], times["plain"]))
        peak = float(subprocess.run([sys.executable, __file__, kind], check=True, text=True,
                                    capture_output=True).stdout)
        base = base or peak
        print(f"{kind:13} {1000 * statistics.median(times[kind]):6.0f} ms   "
              f"{statistics.median(ratios):5.2f}× plain  (middle half of {STEPS} pairs: "
              f"{ratios[STEPS // 4]:.2f} to {ratios[-STEPS // 4]:.2f})   peak memory "
              f"{(peak - base) / copy:+.1f} copies")


if __name__ == "__main__":
    run_script(main)
