"""What a person reads: a run's table of scores, its answer to a text, and runs side by side, beside
what the papers printed: tables that say which differences are noise, and a picture."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import torch

from bert import UserError
from bert.files import atomic_write
from common.cli import quoted
from common.tables import markdown_table, text_table
from multitask.metrics import main_scores
from multitask.pictures import draw_comparison
from multitask.recipes import RECIPES
from multitask.runs import is_trained, read_fields, read_scores, resume_command
from multitask.settings import SHARED, Settings
from multitask.standard_errors import difference_table, latex_table, saved_bootstraps
from multitask.tasks import TASKS


def score_table(scores, title="dev"):
    """{task: {metric: value}, "overall": …, "mean": …} as lines of text."""
    rows = [["task", "metric", title]]
    for name, value in scores.items():
        task, metrics = (name, value) if isinstance(value, dict) else ("", {name: value})
        rows += [[task, metric, f"{number:.3f}"] for metric, number in metrics.items()]
    return text_table(rows, left=2)


def score_line(epoch, scores, improved):
    """The scores of one evaluation in one line; `improved`: the tasks whose model is kept."""
    shown = [f"{name} {value:.3f}" for name, value in main_scores(scores).items()]
    tasks = {name for name, value in scores.items() if isinstance(value, dict)}
    which = "" if set(improved) == tasks else ": " + ", ".join(improved)
    return f"epoch {epoch:.4g}:  " + "  ".join(shown) + f"  (best so far{which})" * bool(improved)


def final_report(folder, record):
    best = ", ".join(f"step {step:,}" + (f" ({group})" if group != SHARED else "")
                     for group, step in record["best_step"].items())
    return (f"\n{score_table(read_scores(folder))}\n\nbest of the run: {best}; "
            f"{record['times']['train_seconds'] / 60:.1f} minutes in all\n"
            f"run: {folder}   curves: {folder / 'curves.png'}\n"
            f"next: python evaluate.py {quoted(folder)} --split test")


def tasks_that_judge(names, texts):
    """Those of the tasks `names` that fit --text, or --text and --pair. UserError if a text is
    empty, or if no task fits."""
    if not all(text.strip() for text in texts):
        raise UserError("--text or --pair is empty; there is nothing to judge")
    tasks = [task for task in names if len(TASKS[task].columns) == len(texts)]
    if not tasks:
        judged = "pairs of texts: add" if len(texts) == 1 else "single texts: leave out"
        raise UserError(f"these tasks ({', '.join(names)}) judge {judged} --pair")
    return tasks


def describe_prediction(task, outputs):
    """outputs [outputs] of one example → {"label": its name, "probability" or "similarity": …}"""
    row = TASKS[task]
    if row.is_regression:
        nearest = round(min(max(outputs.item(), 0), row.max_label))
        return {"label": row.label_names[nearest], "similarity": outputs.item()}
    probabilities = (outputs.softmax(dim=0) if row.outputs > 1
                     else torch.cat([(-outputs).sigmoid(), outputs.sigmoid()]))
    return {"label": row.label_names[probabilities.argmax()],
            "probability": probabilities.max().item()}


def read_rows(folders):
    """→ rows of trained runs that differ in nothing but their seed, and of each run that was made
    of another: name, `scores` {task or "overall": score}, `bootstraps` (saved_bootstraps) and
    `minutes` of each run, parameters, `published` {task: score}."""
    groups = {}
    for folder in map(Path, folders):
        record = read_fields(folder, ("settings", "recipe", "complete", "times", "parameters"))
        if not record["complete"]:
            raise UserError(f"{folder} is not complete; {resume_command(folder)} goes on with it")
        same = repr(sorted((name, value) for name, value in record["settings"].items()
                           if name not in ("seed", "out", "overwrite", "device")
                           and value != getattr(Settings, name, None)))
        recipe = record["recipe"] if is_trained(record) else ""
        group = (recipe, same) if is_trained(record) else folder
        row = groups.setdefault(group, SimpleNamespace(
            name=recipe or folder.name, folder=folder, scores=[], bootstraps=[], minutes=[],
            parameters=record["parameters"],
            published=RECIPES[recipe].published if recipe in RECIPES else {}))
        row.scores.append(main_scores(read_scores(folder)))
        row.bootstraps.append(saved_bootstraps(folder, record["settings"]))
        row.minutes.append(record["times"]["train_seconds"] / 60)
    names = Counter(row.name for row in groups.values())
    for row in groups.values():
        if names[row.name] > 1:
            row.name = f"{row.name} ({row.folder})"
    return list(groups.values())


def mean_and_spread(values):
    """".483 ±.005": the mean and half the range; "" of nothing."""
    if not values:
        return ""
    mean, half = sum(values) / len(values), (max(values) - min(values)) / 2
    return f"{mean:.3f}" + (f" ±{half:.3f}" if len(values) > 1 else "")


def score_names(rows):
    """Of the columns: tasks in the order of their table, others, the course's overall score."""
    found = {name: None for row in rows for s in row.scores for name in s if name != "mean"}
    others = [name for name in found if name not in (*TASKS, "overall")]
    return [name for name in (*TASKS, *others, "overall") if name in found]


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
    """Print the tables and write comparison.md, .tex and .png to the folder `to`."""
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
