"""Scoring: a split → outputs → predictions → metrics, and the course's prediction files."""

import json
from pathlib import Path

import torch

from bert import BertConfig, UserError
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
            "--data must be the folder with this file, and --tasks may leave a task out"))
    examples = TASKS[task].read_examples(path, TASKS[task], strict_rows)
    if not split.startswith("test") and examples[0].label is None:
        raise UserError(f"{path} has no column {TASKS[task].label}, the label that {split} data "
                        "needs")
    return examples


def load_split(task, split, folder, tokenizer, settings, limit=0):
    """Read and tokenize one file of a task's. `settings` gives pairs and strict_rows."""
    examples = read_split(task, split, folder, settings.strict_rows)
    return tokenize(examples[:limit or None], tokenizer, settings.pairs)


def load_dev(tasks, settings, tokenizer):
    """→ {task: {name: Split}}: the dev sets that training scores, by the settings of a run."""
    return {task: {name: load_split(task, name, settings.data, tokenizer, settings, settings.limit)
                   for name in TASKS[task].dev_sets} for task in tasks}


@torch.inference_mode()
def run_split(model, task, split, device, autocast, bar=None):
    """→ the model's outputs [n, outputs] for every example of a split, in the file's order. Batches
    hold sequences of like length, so that attention's grid has little padding."""
    model.eval()
    outputs = torch.empty(len(split), TASKS[task].outputs)
    for indices in split.by_length(TOKENS):
        with autocast():
            outputs[indices] = model(task, split.batch(indices).to(device)).cpu()
        if bar is not None:
            bar.update(len(indices))
    return outputs


def evaluate(model, splits, device, autocast):
    """splits {task: {split name: Split}} → scores as in metrics.json (of the labeled splits), and
    predictions {(task, split name): [prediction, …]}. A task's further splits get their name in
    brackets."""
    scores, predictions = {}, {}
    total = sum(len(split) for named in splits.values() for split in named.values())
    with progress_bar("evaluate", total, "example", leave=False) as bar:
        for task, named in splits.items():
            for number, (name, split) in enumerate(named.items()):
                outputs = run_split(model, task, split, device, autocast, bar)
                predictions[task, name] = predicted = TASKS[task].predict(outputs).tolist()
                if split.labels is None:
                    continue
                for metric, function in TASKS[task].metrics.items():
                    key = metric if number == 0 else f"{metric} ({name})"
                    scores.setdefault(task, {})[key] = function(predicted, split.labels.tolist())
    return summary(scores) if scores else {}, predictions


def model_fingerprint(model, splits, precision):
    """A fingerprint of all that scores depend on: each module's type and plain attributes (pooling,
    the adapter of each task, a LoRA's alpha), each parameter and buffer (masks, which no file
    holds), and the rows and labels of `splits` {task: Split}."""
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


def tasks_that_judge(model, texts):
    """The model's tasks that fit --text, or --text and --pair. UserError if one is empty, or if no
    task fits."""
    if not all(text.strip() for text in texts):
        raise UserError("--text or --pair is empty; there is nothing to judge")
    tasks = [task for task in model.heads if len(TASKS[task].columns) == len(texts)]
    if not tasks:
        judged = "pairs of texts: add" if len(texts) == 1 else "single texts: leave out"
        raise UserError(f"this run's tasks ({', '.join(model.heads)}) judge {judged} --pair")
    return tasks


def describe_prediction(task, outputs):
    """outputs [outputs] of one example → {"label": its name, "probability": …}, or "similarity" of
    a regression."""
    row = TASKS[task]
    if row.is_regression:
        value = outputs.item()
        nearest = round(min(max(value, 0), row.max_label))
        return {"label": row.label_names[nearest], "similarity": value}
    probabilities = (outputs.softmax(dim=0) if row.outputs > 1
                     else torch.stack([(-outputs).sigmoid(), outputs.sigmoid()]).squeeze(1))
    return {"label": row.label_names[probabilities.argmax()],
            "probability": probabilities.max().item()}


def write_predictions(folder, splits, predictions):
    """Write a prediction file for each split, in the form that the task's graders read."""
    for (task, name), predicted in predictions.items():
        file_name, text = TASKS[task].write(TASKS[task], task, name, splits[task][name].ids,
                                            predicted)
        with atomic_write(Path(folder) / file_name) as file:
            file.write(text.encode())
