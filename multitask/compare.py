"""Saved runs side by side, beside what the papers printed: a table as text, as Markdown and as
LaTeX, which differences are noise, and a picture."""

from pathlib import Path
from typing import NamedTuple

from bert import UserError
from bert.files import atomic_write
from common.plots import new_figure, save_figure
from common.tables import markdown_table, text_table
from multitask.metrics import main_scores
from multitask.recipes import RECIPES
from multitask.runs import RESUME, read_fields, read_scores
from multitask.settings import Settings
from multitask.standard_errors import saved_bootstraps
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


def against_best(rows, name):
    """→ for each row its mean score, the standard error of this, the difference from the best row's
    and the standard error of that, over the examples. None: no such score, or no predictions."""
    found = [[s[name] for s in row.scores if name in s] for row in rows]
    means = [sum(scores) / len(scores) if scores else None for scores in found]
    draws = [None if any(name not in one for one in row.bootstraps) else
             sum(one[name] for one in row.bootstraps) / len(row.bootstraps) for row in rows]
    best = max((n for n, mean in enumerate(means) if mean is not None), key=means.__getitem__)
    return [(mean, None if own is None else own.std(),
             None if mean is None else mean - means[best],
             None if own is None or draws[best] is None else (own - draws[best]).std())
            for mean, own in zip(means, draws)]


def difference_table(rows):
    """The differences from each column's best score, marked if they are noise: within 2 standard
    errors."""
    table = [["difference from the best", *score_names(rows)], *([row.name] for row in rows)]
    for name in table[0][1:]:
        for line, (mean, _, difference, error) in zip(table[1:], against_best(rows, name)):
            shown = "" if mean is None else "best" if not difference else f"{difference:+.3f}"
            if difference and error is not None:
                shown += f" ±{error:.3f}" + (" ≈" if -difference <= 2 * error else "  ")
            line.append(shown)
    return table


def latex_table(rows):
    """The table for LaTeX, with \\usepackage{booktabs}."""
    names, table = score_names(rows), [list(map(escape_latex, line)) for line in cells(rows)]
    for column, name in enumerate(names, 2):
        for line, (mean, own, difference, error) in zip(table[1:], against_best(rows, name)):
            if mean is not None:
                score = f"{mean:.3f}" if difference else f"\\mathbf{{{mean:.3f}}}"
                noise = difference and error is not None and -difference <= 2 * error
                line[column] = (f"${score}" + ("" if own is None else f" \\pm {own:.3f}")
                                + r"^{\approx}" * bool(noise) + "$")
    header, *body = (" & ".join(line) + r" \\" for line in table)
    return "\n".join([
        r"\begin{table}", r"\centering", r"\caption{Scores $\pm$ one standard error over the "
        r"examples (bootstrap). Bold: the best; $\approx$: within two standard errors of the "
        r"difference from the best, which may be noise.}",
        rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}", r"\toprule", header, r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def escape_latex(text):
    """Characters that LaTeX reads as commands, as text."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


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
    for name, text in (("comparison.md", markdown_table(cells(rows))),
                       ("comparison.tex", latex_table(rows))):
        with atomic_write(to / name) as file:
            file.write(text.encode())
    print(f"{text_table(cells(rows))}\n\n±: half the range over the seeds. Measured, and Alappat's "
          f"and Wang et al.'s: dev sets; Fuest & Tacke's: test sets.\n")
    if len(rows) > 1:
        print(f"{text_table(difference_table(rows))}\n\n±: its standard error over the examples of "
              f"the dev set, not over seeds; ≈: noise, within two of them.\n")
    print(*(to / f"comparison.{kind}" for kind in ("md", "tex", "png")), sep="   ")
