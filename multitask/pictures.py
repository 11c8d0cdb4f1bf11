"""The curves of a run, and runs side by side. One color is one task in every panel."""

import math

from common.plots import COLORS, new_figure, save_figure
from multitask.standard_errors import against_best
from multitask.tasks import TASKS

NO_LOSS = ("dev", "dev_loss", "cosine", "conflict", "zeros")         # other entries of a log's line


def read_curves(lines, what):
    """→ {name: [(step, value), …]} of the entries `what` in the lines of log.jsonl; of a task's
    metrics the first."""
    curves = {}
    for line in lines:
        entry = line.get(what)
        for name, value in entry.items() if isinstance(entry, dict) else ():
            value = next(iter(value.values()), math.nan) if isinstance(value, dict) else value
            curves.setdefault(name, []).append((line["step"], value))
    return curves


def chance(task, what):
    """The loss or score of answers that know nothing but the number of classes; None of a
    regression's loss and of other losses."""
    row = TASKS.get(task)
    if row is None or what not in ("loss", "dev") or (row.is_regression and what == "loss"):
        return None
    classes = len(row.label_names)
    first = next(iter(row.metrics))
    return math.log(classes) if what == "loss" else 1 / classes if first == "accuracy" else 0


def draw_training(lines, path):
    """Draw the lines of log.jsonl: losses, dev beside training (those of regressions, and further
    ones, on axes of their own), dev scores, of gradient surgery the cosines of each two tasks'
    gradients, of r-softmax the zeros of attention."""
    losses, scores = read_curves(lines, "loss"), read_curves(lines, "dev")
    if len(scores) == 2:                                     # of one task
        scores.pop("mean", None)
    dev_losses = read_curves(lines, "dev_loss")
    squared = {task: points for task, points in losses.items()
               if task in TASKS and TASKS[task].is_regression}
    classes = {task: points for task, points in losses.items() if task not in squared}
    further = dict.fromkeys(name for line in lines for name, value in line.items()
                            if isinstance(value, dict) and name not in ("loss", *NO_LOSS))
    panels = [("loss: classes (nats)", "loss", classes),
              ("loss: regression", "loss", squared),
              *((f"training loss: {name}", name, read_curves(lines, name)) for name in further),
              ("dev scores", "dev", scores),
              ("cosine of two tasks' gradients", "cosine", read_curves(lines, "cosine")),
              ("share of zeros in attention", "zeros", read_curves(lines, "zeros"))]
    panels = [panel for panel in panels if panel[2]]
    tasks = list(dict.fromkeys([*losses, *scores]))
    width = 2 if len(panels) == 4 else min(max(len(panels), 1), 3)
    height = math.ceil(max(len(panels), 1) / width)
    figure = new_figure(5 * width, 3.6 * height)
    for number, (title, what, curves) in enumerate(panels, 1):
        axes = figure.add_subplot(height, width, number)
        for place, (name, points) in enumerate(curves.items()):
            color, style = str(place % 3 / 3), "-:"[place // 3 % 2]            # two tasks' cosine
            if name in tasks:                                # dashed: overall, mean
                color = COLORS[tasks.index(name) % len(COLORS)]
                style = "-" if name in losses else "--"
            axes.plot(*zip(*points), label=curve_label(lines, what, name), color=color,
                      marker="." if len(points) < 50 else "", linestyle=style)
            if chance(name, what) is not None:
                axes.axhline(chance(name, what), color=color, linestyle=":", linewidth=1)
        if what == "loss":
            draw_dev_losses(axes, {name: points for name, points in dev_losses.items()
                                   if name in curves}, tasks)
        if what in ("loss", "dev") and any(chance(name, what) is not None for name in curves):
            axes.plot([], [], ":", color="gray", label="chance")
        if what == "cosine":
            axes.axhline(0, color=COLORS[5], linewidth=2, label="0: below it a conflict")
        axes.set(xlabel="step", title=title, xlim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_dev_losses(axes, curves, tasks):
    """Add the dev losses of {task: points} to the axes of the training losses."""
    for name, points in curves.items():
        color = COLORS[tasks.index(name) % len(COLORS)]
        axes.plot(*zip(*points), "o--", markersize=4, label=f"{name}, dev", color=color)


def curve_label(lines, what, name):
    """A curve's name in the legend: with the metric, or the share of steps in conflict."""
    if what == "dev" and name in TASKS:
        return f"{name} {next(iter(TASKS[name].metrics))}"
    steps = [line["conflict"][name] for line in lines if name in line.get("conflict", {})]
    return f"{name}: {sum(steps) / len(steps):.0%} in conflict" if steps else name


def draw_comparison(rows, names, path):
    """Each score as a point for every run of a row, the mean with its standard error as a bar, what
    the papers printed as a ring; all panels have one scale."""
    figure = new_figure(3 * max(len(names), 2), 1.6 + 0.3 * len(rows))
    panels = figure.subplots(1, len(names), sharey=True, sharex=True, squeeze=False)[0]
    for axes, name in zip(panels, names):
        for place, (row, (mean, error, *_)) in enumerate(zip(rows, against_best(rows, name))):
            points = [s[name] for s in row.scores if name in s]
            axes.plot(points, [place] * len(points), "o", color=COLORS[0], alpha=0.6)
            if error is not None and mean is not None:
                axes.errorbar(mean, place, xerr=error, color=COLORS[0], capsize=3)
            if name in row.published:
                axes.plot(row.published[name], place, "D", color=COLORS[1], fillstyle="none")
        axes.set(title=name, yticks=range(len(rows)), yticklabels=[row.name for row in rows],
                 ylim=(len(rows) - 0.5, -0.5))
        axes.grid(alpha=0.3)
    figure.supxlabel("● measured, a point a seed   ├─┤ their mean ± one standard error over the "
                     "examples   ◇ as the paper printed it", fontsize="small")
    save_figure(figure, path)
