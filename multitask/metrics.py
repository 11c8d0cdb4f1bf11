"""How good predictions are: numbers from a list of predictions and a list of labels."""

import numpy as np

COURSE = ("sst", "para", "sts")


def accuracy(predictions, labels):
    """The fraction of predictions that equal their label."""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def pearson(predictions, labels):
    """Pearson's correlation, -1 to 1; 0 where it is undefined (a constant, or one value)."""
    from scipy import stats  # slow to import

    predictions, labels = np.asarray(predictions, float), np.asarray(labels, float)
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(stats.pearsonr(predictions, labels).statistic)


matthews = pearson           # Matthews' correlation of two classes: Pearson's of the zeros and ones


def spearman(predictions, labels):
    """Spearman's rank correlation, -1 to 1; 0 where it is undefined."""
    from scipy import stats  # slow to import

    return pearson(stats.rankdata(predictions), stats.rankdata(labels))


def f1(predictions, labels):
    """2·precision·recall/(precision + recall) of class 1; 0 if neither side has it."""
    predictions, labels = np.asarray(predictions) == 1, np.asarray(labels) == 1
    named = predictions.sum() + labels.sum()
    return float(2 * (predictions & labels).sum() / named) if named else 0.0


def main_scores(scores):
    """Scores as in metrics.json → {task: its first metric, "overall": …, "mean": …}."""
    return {name: next(iter(value.values())) if isinstance(value, dict) else value
            for name, value in scores.items()}


def summary(scores):
    """{task: {metric: value}} → the same with `mean`, the plain mean of every task's first metric,
    and, if the course's three tasks are among them, `overall` = (sst + para + (sts + 1)/2)/3."""
    main, totals = main_scores(scores), {}
    if set(COURSE) <= set(main):
        totals["overall"] = (main["sst"] + main["para"] + (main["sts"] + 1) / 2) / 3
    return {**scores, **totals, "mean": sum(main.values()) / len(main)}


def choose_by(scores):
    """The number by which the best epoch is chosen: `overall` if the course's tasks are all there
    is, else `mean`, in which every task counts."""
    tasks = {name for name, value in scores.items() if isinstance(value, dict)}
    return scores["overall" if tasks == set(COURSE) else "mean"]
