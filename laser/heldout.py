"""Choosing on one half of the dev examples and reporting on the other.

The best of many noisy numbers looks better than it is, so the half on which an intervention was
chosen says nothing of its worth. The gain on the other half,
    gain = score(edited model) − score(model),
gets a bootstrap interval (Efron 1979): both models are scored again and again on n examples drawn
with replacement, the same ones for both.
"""

from typing import NamedTuple

import numpy as np

from laser.output_cache import scores_of
from laser.report import flat


class Gain(NamedTuple):
    """The gain, and its bootstrap interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def survives(self):
        return self.low > 0


def halves(sizes, seed):
    """{task: n} → two disjoint {task: rows}, by chance: one to choose on, one to report on."""
    choose, report = {}, {}
    for task, n in sizes.items():
        order = np.random.default_rng([seed, n]).permutation(n)
        choose[task], report[task] = np.sort(order[:n // 2]), np.sort(order[n // 2:])
    return choose, report


def score_on(rows, predictions, labels, metric):
    """The number called `by` (a task, overall or mean) of the examples in `rows` {task: rows}."""
    scores = scores_of({task: predictions[task][rows[task]] for task in predictions},
                       {task: labels[task][rows[task]] for task in predictions})
    return flat(scores)[metric]


def gain(rows, edited, base, labels, metric):
    """Predictions {task: [n]} of both models → the gain on `rows`."""
    return score_on(rows, edited, labels, metric) - score_on(rows, base, labels, metric)


def bootstrap(rows, edited, base, labels, metric, draws=1000, seed=0):
    """[draws] gains on samples of `rows` drawn with replacement."""
    rng, found = np.random.default_rng(seed), np.empty(draws)
    for number in range(draws):
        sample = {task: rng.choice(r, len(r)) for task, r in rows.items()}
        found[number] = gain(sample, edited, base, labels, metric)
    return found


def gain_with_interval(rows, edited, base, labels, metric, draws=1000, seed=0):
    drawn = bootstrap(rows, edited, base, labels, metric, draws, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Gain(gain(rows, edited, base, labels, metric), float(low), float(high))
