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


def halves(sizes, seed):
    """{task: n} → two disjoint {task: indices} at random: one for choosing, one for reporting."""
    choose, report = {}, {}
    for task, n in sizes.items():
        order = np.random.default_rng([seed, n]).permutation(n)
        choose[task], report[task] = np.sort(order[:n // 2]), np.sort(order[n // 2:])
    return choose, report


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


class Comparison(NamedTuple):
    """Predictions of an edited and the unedited model, and labels, {task: [n]} each; the metric in
    which they are compared: a task, overall or mean."""

    edited: dict
    base: dict
    labels: dict
    metric: str

    def gain(self, indices):
        """The gain on the examples {task: indices}."""
        edited, base = (scores_of({task: side[task][i] for task, i in indices.items()},
                                  {task: self.labels[task][i] for task, i in indices.items()})
                        for side in (self.edited, self.base))
        return edited[self.metric] - base[self.metric]

    def bootstrap(self, indices, draws=1000):
        """→ [draws] gains on samples of `indices` drawn with replacement"""
        rng, found = np.random.default_rng(0), np.empty(draws)
        for number in range(draws):
            found[number] = self.gain({task: rng.choice(i, len(i)) for task, i in indices.items()})
        return found

    def gain_with_interval(self, indices):
        """→ the Gain on `indices`"""
        low, high = np.quantile(self.bootstrap(indices), [0.025, 0.975])
        return Gain(self.gain(indices), float(low), float(high))
