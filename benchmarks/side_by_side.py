"""Shared by the benchmarks: models take the same batches in turn, so that noise of the machine hits
all of them."""

import statistics
import time
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from tqdm import tqdm

from common.finite import FiniteCheck
from common.log import Log
from common.optimization import adamw, clip_gradients, parameter_groups
from multitask.schedule import Schedule, trained_modules
from multitask.tasks import TASKS

CPU, LR = torch.device("cpu"), 1e-5


def quiet_transformers():
    """→ the module transformers, without its log and bars; slow to import."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


class Peer(nn.Module):
    """transformers' encoder with the same linear heads on [CLS]. `encoder`: a BertModel, or a
    checkpoint."""

    def __init__(self, encoder, heads):
        super().__init__()
        self.bert = encoder if isinstance(encoder, nn.Module) else (
            quiet_transformers().BertModel.from_pretrained(encoder, attn_implementation="sdpa",
                                                           add_pooling_layer=False))
        self.heads = heads

    def forward(self, task, batch):
        return self.heads[task].out(self.bert(**batch).last_hidden_state[:, 0])


def padded(split, indices):
    """A batch as transformers takes it: padded to its longest sentence."""
    return split.tokenizer.pad([split.segments[0][0][i] for i in indices],
                               [split.segments[0][1][i] for i in indices])


@torch.inference_mode()
def evaluate_padded(model, splits, size=32, by_length=False):
    """→ {task: a Peer's outputs [n, outputs] in the file's order}, of batches in that order, or
    sorted `by_length`."""
    model.eval()
    outputs = {}
    for task, split in splits.items():
        order = list(range(len(split)))
        if by_length:
            order.sort(key=lambda i: len(split.segments[0][0][i]))
        found = torch.cat([model(task, padded(split, order[i:i + size]))
                           for i in range(0, len(split), size)])
        outputs[task] = torch.empty_like(found).index_copy_(0, torch.tensor(order), found)
    return outputs


class Side:
    """A MultitaskModel that trains on `split` as train_multitask.py trains. A batch is given as a
    list of indices, of which make_batch makes a Batch (default: split.batch). `autocast` makes the
    context of a forward pass."""

    def __init__(self, model, split, make_batch=None, autocast=nullcontext):
        from multitask.methods import settings_class  # slow: a peer's process does without

        settings = settings_class()(tasks="sst")
        self.model, self.autocast = model, autocast
        self.make_batch = make_batch or split.batch
        model.bert.pooler.requires_grad_(False)                          # nothing reads it
        schedule = Schedule(settings, {"sst": len(split)}, 1)
        self.optimizer = adamw(parameter_groups(
            trained_modules(model, settings, schedule, LR), settings.weight_decay))
        for group in self.optimizer.param_groups:
            group["lr"] = group["max_lr"]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.run = SimpleNamespace(          # what train_multitask.add_gradients uses of a run
            model=model, settings=settings, schedule=schedule, optimizer=self.optimizer, device=CPU,
            autocast=lambda: self.autocast(), finite=FiniteCheck(model), log=Log(None, 0),
            train={"sst": SimpleNamespace(batch=self.make_batch, ids=split.ids)},
            progress=SimpleNamespace(step=0), checked_tasks=set())

    def backward(self, indices):
        import train_multitask

        self.model.train()
        train_multitask.add_gradients(self.run, "sst", indices, 1.0)

    def step(self, indices):
        """A step of the loop in train_multitask.py."""
        self.backward(indices)
        norm = clip_gradients(self.trained, 1.0, self.optimizer)
        self.run.finite.add(norm, "the gradient of sst")
        self.run.progress.step += 1
        self.run.finite.update(self.optimizer, self.run.progress.step)
        self.optimizer.zero_grad()

    def forward(self, indices):
        with self.autocast():
            return self.model("sst", self.make_batch(indices))

    @torch.inference_mode()
    def infer(self, indices):
        self.model.eval()
        self.forward(indices)


class PeerSide:
    """A Peer and the ordinary training loop of torch. The arguments are those of Side; a batch is
    padded by default."""

    def __init__(self, model, split, make_batch=None, autocast=nullcontext):
        self.model, self.split, self.autocast = model, split, autocast
        self.make_batch = make_batch or partial(padded, split)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LR, fused=True)

    def backward(self, indices):
        self.model.train()
        with self.autocast():
            outputs = self.model("sst", self.make_batch(indices))
            loss = TASKS["sst"].loss(outputs, self.split.labels[indices])
        loss.backward()

    def step(self, indices):
        self.optimizer.zero_grad()
        self.backward(indices)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()

    forward, infer = Side.forward, Side.infer


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
