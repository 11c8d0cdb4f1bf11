"""What a person looks at: a run's table of scores and the picture of its curves, and runs side by
side, beside what the papers printed: a table as text and as Markdown, and a picture."""

from pathlib import Path
from types import SimpleNamespace

import torch

from bert import UserError
from bert.files import atomic_write
from common.plots import draw_curves, new_figure, save_figure
from common.tables import markdown_table, text_table
from multitask.metrics import main_scores
from multitask.recipes import RECIPES
from multitask.runs import RESUME, read_fields, read_scores
from multitask.settings import SHARED, Settings
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
            f"next: python evaluate.py {folder} --split test")


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


def draw_training(log, path):
    """Draw what the Log holds: losses, each task's first metric on dev and, of gradient surgery,
    the cosines of each two tasks' gradients with their share of conflicts."""
    kinds = dict.fromkeys(name for line in log.lines for name, value in line.items()
                          if isinstance(value, dict))        # "loss", further losses, "dev", …
    losses = {task if kind == "loss" else f"{kind}, {task}": points
              for kind in kinds if kind not in ("dev", "cosine", "conflict")
              for task, points in log.curves(kind).items()}
    scores = {}
    for name, points in log.curves("dev").items():
        if isinstance(points[0][1], dict):
            metric = next(iter(points[0][1]))
            name, points = f"{name} {metric}", [(step, values[metric]) for step, values in points]
        scores[name] = points
    conflicts = {pair: sum(value for _, value in points) / len(points)
                 for pair, points in log.curves("conflict").items()}
    cosines = {f"{pair}: {conflicts[pair]:.0%} in conflict": points
               for pair, points in log.curves("cosine").items()}
    panels = [("training loss of each task", losses), ("dev scores", scores)]
    if cosines:
        panels.append(("cosine of the tasks' gradients", cosines))
    draw_curves(panels, path)


def read_rows(folders):
    """→ rows of runs that differ in nothing but their seed: name, `scores` {task or "overall":
    score} and `minutes` of each run, parameters, `published` {task: score}."""
    groups = {}
    for folder in map(Path, folders):
        record = read_fields(folder, ("settings", "recipe", "complete", "times", "parameters"))
        if not record["complete"]:
            raise UserError(f"{folder} is not complete; {RESUME} {folder} goes on with it")
        same = repr(sorted((name, value) for name, value in record["settings"].items()
                           if name not in ("seed", "out", "overwrite", "device")
                           and value != getattr(Settings, name, None)))
        recipe = record["recipe"]
        row = groups.setdefault((recipe, same), SimpleNamespace(
            name=recipe or folder.name, scores=[], minutes=[], parameters=record["parameters"],
            published=RECIPES[recipe].published if recipe in RECIPES else {}))
        row.scores.append(main_scores(read_scores(folder)))
        row.minutes.append(record["times"]["train_seconds"] / 60)
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


def draw(rows, path):
    """Each score as a point for every run, the papers' as a ring."""
    names = score_names(rows)
    figure = new_figure(3 * max(len(names), 2), 1.2 + 0.3 * len(rows))
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names):
        for place, row in enumerate(rows):
            points = [s[name] for s in row.scores if name in s]
            axes.plot(points, [place] * len(points), "o", color="C0", alpha=0.6)
            if name in row.published:
                axes.plot(row.published[name], place, "o", color="C1", fillstyle="none")
        axes.set(title=name, yticks=range(len(rows)), yticklabels=[row.name for row in rows])
        axes.grid(alpha=0.3)
    figure.supxlabel("● measured, a point a seed    ○ as the paper printed it", fontsize="small")
    figure.axes[0].invert_yaxis()
    save_figure(figure, path)


def compare(folders, to):
    """Print the table and write comparison.md and comparison.png to the folder `to`."""
    rows = read_rows(folders)
    draw(rows, to / "comparison.png")
    with atomic_write(to / "comparison.md") as file:
        file.write(markdown_table(cells(rows)).encode())
    print(f"{text_table(cells(rows))}\n\n±: half the range over the seeds. Measured, and Alappat's "
          f"and Wang et al.'s: dev sets; Fuest & Tacke's: test sets.\n{to / 'comparison.md'}   "
          f"{to / 'comparison.png'}")
