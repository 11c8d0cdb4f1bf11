"""Scoring: a split → outputs → predictions → metrics, and the course's prediction files."""

import json
from pathlib import Path

import torch

from bert import BertConfig, UserError
from bert.errors import some
from bert.files import atomic_write, fingerprint
from common.log import progress_bar
from multitask.course import find_file
from multitask.data import tokenize
from multitask.metrics import summary
from multitask.tasks import TASKS

TOKENS = 2048                                            # real tokens in one batch of an evaluation


def read_split(task, split, folder, strict_rows=False):
    """→ the examples of one of a task's files."""
    path = find_file(folder, TASKS[task].files[split])
    if not path.exists():
        other = Path(folder, f"{task}-{split}.txt")
        raise UserError(f"{path} does not exist; " + (
            f"{other} is of CMU's course (label ||| sentence), whose files are not read: README "
            f"has a line that makes one of the other" if other.is_file() else
            "--data must be the folder with this file, and --tasks may leave a task out"
            + ("" if Path(folder).is_dir() else f"; {folder} is not a folder")))
    examples = TASKS[task].read_examples(path, TASKS[task], strict_rows)
    if not split.startswith("test") and examples[0].label is None:
        raise UserError(f"{path} has no column {TASKS[task].label}, the label of {split} data")
    return examples


def load_split(task, split, folder, tokenizer, settings, limit=0):
    """Read and tokenize one file of a task's. `settings` gives pairs and strict_rows."""
    examples = read_split(task, split, folder, settings.strict_rows)
    return tokenize(examples[:limit or None], tokenizer, settings.pairs)


def load_sets(tasks, settings, tokenizer, kind="dev"):
    """→ {task: {name: Split}}: the "dev" sets, which training scores, or the "test" sets."""
    return {task: {name: load_split(task, name, settings.data, tokenizer, settings, settings.limit)
                   for name in getattr(TASKS[task], f"{kind}_sets")} for task in tasks}


def check_outputs(outputs, task, ids, what="outputs"):
    """UserError that names the examples whose `outputs` [n, …] are not finite."""
    finite = outputs.detach().flatten(1).isfinite().all(dim=1).tolist()
    if wrong := [id for id, good in zip(ids, finite) if not good]:
        raise UserError(f"{task}: the model's {what} for {some(wrong)} are not finite (NaN or "
                        f"infinite), so its weights are of no use; train again with a lower --lr, "
                        f"or go back to an earlier run")


@torch.inference_mode()
def run_split(model, task, split, device, autocast, bar=None):
    """→ the model's outputs [n, outputs] for every example of a split, in the file's order. Batches
    hold sequences of like length, so that attention's grid has little padding."""
    model.eval()
    outputs = torch.empty(len(split), TASKS[task].outputs)
    tokens = TOKENS if model.early_exit is None else (
        model.early_exit.batch_tokens(model, task, TOKENS))
    with model.encoder(task).fixed_weights():
        for indices in split.by_length(tokens):
            with autocast():
                outputs[indices] = model(task, split.batch(indices).to(device)).cpu()
            check_outputs(outputs[indices], task, [split.ids[i] for i in indices])
            if bar is not None:
                bar.update(len(indices))
    return outputs


def run_splits(model, splits, device, autocast):
    """splits {task: {split name: Split}} → {(task, split name): outputs [n, outputs]}"""
    total = sum(len(split) for named in splits.values() for split in named.values())
    with progress_bar("evaluate", total, "example", leave=False) as bar:
        return {(task, name): run_split(model, task, split, device, autocast, bar)
                for task, named in splits.items() for name, split in named.items()}


def score_outputs(splits, outputs):
    """The results of run_splits → scores as in metrics.json (of labeled splits; a task's further
    ones get their name in brackets), predictions {(task, split name): [prediction, …]}."""
    scores, predictions = {}, {}
    for (task, name), values in outputs.items():
        predictions[task, name] = predicted = TASKS[task].predict(values).tolist()
        split, is_first = splits[task][name], name == next(iter(splits[task]))
        for metric, function in TASKS[task].metrics.items() if split.labels is not None else ():
            key = metric if is_first else f"{metric} ({name})"
            scores.setdefault(task, {})[key] = function(predicted, split.labels.tolist())
    return summary(scores) if scores else {}, predictions


def evaluate(model, splits, device, autocast):
    """→ scores and predictions, as of score_outputs"""
    return score_outputs(splits, run_splits(model, splits, device, autocast))


def mean_losses(splits, outputs, loss_of):
    """The results of run_splits → {task: its loss over the examples of its first split}. loss_of
    maps a task to its loss function, as Settings.loss_of does."""
    first = {task: next(iter(named)) for task, named in splits.items()}
    return {task: loss_of(task)(outputs[task, name], splits[task][name].labels).item()
            for task, name in first.items()}


def model_fingerprint(model, splits, precision):
    """A fingerprint of all that scores depend on: each module's type and plain attributes (a LoRA's
    alpha), each parameter and buffer (masks), and the rows and labels of `splits` {task: Split}."""
    plain = (str, int, float, list, tuple, dict, BertConfig, type(None))
    parts = [precision]
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if not key.startswith("_")
                      and key != "training" and isinstance(value, plain)}
        parts.append(f"{name} {type(module).__name__} {attributes}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts += [f"{name} {list(tensor.shape)}", tensor.flatten()]
    for task, split in splits.items():
        labels = None if split.labels is None else split.labels.tolist()
        parts.append(json.dumps([task, split.ids, split.segments, labels]))
    return fingerprint(*parts)


def write_predictions(folder, splits, predictions):
    """Write a prediction file for each split, in the form that the task's graders read."""
    for (task, name), predicted in predictions.items():
        row, ids = TASKS[task], splits[task][name].ids
        file_name, text = row.write(row, task, name, ids, predicted)
        with atomic_write(Path(folder) / file_name) as file:
            file.write(text.encode())
