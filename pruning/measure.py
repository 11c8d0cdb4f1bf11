"""Measure importance on a run's tasks, training examples and losses."""

import torch

from common.log import progress_bar
from multitask.data import tokenize
from multitask.evaluation import TOKENS, read_split
from pruning.gates import importance, normalize


def task_importance(model, task, split, loss, device, kind="heads"):
    """→ raw importance [layers, parts] for one task of a MultitaskModel over all examples of a
    Split. loss(outputs, labels) → the mean over examples."""
    model.eval()

    def summed(batch):
        bar.update(len(batch.labels))
        return loss(model(task, batch), batch.labels) * len(batch.labels)

    with progress_bar(f"importance, {task}", len(split), "example", leave=False) as bar:
        batches = (split.batch(indices).to(device) for indices in split.by_length(TOKENS))
        return importance(model.encoder(task), batches, summed, kind)


def training_sample(tokenizer, settings, tasks, examples=1000, seed=0):
    """→ {task: Split} of `examples` random training examples of each task (0: all of them)."""
    splits = {}
    for task in tasks:
        rows = read_split(task, "train", settings.data, settings.strict_rows)
        rows = rows[:settings.limit or None]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        splits[task] = tokenize([rows[i] for i in order[:examples or None]], tokenizer,
                                settings.pairs)
    return splits


def measure(model, splits, settings, device, kind="heads"):
    """→ {task: raw importance [layers, parts]} over {task: Split}. The model is on `device`."""
    return {task: task_importance(model, task, split, settings.loss_of(task), device, kind)
            for task, split in splits.items()}


def of_all_tasks(raw, norm="global"):
    """{task: raw importance} → importance from 0 to 1, of the one task or of the sum of several."""
    scores = [normalize(values, norm) for values in raw.values()]
    return scores[0] if len(scores) == 1 else normalize(sum(scores))
