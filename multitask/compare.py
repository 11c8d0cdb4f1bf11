"""Saved runs side by side, beside what the papers printed: a table as text, as Markdown and as
LaTeX, which differences are noise, and a picture."""

from pathlib import Path
from typing import NamedTuple

from bert import UserError
from bert.files import atomic_write
from common.tables import markdown_table, text_table
from multitask.metrics import main_scores
from multitask.pictures import draw_comparison
from multitask.recipes import RECIPES
from multitask.runs import RESUME, read_fields, read_scores
from multitask.settings import Settings
from multitask.standard_errors import difference_table, latex_table, saved_bootstraps
from multitask.tasks import TASKS


class Row(NamedTuple):
    """Runs that differ in nothing but their seed."""

    name: str
    scores: list                                     # {task or "overall": score} of each run
    parameters: dict                                 # {"trained", "stored"}
    minutes: list
    published: dict                                  # {task: score}
    bootstraps: list                                 # of each run, as saved_bootstraps gives them


def read_rows(folders):
    """→ [Row]. Runs of equal settings but for the seed make one row; settings of other versions
    count too."""
    groups = {}
    for folder in map(Path, folders):
        record = read_fields(folder, ("settings", "recipe", "complete", "times", "parameters"))
        if not record["complete"]:
            raise UserError(f"{folder} is not complete; {RESUME} {folder} goes on with it")
        same = repr(sorted((name, value) for name, value in record["settings"].items()
                           if name not in ("seed", "out", "overwrite", "device")
                           and value != getattr(Settings, name, None)))
        groups.setdefault((record["recipe"], same), []).append((folder, record))
    rows = []
    for (recipe, _), members in groups.items():
        rows.append(Row(recipe or members[0][0].name,
                        [main_scores(read_scores(folder)) for folder, _ in members],
                        members[0][1]["parameters"],
                        [record["times"]["train_seconds"] / 60 for _, record in members],
                        RECIPES[recipe].published if recipe in RECIPES else {},
                        [saved_bootstraps(folder, record["settings"])
                         for folder, record in members]))
    return rows


def mean_and_spread(values):
    """".483 ±.005": the mean and half the range; "" of nothing."""
    if not values:
        return ""
    mean, half = sum(values) / len(values), (max(values) - min(values)) / 2
    return f"{mean:.3f}" + (f" ±{half:.3f}" if len(values) > 1 else "")


def score_names(rows):
    """Of the columns: tasks in the order of their table, then those that it has not, and the
    course's overall score."""
    found = {name: None for row in rows for s in row.scores for name in s if name != "mean"}
    order = [*TASKS, *(name for name in found if name not in TASKS and name != "overall")]
    return [name for name in (*order, "overall") if name in found]


def cells(rows):
    """The table: a list of texts for the header and for each row."""
    names = score_names(rows)
    printed = [name for name in names if any(name in row.published for row in rows)]
    header = ["run", "seeds", *names, "trained", "stored", "minutes",
              *(f"published: {name}" if name == printed[0] else name for name in printed)]
    return [header] + [
        [row.name, str(len(row.scores)),
         *(mean_and_spread([s[name] for s in row.scores if name in s]) for name in names),
         *(f"{row.parameters[name] / 1e6:.2f}M" for name in ("trained", "stored")),
         f"{sum(row.minutes) / len(row.minutes):.1f}",
         *(f"{row.published[name]:.3f}" if name in row.published else "" for name in printed)]
        for row in rows]


def compare(folders, to):
    """Print the table and write comparison.md and comparison.png to the folder `to`."""
    rows = read_rows(folders)
    names = score_names(rows)
    draw_comparison(rows, names, to / "comparison.png")
    for name, text in (("comparison.md", markdown_table(cells(rows))),
                       ("comparison.tex", latex_table(rows, names, cells(rows)))):
        with atomic_write(to / name) as file:
            file.write(text.encode())
    print(f"{text_table(cells(rows))}\n\n±: half the range over the seeds. Measured, and Alappat's "
          f"and Wang et al.'s: dev sets; Fuest & Tacke's: test sets.\n")
    if len(rows) > 1:
        print(f"{text_table(difference_table(rows, names))}\n\n±: its standard error over the "
              f"examples of the dev set, not over seeds; ≈: noise, within two of them.\n")
    print(*(to / f"comparison.{kind}" for kind in ("md", "tex", "png")), sep="   ")
