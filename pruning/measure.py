"""Importance measured on a saved run: its tasks, its data, its losses."""

import torch

from common.log import progress_bar
from multitask.data import tokenize
from multitask.evaluation import TOKENS, read_split
from pruning.gates import importance, normalize

ALL = "sum"                                              # of the tasks' normalized importance


def task_importance(model, task, split, loss, device, kind="heads"):
    """Raw importance [layers, parts] for one task of a MultitaskModel over all examples of a Split.
    `loss` (outputs, labels) → the mean over examples."""
    model.eval()

    def summed(batch):
        return loss(model(task, batch), batch.labels) * len(batch.labels)

    with progress_bar(f"importance, {task}", len(split), "example", leave=False) as bar:
        def batches():
            for indices in split.by_length(TOKENS):
                yield split.batch(indices).to(device)
                bar.update(len(indices))

        return importance(model.encoder(task), batches(), summed, kind)


def measure(model, tokenizer, settings, tasks, device, kind="heads", examples=1000, seed=0,
            data=None):
    """→ {task: raw importance [layers, parts]} over so many random training examples of each (0:
    all of them)."""
    raw = {}
    for task in tasks:
        rows = read_split(task, "train", data or settings.data,
                          settings.strict_rows)[:settings.limit or None]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        split = tokenize([rows[i] for i in order[:examples or None]], tokenizer, settings.pairs)
        raw[task] = task_importance(model, task, split, settings.loss_of(task), device, kind)
    return raw


def across_tasks(raw):
    """{task: raw importance} → that of all [layers, parts], in which each task counts the same."""
    return sum(values / values.nan_to_num().sum() for values in raw.values())


def of_all_tasks(raw, kind="heads", norm="global"):
    """{task: raw importance} → from 0 to 1, of the one task or of the sum of several."""
    return list(scored(raw, kind, norm).values())[-1]


def scored(raw, kind="heads", norm="global"):
    """{task: raw importance} → {task: the same from 0 to 1}; of several tasks the sum too, again
    from 0 to 1."""
    norm = "global" if kind == "layers" else norm            # a row of one has no shape
    scores = {task: normalize(values, norm) for task, values in raw.items()}
    return scores | ({ALL: normalize(sum(scores.values()), "global")} if len(scores) > 1 else {})
