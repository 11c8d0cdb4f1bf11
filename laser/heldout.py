"""Choose interventions on one half of the dev examples, and report their gain on the other.

The best of many noisy scores looks better than it is, so the half on which an intervention was
chosen overestimates it. The gain on the other half,

    gain = score(edited model) − score(model),

gets a bootstrap interval (Efron 1979): both models are scored many times on n examples drawn
with replacement, the same examples for both.
"""

from typing import NamedTuple

import numpy as np

from laser.output_cache import scores_of


class Gain(NamedTuple):
    """A gain, and its bootstrap interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def survives(self):
        return self.low > 0


def halves(sizes, seed):
    """{task: n} → two disjoint {task: indices} at random: one for choosing, one for reporting."""
    choose, report = {}, {}
    for task, n in sizes.items():
        order = np.random.default_rng([seed, n]).permutation(n)
        choose[task], report[task] = np.sort(order[:n // 2]), np.sort(order[n // 2:])
    return choose, report


def gain(indices, edited, base, labels, metric):
    """The gain in `metric` (a task, overall or mean) on the examples `indices` {task: indices}.
    edited, base: predictions {task: [n]} of both models; labels {task: [n]}."""
    edited_score, base_score = (
        scores_of({task: side[task][i] for task, i in indices.items()},
                  {task: labels[task][i] for task, i in indices.items()})[metric]
        for side in (edited, base))
    return edited_score - base_score


def bootstrap(indices, edited, base, labels, metric, draws=1000, seed=0):
    """→ [draws] gains on samples of `indices` drawn with replacement"""
    rng, found = np.random.default_rng(seed), np.empty(draws)
    for number in range(draws):
        sample = {task: rng.choice(i, len(i)) for task, i in indices.items()}
        found[number] = gain(sample, edited, base, labels, metric)
    return found


def gain_with_interval(indices, edited, base, labels, metric):
    """→ the Gain on `indices`; arguments as in `gain`"""
    drawn = bootstrap(indices, edited, base, labels, metric)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Gain(gain(indices, edited, base, labels, metric), float(low), float(high))
