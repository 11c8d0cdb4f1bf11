"""Shared by the benchmarks: models take the same batches in turn, so that noise of the machine hits
all of them."""

import statistics
import time

import torch
import transformers
from torch import nn
from tqdm import tqdm

from multitask.tasks import TASKS

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Peer(nn.Module):
    """transformers' encoder with the same linear heads on [CLS]. `encoder`: a BertModel, or a
    checkpoint."""

    def __init__(self, encoder, heads):
        super().__init__()
        self.bert = encoder if isinstance(encoder, nn.Module) else (
            transformers.BertModel.from_pretrained(encoder, attn_implementation="sdpa",
                                                   add_pooling_layer=False))
        self.heads = heads

    def forward(self, task, batch):
        return self.heads[task].out(self.bert(**batch).last_hidden_state[:, 0])


def padded(split, indices):
    """A batch as transformers takes it: padded to its longest sentence."""
    return split.tokenizer.pad([split.segments[0][0][i] for i in indices],
                               [split.segments[0][1][i] for i in indices])


class Side:
    """A model, and how it takes a batch of `split`, given as a list of indices: `step` is one
    training step as in train_multitask.py, `infer` one forward pass."""

    def __init__(self, model, split, make_batch):
        self.model, self.split, self.make_batch = model, split, make_batch
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)

    def backward(self, indices):
        self.model.train()
        outputs = self.model("sst", self.make_batch(indices))
        TASKS["sst"].loss(outputs, self.split.labels[indices]).backward()

    def step(self, indices):
        self.backward(indices)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.inference_mode()
    def infer(self, indices):
        self.model.eval()
        self.model("sst", self.make_batch(indices))


def seconds(function, *arguments):
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def in_turn(what, work, sides, batches, warm):
    """Time `work` of every side on each batch, one side after the other → {name: [seconds]}. The
    first `warm` batches do not count."""
    times = {name: [] for name in sides}
    for indices in tqdm(batches, what, leave=False):
        for name, side in sides.items():
            times[name].append(seconds(getattr(side, work), indices))
    times = {name: values[warm:] for name, values in times.items()}
    print(f"\n{what}")
    for name, values in times.items():
        print(f"  {name:30} {len(batches[0]) / statistics.median(values):7.1f} examples/s")
    return times


def ratio(what, above, below):
    """Print and return the median of above[n] / below[n], the times of one batch."""
    ratios = [a / b for a, b in zip(above, below)]
    print(f"  {what:30} {statistics.median(ratios):7.2f}×  (median of {len(ratios)} pairs; "
          f"{min(ratios):.2f} to {max(ratios):.2f})")
    return statistics.median(ratios)
