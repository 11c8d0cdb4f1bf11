"""Attention on packed rows beside attention on the padded grid, on a GPU; why nested tensors do not
do it; and from which length on torch's kernel is the faster one on a CPU.

    python benchmarks/packed_attention.py

Prints what Python takes to make the three nested tensors of one attention, which costs the same on
any device; milliseconds of six layers' attention in inference on a CPU, by hand and by the kernel
(12 heads of 32, as in MiniLM); and on a GPU milliseconds of one attention, forward and with
backward, by precision and share of padding (12 heads of 64, as in bert-base).
"""

import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import bert.attention  # noqa: E402
from bert import BertConfig, Layout  # noqa: E402
from bert.attention import SelfAttention  # noqa: E402
from common.cli import Parser, run_script  # noqa: E402
from common.tables import rows_table  # noqa: E402

REPEATS, BATCH, TOKENS = 100, 32, 128


def milliseconds(work):
    """The time of one call, of REPEATS in a row after ten to warm up."""
    for _ in range(10):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / REPEATS


def random_layout(shortest):
    """A batch whose lengths are spread evenly from `shortest` to TOKENS."""
    lengths = torch.linspace(shortest, TOKENS, BATCH).long()
    return Layout(torch.arange(TOKENS) < lengths[:, None])


def host_cost():
    """Milliseconds of Python to make three nested tensors and take their values back."""
    layout = random_layout(16)
    query = torch.randn(len(layout), 2, 8, requires_grad=True)
    warnings.simplefilter("ignore")

    def work():
        for _ in range(3):
            torch.nested.nested_tensor_from_jagged(
                query, layout.offsets, min_seqlen=layout.min_rows,
                max_seqlen=layout.tokens).transpose(1, 2).transpose(1, 2).values()

    return milliseconds(work)


def attend(attention, rows, layout):
    """The products of query, key and value [N, 3·768] → contexts [N, 768], packed if possible"""
    context = attention.attend_packed(layout, layout, rows)
    if context is None:
        context = layout.from_grids([attention.attend(
            layout, layout, *attention.split_heads(layout.to_grid(rows)))])
    return context


def compare(dtype, shortest, device="cuda"):
    """→ a row of the table, of one layer's attention without its projections."""
    layout = random_layout(shortest).to(device)
    layout.length_buckets = []                               # as on a GPU
    attention = SelfAttention(BertConfig(), 0).to(device, dtype).eval()
    rows = torch.randn(len(layout), 3 * 768, device=device, dtype=dtype, requires_grad=True)

    def forward():
        with torch.no_grad():
            attend(attention, rows, layout)

    def both():
        attend(attention, rows, layout).sum().backward()

    row = {"precision": str(dtype).removeprefix("torch."),
           "padding": f"{1 - len(layout) / layout.mask.numel():.0%}"}
    for name, work in (("forward", forward), ("with backward", both)):
        row[f"{name}, packed"], offsets = f"{milliseconds(work):.3f}", layout.offsets
        layout.offsets = None                                # as in a DenseLayout: on the grid
        row[f"{name}, grid"], layout.offsets = f"{milliseconds(work):.3f}", offsets
    return row


@torch.inference_mode()
def short_sequences(tokens, precision):
    """→ a row of a CPU's table: about 1,000 rows of sequences of `tokens`, one a token shorter.
    Multiples of 16 are left out: few real lengths are, and with them the kernel is faster."""
    lengths = torch.tensor([tokens - 1] + [tokens] * (1000 // tokens))
    layout = Layout(torch.arange(tokens) < lengths[:, None])
    attention = SelfAttention(BertConfig(hidden_size=384), 0).eval()
    rows, row = torch.randn(len(layout), 3 * 384).to(precision), {"tokens": tokens}

    def layers():
        layout.blocks = {}                                   # made once a batch
        for _ in range(6):
            attend(attention, rows, layout)

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        for name, short in (("by hand", tokens), ("kernel", 0)):
            bert.attention.SHORT = short
            row[name] = milliseconds(layers)
    row["kernel / by hand"] = f"{row['kernel'] / row['by hand']:.2f}"
    return {"precision": str(precision).removeprefix("torch."), **row}


def main():
    Parser(description=__doc__).parse_args()
    print(f"torch {torch.__version__}; three nested tensors, made and read: {host_cost():.2f} ms")
    print(rows_table([short_sequences(tokens, precision)
                      for precision in (torch.float32, torch.bfloat16)
                      for tokens in (13, 22, 31, 39, 45, 51, 61, 93)]))
    if not torch.cuda.is_available():
        return print("no GPU here: the kernels are not measured")
    print(f"{torch.cuda.get_device_name()}, {BATCH} sequences of at most {TOKENS} tokens, ms\n")
    print(rows_table([compare(dtype, shortest) for dtype in (torch.bfloat16, torch.float32)
                      for shortest in (4, 64, 120)]))


if __name__ == "__main__":
    run_script(main)
