"""Does removing heads save the time it should? bert-base's shape, with 44 and with 72 of its 144
heads gone, beside the whole encoder: inference and full training steps on real sentences, in turn.

    python benchmarks/pruning.py                 # needs PLAINBERT_WEIGHTS (its vocabulary) and
    python benchmarks/pruning.py --shape minilm  # PLAINBERT_DATA (its cs224n/)

Weights are random: what they are changes no time. The heads that go are drawn at random. A saving
is as large as it should be when its share of time is 0.6 or more of the share of multiply-adds.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from bert import Bert, BertConfig, Tokenizer
from multitask.evaluation import load_split
from multitask.model import MultitaskModel, build_head
from multitask.sampling import Batches
from multitask.settings import Settings
from multitask.tasks import TASKS
from pruning import choose, multiply_adds, remove_heads

SHAPES = {"base": {}, "minilm": {"hidden_size": 384, "num_hidden_layers": 6,
                                 "intermediate_size": 1536}}
FRACTIONS = (44 / 144, 72 / 144)


def seconds(function, *arguments):
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


@torch.inference_mode()
def infer(model, optimizer, batch):
    model.eval()
    model("sst", batch)


def train_step(model, optimizer, batch):
    """As in train_multitask.py: gradients, clipping, AdamW."""
    model.train()
    TASKS["sst"].loss(model("sst", batch), batch.labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def side(shape, fraction=0.0):
    """→ a model from which this fraction of the heads is gone, and its optimizer."""
    config = BertConfig(**SHAPES[shape])
    bert = Bert(config)
    scores = torch.zeros(config.num_hidden_layers, config.num_attention_heads)
    keep = scores.numel() - round(fraction * scores.numel())
    if fraction:
        remove_heads(bert, choose(scores, keep, "random"))
    head = build_head("sst", "linear", config.hidden_size, "joint", 0.0)
    model = MultitaskModel({"shared": bert}, {"sst": head})
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def compare(whole, smaller, work, batches, bar):
    """→ the share of time that is saved, of each pair."""
    saved = []
    for number, batch in enumerate(batches):
        times = [seconds(work, *one, batch) for one in (whole, smaller)]
        bar.update()
        if number:                                           # the first pair warms up
            saved.append(1 - times[1] / times[0])
    return saved


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--size", type=int, default=32, help="sentences in a batch")
    args = parser.parse_args()
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    data = Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
    tokenizer = Tokenizer.from_pretrained(os.environ["PLAINBERT_WEIGHTS"])
    split = load_split("sst", "train", data, tokenizer, Settings(), 100 * args.size)
    order = Batches(len(split), args.size, seed=0)
    batches = [split.batch(next(order)) for _ in range(args.pairs + 1)]
    lengths = [len(ids) for ids in split.sides[0][0]]
    whole, lines = side(args.shape), []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {args.shape} shape, "
          f"batches of {args.size} SST sentences, {args.pairs} pairs")
    with tqdm(total=2 * len(FRACTIONS) * len(batches), unit="pair", leave=False) as bar:
        for fraction in FRACTIONS:
            smaller = side(args.shape, fraction)
            less = 1 - (multiply_adds(smaller[0].bert, lengths)
                        / multiply_adds(whole[0].bert, lengths))
            for work in (infer, train_step):
                saved = compare(whole, smaller, work, batches, bar)
                middle = statistics.median(saved)
                lines.append(f"{fraction:.0%} of heads removed, {work.__name__}: {less:.1%} fewer "
                             f"multiply-adds, {middle:.1%} less time ({min(saved):.1%} to "
                             f"{max(saved):.1%}): {middle / less:.2f} of that share")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
