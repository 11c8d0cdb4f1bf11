"""Measure importance on a run's tasks, training examples and losses, and show it."""

import torch

from common.log import progress_bar
from common.plots import new_figure, save_figure
from multitask.data import tokenize
from multitask.evaluation import TOKENS, check_outputs, read_split
from pruning.gates import importance, normalize


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


def task_importance(model, task, split, loss, device, kind="heads"):
    """→ raw importance [layers, parts] for one task of a MultitaskModel over all examples of a
    Split. loss(outputs, labels) → the mean over examples."""
    ids = []                                                 # of the batch now

    def batches():
        for indices in split.by_length(TOKENS):
            ids[:] = [split.ids[i] for i in indices]
            yield split.batch(indices).to(device)

    def summed(batch):
        bar.update(len(batch.labels))
        outputs = model(task, batch)
        check_outputs(outputs, task, ids)
        return loss(outputs, batch.labels) * len(batch.labels)

    with progress_bar(f"importance, {task}", len(split), "example", leave=False) as bar:
        return importance(model.eval().encoder(task), batches(), summed, kind)


def of_all_tasks(raw, norm="global"):
    """{task: raw importance} → importance from 0 to 1, of the one task or of the sum of several."""
    scores = [normalize(values, norm) for values in raw.values()]
    return scores[0] if len(scores) == 1 else normalize(sum(scores))


def draw_heat_maps(scores, path, part):
    """Draw scores {task: [layers, parts]} from 0 to 1; white: a part that is gone."""
    figure = new_figure(2 + 3.5 * len(scores), 2 + 0.25 * len(next(iter(scores.values()))))
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, (task, values) in zip(panels, scores.items()):
        image = axes.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1,
                            interpolation="nearest")
        axes.set(title=task, xlabel=part, yticks=range(len(values)))
        axes.xaxis.get_major_locator().set_params(integer=True)
        if part == "layer":
            axes.set(xlabel="", xticks=[])
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label="importance")
    figure.supxlabel(f"0: the {part} that matters least, 1: the one that matters most; white: "
                     f"removed", fontsize="small")
    save_figure(figure, path)
