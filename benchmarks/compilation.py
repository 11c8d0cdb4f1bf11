"""What --compile costs and saves: seconds until everything is compiled, milliseconds of a training
step with and without, and the number of steps after which it has paid.

    python benchmarks/compilation.py                         # the tiny BERT
    python benchmarks/compilation.py --bert bert-base-uncased --precision bf16

Batches of 32 sequences of 8 to 45 random tokens; both sides see the same ones. Steps alternate, so
that both see the same load of the machine. On a GPU each step waits for the last one.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert import Bert, Layout  # noqa: E402
from common.cli import Parser, run_script  # noqa: E402
from common.device import pick_device, pick_precision  # noqa: E402
from common.tables import rows_table  # noqa: E402
from multitask.compilation import check_compilation, compiled_layers  # noqa: E402
from multitask.model import MultitaskModel  # noqa: E402

WARM_UP = 8                                                  # steps in which all graphs are made


def random_batch(seed, vocab_size, device):
    """→ input_ids, layout and its [CLS] on `device`"""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 46, (32,), generator=generator)
    mask = torch.arange(45) < lengths[:, None]
    ids = torch.randint(vocab_size, mask.shape, generator=generator)
    layout = Layout(mask)
    first = layout.cls_rows().to(device)
    return ids.to(device), layout.to(device), first


def seconds(bert, optimizer, autocast, batch):
    """The time of one training step."""
    ids, layout, first = batch
    began = time.perf_counter()
    with autocast():
        hidden, layout = bert.embed(ids, layout)
        loss = bert.encode(hidden, layout, output_rows=first).float().square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(bert, device, autocast, steps):
    """→ seconds of the first WARM_UP compiled steps, and [plain, compiled] seconds of a step."""
    optimizer = torch.optim.AdamW(bert.parameters(), lr=1e-5, fused=True)
    batches = [random_batch(seed, bert.config.vocab_size, device) for seed in range(steps)]

    def once(compiled, seed):
        with compiled_layers(compiled):
            return seconds(bert, optimizer, autocast, batches[seed % steps])

    once(False, 0)
    warm_up = sum(once(True, seed) for seed in range(WARM_UP))
    pairs = [[once(compiled, seed) for compiled in (False, True)] for seed in range(steps)]
    return warm_up, [median(side) for side in zip(*pairs)]


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--bert", default="tiny", help="a folder, a name on the hub, or tiny")
    parser.add_argument("--steps", type=int, default=60, help="measured on each side (default: 60)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    args = parser.parse_args()
    device = pick_device(args.device)
    bert = Bert.from_pretrained(args.bert).to(device).train()
    precision, autocast = pick_precision(args.precision, device, bert.config.hidden_size)
    with tempfile.TemporaryDirectory() as folder:            # nothing was compiled before
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        check_compilation(MultitaskModel({"shared": bert}, {}), device)
        warm_up, (plain, compiled) = measure(bert, device, autocast, args.steps)
    spent, saved = warm_up - WARM_UP * plain, plain - compiled
    print(f"torch {torch.__version__}, {device}, {precision}, {torch.get_num_threads()} threads\n")
    print(rows_table([{
        "encoder": args.bert, "compiling": f"{spent:.1f} s", "step": f"{1000 * plain:.1f} ms",
        "compiled": f"{1000 * compiled:.1f} ms", "ratio": f"{plain / compiled:.2f}",
        "pays after": f"{spent / saved:,.0f} steps" if saved > 0 else "never"}]))


if __name__ == "__main__":
    run_script(main)
