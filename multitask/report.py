"""What a person looks at when a run has ended: the table of scores and the picture of its curves."""

import json
import math

from bert import UserError
from bert.files import writing


def score_table(scores, title="dev"):
    """{task: {metric: value}, "overall": …, "mean": …} as lines of text."""
    rows = []
    for task, metrics in scores.items():
        if isinstance(metrics, dict):
            rows += [(task, metric, value) for metric, value in metrics.items()]
        else:
            rows.append(("", task, metrics))
    width = max(len(metric) for _, metric, _ in rows)
    lines = [f"{'task':7} {'metric':{width}} {title:>7}"]
    return "\n".join(lines + [f"{task:7} {metric:{width}} {value:7.3f}" for task, metric, value in rows])


def score_line(epoch, scores, better):
    """The scores of one evaluation in one line."""
    shown = [f"{name} {next(iter(s.values())) if isinstance(s, dict) else s:.3f}"
             for name, s in scores.items()]
    return f"epoch {epoch:.4g}:  " + "  ".join(shown) + ("  (best so far)" if better else "")


class Log:
    """log.jsonl, a line each time: {"step", "loss": {task: mean since the last line}, "seconds"} or
    {"step", "dev": scores, "seconds"}. Losses stay on the device until a line is due."""

    def __init__(self, path, step):
        """Begin the file, or go on with it after `step`: later lines are of steps to be done again."""
        self.path, self.sums, self.last = path, {}, step
        self.lines = [line for line in _read_lines(path) if line["step"] <= step]
        with writing(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def add_loss(self, task, loss):
        self.sums[task] = self.sums.get(task, 0.0) + loss.detach()

    def write_losses(self, step, seconds):
        """Means since the last line → {task: mean}. Reading them makes a GPU finish its work."""
        means = {task: float(loss) / (step - self.last) for task, loss in self.sums.items()}
        if not all(map(math.isfinite, means.values())):
            raise UserError(f"a loss is no number any more at step {step} ({means}); lower --lr")
        self.sums, self.last = {}, step
        self.write(step=step, loss=means, seconds=round(seconds, 1))
        return means

    def write(self, **line):
        self.lines.append(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _read_lines(path):
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:                                   # cut short by a kill
            break
    return lines


def draw_curves(lines, path):
    """Losses over steps, and dev scores over epochs, as a picture."""
    from matplotlib.figure import Figure                     # slow to import, needed once

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [line for line in lines if "loss" in line]
    for task in losses[0]["loss"] if losses else ():
        left.plot([x["step"] for x in losses], [x["loss"][task] for x in losses], label=task)
    scores = [line for line in lines if "dev" in line]
    for task, metrics in scores[0]["dev"].items() if scores else ():
        values = [x["dev"][task] for x in scores]
        name = task
        if isinstance(metrics, dict):
            metric = next(iter(metrics))
            name, values = f"{task} {metric}", [value[metric] for value in values]
        right.plot([x["step"] for x in scores], values, marker="o", label=name)
    left.set(xlabel="step", ylabel="training loss", title="loss of each task")
    right.set(xlabel="step", ylabel="score", title="dev scores")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=120)
