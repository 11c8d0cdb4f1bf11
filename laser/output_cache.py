"""What edited models say about every dev example, kept on the disk: of each stack and task the
outputs [n, outputs]. Any half of the data can be scored from it, and a stopped pass goes on."""

import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from bert import BertConfig, UserError
from bert.files import read_metadata, read_tensors, write_tensors
from common.cli import StopSignal, UserStop
from common.log import progress_bar
from laser.interventions import format_stack
from laser.shared_prefix import SharedPrefixEvaluator
from multitask.evaluation import TOKENS
from multitask.metrics import summary
from multitask.tasks import TASKS

SAVE_SECONDS = 30
CLOSED_FORM = (str, int, float, list, tuple, dict, BertConfig, type(None))     # types of settings


def fingerprint(model, splits, precision):
    """What the outputs and their scores depend on beside the stack, as 16 hex digits: every
    module's type and plain attributes (which adapter serves which task, pooling, a LoRA's alpha),
    every parameter and buffer (masks too, though files leave them out), the rows and labels."""
    digest = hashlib.sha256(precision.encode())
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items()
                 if not key.startswith("_") and key != "training" and isinstance(value, CLOSED_FORM)}
        digest.update(f"{name} {type(module).__name__} {plain}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    for task, split in splits.items():
        labels = None if split.labels is None else split.labels.tolist()
        digest.update(json.dumps([task, split.ids, split.segments, labels]).encode())
    return digest.hexdigest()[:16]


class OutputCache:
    """`splits` is {task: Split}; `path` the file, read if it is there. NaN stands where nothing was
    computed yet."""

    def __init__(self, model, splits, device, autocast, path, precision="fp32"):
        self.model, self.splits, self.device, self.autocast = model, splits, device, autocast
        self.path, self.stacks = Path(path), {}              # spelling → row
        self.fingerprint = fingerprint(model, splits, precision)
        self.evaluator = SharedPrefixEvaluator(model)
        self.batches = {task: split.by_length(TOKENS) for task, split in splits.items()}
        self.tables = {task: torch.empty(0, len(split), TASKS[task].outputs)
                       for task, split in splits.items()}
        if self.path.is_file():
            self._read()

    def _read(self):
        try:
            about = json.loads(read_metadata(self.path).get("about", ""))
        except ValueError as error:
            raise UserError(f"{self.path} is no file of outputs; move it away") from error
        if about["mark"] != self.fingerprint:
            raise UserError(f"{self.path} holds what another model, data or precision gave; give "
                            f"another --out, or remove the file")
        self.stacks = {spelling: row for row, spelling in enumerate(about["stacks"])}
        found = read_tensors(self.path)
        self.tables = {task: found[task] for task in self.tables}

    def save(self):
        about = json.dumps({"mark": self.fingerprint, "stacks": list(self.stacks)})
        write_tensors(self.path, self.tables, about=about)

    def add(self, stacks, title="replay"):
        """Compute what these stacks give, as far as it is not there. Ctrl-C saves first."""
        new = [s for s in dict.fromkeys(map(format_stack, stacks)) if s not in self.stacks]
        for spelling in new:
            self.stacks[spelling] = len(self.stacks)
        self.tables = {task: torch.cat([t, t.new_full((len(new), *t.shape[1:]), math.nan)])
                       for task, t in self.tables.items()}
        rows = {self.stacks[format_stack(stack)]: stack for stack in stacks}
        todo = [(task, indices, open_) for task, batches in self.batches.items()
                for indices in batches
                if (open_ := [r for r in rows if self.tables[task][r, indices[0]].isnan().any()])]
        if todo:
            self._run(todo, rows, title)

    def _run(self, todo, rows, title):
        total = sum(len(indices) * len(open_) for _, indices, open_ in todo)
        saved = time.monotonic()
        with StopSignal() as stop, progress_bar(title, total, "example", leave=False) as bar:
            for task, indices, open_ in todo:
                batch = self.splits[task].batch(indices).to(self.device)
                with self.autocast():
                    found = self.evaluator.outputs(task, batch, [rows[row] for row in open_])
                self.tables[task][torch.tensor(open_)[:, None], torch.tensor(indices)] = found.cpu()
                bar.update(len(indices) * len(open_))
                if stop.query_layout or time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if stop.query_layout:
                    raise UserStop(f"stopped; what was computed is in {self.path}, and the same "
                                   f"command goes on from there")
        self.save()

    def predictions(self, stack):
        """→ {task: numpy [n]}"""
        row = self.stacks[format_stack(stack)]
        return {task: np.asarray(TASKS[task].predict(table[row]).tolist())
                for task, table in self.tables.items()}

    @property
    def labels(self):
        return {task: split.labels.numpy() for task, split in self.splits.items()}


def scores_of(predictions, labels):
    """{task: [n]} both → scores as in metrics.json, of each task's first metric."""
    found = {}
    for task, predicted in predictions.items():
        name, metric = next(iter(TASKS[task].metrics.items()))
        found[task] = {name: metric(predicted, labels[task])}
    return summary(found)
