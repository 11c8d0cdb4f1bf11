"""What a run reports while it works: log.jsonl, and the progress bar."""

import json
import math
import sys

import torch
from tqdm import tqdm

from bert.errors import UserError
from bert.files import atomic_write
from bert.json_files import NUMBER, read_json_lines

LINE = {"step": int, **dict.fromkeys(("loss?", "sparsity?", "distill?", "zeros?", "cosine?",
                                      "conflict?", "heldout?"), dict[str, NUMBER]),
        "dev?": dict[str, dict[str, NUMBER] | NUMBER]}        # of log.jsonl


class Log:
    """log.jsonl, a line each time: {"step", "loss": {task: mean since the last line}, "seconds"} or
    {"step", "dev": scores, "seconds"}. Losses stay on the device until a line is due. Without a
    path nothing is written."""

    def __init__(self, path, step):
        """Begin the file, or go on with it after `step`; later lines are dropped."""
        self.path, self.sums, self.lines = path, {}, []
        if path is None:
            return
        lines = read_json_lines(path, LINE) if path.is_file() else ()
        self.lines = [line for line in lines if line["step"] <= step]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def add(self, what, name, value, weight=1.0):
        """Add a number or scalar tensor, such as the "loss" of a task, already times its weight."""
        value = value.detach() if isinstance(value, torch.Tensor) else value
        total, weights = self.sums.get((what, name), (0.0, 0.0))
        self.sums[what, name] = total + value, weights + weight

    def write_means(self, step, seconds, total=float):
        """Write the means since the last line → {name: mean loss}. `total` waits for a GPU."""
        means = {}
        for (what, name), (value, weight) in self.sums.items():
            means.setdefault(what, {})[name] = total(value) / total(weight)
        if not all(map(math.isfinite, means["loss"].values())):
            raise UserError(f"a loss is no longer finite at step {step} ({means['loss']}); lower "
                            f"--lr")
        self.sums = {}
        self.write(step=step, **means, seconds=round(seconds, 1))
        return means["loss"]

    def write(self, **line):
        self.lines.append(line)
        if self.path is None:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error

    def curves(self, what):
        """→ {name: [(step, value), …]} of the lines' entries `what`, such as "loss"."""
        points = {}
        for line in self.lines:
            for name, value in line.get(what, {}).items():
                points.setdefault(name, []).append((line["step"], value))
        return points


def progress_bar(title, total, unit, done=0, leave=True, silent=False):
    """A tqdm bar; where stderr is a file, it writes a line only every 30 seconds."""
    return tqdm(total=total, initial=done, desc=title, unit=unit, leave=leave, disable=silent,
                mininterval=0.5 if sys.stderr.isatty() else 30)
