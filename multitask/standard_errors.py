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


def bootstrap(metric, predictions, labels, examples):
    """→ the scores [DRAWS] of as many samples. `examples`, the fingerprint of the examples, seeds
    the samples: the same for the same examples, independent ones for others."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    random, count = np.random.default_rng(int(examples, 16)), len(labels)
    samples = (random.integers(count, size=count) for _ in range(DRAWS))
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
        except (UserError, OSError, ValueError, LookupError):
            continue
        metric, function = next(iter(row.metrics.items()))
        scores[task] = {metric: bootstrap(function, predictions, [e.label for e in examples],
                                          fingerprint_of(examples))}
    return main_scores(summary(scores)) if scores else {}
