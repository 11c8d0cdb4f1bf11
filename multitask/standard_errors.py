"""How much of a score is chance: its standard error over the examples of a dev set.

The bootstrap (Efron 1979): a score is computed on DRAWS samples of as many examples, drawn with
replacement; the standard deviation of these scores is its standard error. Scores on the same
examples are computed on the same samples: the standard deviation of their difference then is that
of a comparison example by example, in which examples that are hard for both cancel out.
"""

import re
import warnings
from pathlib import Path

import numpy as np

from bert import UserError
from bert.files import fingerprint
from multitask.evaluation import read_split
from multitask.metrics import main_scores, summary
from multitask.tasks import TASKS

DRAWS = 400


def bootstrap(metric, predictions, labels, examples, draws=DRAWS):
    """→ the scores [draws] of as many samples. `examples`, the fingerprint of the examples, seeds
    the samples: the same for the same examples, independent ones for others."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    random, count = np.random.default_rng(int(examples, 16)), len(labels)
    samples = (random.integers(count, size=count) for _ in range(draws))
    return np.array([metric(predictions[sample], labels[sample]) for sample in samples])


def fingerprint_of(examples):
    """The fingerprint of a list of Examples."""
    return fingerprint(*(f"{example.id} {example.label};" for example in examples))


def read_predictions(path, task):
    """→ {id: prediction} of a file that Task.write has made."""
    found, named = {}, TASKS[task].string_labels and TASKS[task].label_names
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, answer = re.split(r"\s*[,\t]\s*", line.strip())
        found[name] = named.index(answer) if named else float(answer)
    return found


def saved_bootstraps(folder, settings):
    """→ {task or "overall": scores [DRAWS]} of a run, from the predictions in its folder and the
    labels in its data, which `settings` (of run.json) names. A task whose files are gone, or are of
    other examples, is left out."""
    scores = {}
    for task, row in TASKS.items():
        split = row.dev_sets[0]
        name, _ = row.write(row, task, split, [], [])
        path = Path(folder, "predictions", name)
        if not path.is_file():
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                examples = read_split(task, split, settings["data"], settings["strict_rows"])
            examples = examples[:settings["limit"] or None]
            predicted = read_predictions(path, task)
            predictions = [predicted[example.id] for example in examples]
        except (UserError, OSError, ValueError, LookupError, TypeError):
            continue
        metric, function = next(iter(row.metrics.items()))
        scores[task] = {metric: bootstrap(function, predictions, [e.label for e in examples],
                                          fingerprint_of(examples))}
    return main_scores(summary(scores)) if scores else {}


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


def difference_table(rows, names):
    """The differences from each column's best score, marked if they are noise: within 2 standard
    errors."""
    table = [["difference from the best", *names], *([row.name] for row in rows)]
    for name in table[0][1:]:
        for line, (mean, _, difference, error) in zip(table[1:], against_best(rows, name)):
            shown = "" if mean is None else "best" if not difference else f"{difference:+.3f}"
            if difference and error is not None:
                shown += f" ±{error:.3f}" + (" ≈" if -difference <= 2 * error else "  ")
            line.append(shown)
    return table


def latex_table(rows, names, cells):
    """The cells (the header first; the scores `names` from the third column on) as a table for
    LaTeX, with \\usepackage{booktabs}."""
    table = [list(map(escape_latex, line)) for line in cells]
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
