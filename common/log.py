"""What a run reports while it works: log.jsonl, and the progress bar."""

import json
import sys

import torch
from tqdm import tqdm

from bert.errors import UserError
from bert.files import atomic_write
from bert.json_files import NUMBER, read_json_lines

LINE = {"step": int, **dict.fromkeys(("loss?", "dev_loss?", "sparsity?", "distill?", "zeros?",
                                      "cosine?", "conflict?", "heldout?"), dict[str, NUMBER]),
        "dev?": dict[str, dict[str, NUMBER] | NUMBER]}        # of log.jsonl
SUMS = dict[str, tuple[torch.Tensor | NUMBER, torch.Tensor | NUMBER]]        # of sums_on_cpu


class Log:
    """log.jsonl, a line each time: {"step", "loss": {task: mean since the last line}, "seconds"} or
    {"step", "dev": scores, "dev_loss": {task: loss}, "seconds"}. Losses stay on the device until a
    line is due. Without a path nothing is written. finite_only: leave values that are not finite
    out of the means."""

    def __init__(self, path, step, sums=None, finite_only=False):
        """Begin the file, or go on with it after `step`, with the saved `sums_on_cpu` since the
        last line; later lines are dropped."""
        self.path, self.lines, self.finite_only = path, [], finite_only
        self.sums = {tuple(key.split(" ", 1)): pair for key, pair in (sums or {}).items()}
        if path is None:
            return
        lines = read_json_lines(path, LINE) if path.is_file() else ()
        self.lines = [line for line in lines if line["step"] <= step]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def add(self, what, name, value, weight=1.0):
        """Add a number or scalar tensor, such as the "loss" of a task, already times its weight."""
        value = value.detach() if isinstance(value, torch.Tensor) else value
        if self.finite_only:
            finite = torch.as_tensor(value).isfinite()
            value, weight = torch.where(finite, value, 0.0), weight * finite
        total, weights = self.sums.get((what, name), (0.0, 0.0))
        self.sums[what, name] = total + value, weights + weight

    def sums_on_cpu(self):
        """→ {"what name": (total, weights)} since the last line, to be saved and resumed from."""
        return {" ".join(key): tuple(number.cpu() if isinstance(number, torch.Tensor) else number
                           for number in pair) for key, pair in self.sums.items()}

    def write_means(self, step, seconds, total=float, skipped=0):
        """Write the means since the last line, and how many updates were left out so far, if any →
        {name: mean loss}. `total` waits for a GPU."""
        means = {}
        for (what, name), (value, weight) in self.sums.items():
            if weight := total(weight):                      # 0: no value of it was finite
                means.setdefault(what, {})[name] = total(value) / weight
        self.sums = {}
        means |= {"skipped": skipped} if skipped else {}
        self.write(step=step, **means, seconds=round(seconds, 1))
        return means.get("loss", {})

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
