"""log.jsonl: what happened in a run, a line of JSON each time."""

import json
import math

from bert.errors import UserError
from bert.files import writing


class Log:
    """log.jsonl, a line each time: {"step", "loss": {task: mean since the last line}, "seconds"} or
    {"step", "dev": scores, "seconds"}. Losses stay on the device until a line is due."""

    def __init__(self, path, step):
        """Begin the file, or go on with it after `step`: later lines are of steps to be done
        again."""
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
            raise UserError(f"a loss is no longer finite at step {step} ({means}); lower --lr")
        self.sums, self.last = {}, step
        self.write(step=step, loss=means, seconds=round(seconds, 1))
        return means

    def write(self, **line):
        self.lines.append(line)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error


def _read_lines(path):
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:                                   # cut short by a kill
            break
    return lines


def draw(panels, path):
    """Curves side by side, as a picture: panels is [(title, {name: [(step, value), …]})]."""
    from matplotlib.figure import Figure  # slow to import, needed once

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels):
        for name, points in curves.items():
            axes.plot(*zip(*points), marker="." if len(points) < 50 else "", label=name)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if curves:
            axes.legend()
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=120)
