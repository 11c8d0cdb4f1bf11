"""Training steps and evaluation beside transformers' BertModel: same weights, same batches, in
turn.

    pip install -r benchmarks/requirements.txt
    python benchmarks/speed.py                          # needs PLAINBERT_WEIGHTS and PLAINBERT_DATA

Both sides start from lists of token ids, and both train with fused AdamW and the same clipping.
transformers pads each batch to its longest sentence and takes its files in their own order.
"""

import copy
import os
import statistics
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from bert import Bert, Tokenizer
from multitask.evaluation import load_split, run_split
from multitask.model import build_model
from multitask.sampling import Batches
from multitask.settings import Settings
from multitask.tasks import TASKS

STEPS, REPEATS, SIZE = 30, 3, 32
CPU = torch.device("cpu")


class Peer(nn.Module):
    """transformers' encoder with the same linear heads on [CLS]."""

    def __init__(self, weights, heads):
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(weights, attn_implementation="sdpa",
                                                           add_pooling_layer=False)
        self.heads = heads

    def forward(self, task, batch):
        return self.heads[task].out(self.bert(**batch).last_hidden_state[:, 0])


def seconds(function, *arguments):
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def train_step(model, optimizer, split, indices, make_batch):
    model.train()
    TASKS["sst"].loss(model("sst", make_batch(indices)), split.labels[indices]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def padded(split, indices):
    """A batch as transformers takes it."""
    return split.tokenizer.pad([split.sides[0][0][i] for i in indices],
                               [split.sides[0][1][i] for i in indices])


@torch.inference_mode()
def evaluate_padded(model, splits):
    model.eval()
    outputs = {}
    for task, split in splits.items():
        starts = range(0, len(split), SIZE)
        chunks = [range(i, min(i + SIZE, len(split))) for i in starts]
        outputs[task] = torch.cat([model(task, padded(split, chunk)) for chunk in chunks])
    return outputs


def evaluate_ours(model, splits):
    return {task: run_split(model, task, split, CPU, nullcontext) for task, split in splits.items()}


def compare_training(ours, peer, split):
    """Examples a second of both, and the ratio of each pair of steps."""
    sides = [(m, torch.optim.AdamW(m.parameters(), lr=1e-5, fused=True)) for m in (ours, peer)]
    order, times = Batches(len(split), SIZE, seed=0), ([], [])
    for _ in range(STEPS):
        indices = next(order)
        times[0].append(seconds(train_step, *sides[0], split, indices, split.batch))
        times[1].append(seconds(train_step, *sides[1], split, indices, partial(padded, split)))
    return report("training step, SST batches of 32 in random order", SIZE, *(t[3:] for t in times))


def compare_evaluation(ours, peer, splits):
    a, b = evaluate_ours(ours, splits), evaluate_padded(peer, splits)
    difference = max((a[task] - b[task]).abs().max() for task in splits)
    times = ([], [])
    for _ in range(REPEATS):
        times[0].append(seconds(evaluate_ours, ours, splits))
        times[1].append(seconds(evaluate_padded, peer, splits))
    examples = sum(map(len, splits.values()))
    report(f"evaluation of all dev files (outputs differ by at most {difference:.1e})",
           examples, *times)


def report(what, examples, ours, theirs):
    ratios = [b / a for a, b in zip(ours, theirs)]
    print(f"{what}\n  plainbert    {examples / statistics.median(ours):7.1f} examples/s\n"
          f"  transformers {examples / statistics.median(theirs):7.1f} examples/s\n"
          f"  ratio        {statistics.median(ratios):7.2f}×  (median of {len(ratios)} pairs; "
          f"{min(ratios):.2f} to {max(ratios):.2f})")


def main():
    if not {"PLAINBERT_WEIGHTS", "PLAINBERT_DATA"} <= set(os.environ):
        sys.exit("set PLAINBERT_WEIGHTS and PLAINBERT_DATA; README.md says to what")
    weights, data = os.environ["PLAINBERT_WEIGHTS"], Path(os.environ["PLAINBERT_DATA"]) / "cs224n"
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{torch.get_num_threads()} CPU threads, {Path(weights).name}")
    settings = Settings(bert=weights, data=str(data))
    tokenizer = Tokenizer.from_pretrained(weights)
    ours = build_model(Bert.from_pretrained(weights), settings)
    peer = Peer(weights, copy.deepcopy(ours.heads))
    compare_evaluation(ours, peer, {task: load_split(task, "dev", data, tokenizer, settings)
                                    for task in settings.task_names})
    compare_training(ours, peer, load_split("sst", "train", data, tokenizer, settings))


if __name__ == "__main__":
    main()
