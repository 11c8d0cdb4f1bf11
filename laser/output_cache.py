"""The outputs of edited models for every dev example, in a file from which any pass resumes."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from bert import UserError
from bert.checkpoint import check_names_and_shapes
from bert.files import read_metadata, read_tensors, write_tensors
from bert.json_files import parse_json
from common.cli import StopSignal, UserStop
from common.log import progress_bar
from laser.interventions import format_stack
from laser.shared_prefix import SharedPrefixEvaluator
from multitask.evaluation import TOKENS, check_outputs, model_fingerprint
from multitask.metrics import main_scores, summary
from multitask.tasks import TASKS

SAVE_SECONDS = 30
ABOUT = {"fingerprint": str, "stacks": list[str]}             # in the header of the file


class OutputCache:
    """Outputs of a RunSession's model under stacks of interventions on its dev sets. `path`: the
    file, which is read if it exists. `tables` {task: [stacks, n, outputs]} hold NaN where nothing
    is computed yet; `rows` {format_stack(stack): its row of a table}; `labels` {task: [n]}."""

    def __init__(self, session, path):
        self.session, self.splits = session, session.first_splits
        self.fingerprint = model_fingerprint(session.model, self.splits, session.precision)
        self.evaluator = SharedPrefixEvaluator(session.model)
        self.labels = {task: split.labels.numpy() for task, split in self.splits.items()}
        self.path, stacks = Path(path), []
        self.tables = {task: torch.empty(0, len(split), TASKS[task].outputs)
                       for task, split in self.splits.items()}
        if self.path.is_file():
            about = parse_json(read_metadata(self.path).get("about", "{}"), self.path, ABOUT)
            if about["fingerprint"] != self.fingerprint:
                raise UserError(f"{self.path} holds outputs of another model, data or precision; "
                                f"give another --out, or remove the file")
            found, stacks = read_tensors(self.path), about["stacks"]
            check_names_and_shapes(self.path, {
                task: table.new_empty(len(stacks), *table.shape[1:])
                for task, table in self.tables.items()}, found, "another file of outputs")
            self.tables = {task: found[task] for task in self.tables}
        self.rows = {text: row for row, text in enumerate(stacks)}

    def save(self):
        about = json.dumps({"fingerprint": self.fingerprint, "stacks": list(self.rows)})
        write_tensors(self.path, self.tables, about=about)

    def add(self, stacks, title="evaluate"):
        """Compute the missing outputs of these stacks. Ctrl-C saves those computed so far."""
        new = [text for text in dict.fromkeys(map(format_stack, stacks)) if text not in self.rows]
        self.rows |= {text: row for row, text in enumerate(new, len(self.rows))}
        for task, table in self.tables.items():              # NaN: not computed yet
            empty = table.new_full((len(new), *table.shape[1:]), math.nan)
            self.tables[task] = torch.cat([table, empty])
        stack_of = {self.rows[format_stack(stack)]: stack for stack in stacks}
        todo = [(task, examples, [row for row in stack_of    # a batch is computed whole or not
                                  if self.tables[task][row, examples[0]].isnan().any()])
                for task, split in self.splits.items() for examples in split.by_length(TOKENS)]
        total = sum(len(examples) * len(rows) for _, examples, rows in todo)
        saved = time.monotonic()
        if not total:
            return
        with StopSignal() as stop, progress_bar(title, total, "example", leave=False) as bar:
            for task, examples, rows in todo:
                if not rows:
                    continue
                batch = self.splits[task].batch(examples).to(self.session.device)
                with self.session.autocast():
                    found = self.evaluator.outputs(task, batch, [stack_of[row] for row in rows])
                check_outputs(found.transpose(0, 1), task,
                              [self.splits[task].ids[i] for i in examples])
                self.tables[task][torch.tensor(rows)[:, None], torch.tensor(examples)] = found.cpu()
                bar.update(len(examples) * len(rows))
                if stop.asked or time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if stop.asked:
                    raise UserStop(f"stopped; the outputs so far are in {self.path}, and the same "
                                   f"command goes on from there")
        self.save()

    def predictions(self, stack):
        """→ {task: predictions [n]}"""
        row = self.rows[format_stack(stack)]
        return {task: np.asarray(TASKS[task].predict(table[row]).tolist())
                for task, table in self.tables.items()}

    def scores(self, stack):
        """→ {task: its first metric, "overall": …, "mean": …} on all examples"""
        return scores_of(self.predictions(stack), self.labels)


def scores_of(predictions, labels):
    """{task: [n]} both → {task: its first metric, "overall": …, "mean": …}"""
    found = {}
    for task, predicted in predictions.items():
        name, metric = next(iter(TASKS[task].metrics.items()))
        found[task] = {name: metric(predicted, labels[task])}
    return main_scores(summary(found))
