"""A search for stacks that knows how noisy its scores are.

Alappat ends by asking for a better way to stack interventions than greedy search, and names
Bayesian optimisation. What stands in a greedy search's way is noise: the best of many scores on a
few hundred examples is mostly luck. So the gain of a stack is modelled as a sum,

    gain(stack) = Σ effect(intervention) + noise,     noise ~ N(0, bootstrap variance of that gain)

with a Gaussian prior on the effects. The effects of one matrix are a Brownian motion, that starts
at 0 where everything is kept, in the time t = ‖W − W'‖²/‖W‖²: reductions of like size do alike, and
small ones do little. Matrices are independent. The posterior is Gaussian too (ridge regression).

First a third of the budget goes to interventions alone, spread over matrices and keeps. Then, round
by round, the posterior is sampled and each sample's own best stack is tried (Thompson sampling:
that is what looks good, or is uncertain). Chosen is the tried stack of the highest posterior mean,
or none if no mean is above 0.

Left out: interactions between matrices.
"""

import numpy as np

from laser.sweep import describe

ROUNDS = 4
FLOOR = 5.0                          # gains below −5 standard errors count as that: bad is bad
SCALES = np.geomspace(1e-9, 1e-2, 29)    # of the prior variance at t = 1; the likeliest is taken


def prior(times, places):
    """[G] times and places of the grid → covariance [G, G]: min(t, t') within a matrix."""
    same = np.array([[a == b for b in places] for a in places])
    return np.where(same, np.minimum.outer(times, times), 0.0)


def posterior(design, gains, noise, covariance):
    """design [S, G] of 0 and 1, gains and noise variances [S] → mean [G] and covariance [G, G] of
    the effects, the prior's scale chosen by the likelihood of the gains."""
    def negative_log_likelihood(scale):
        k = scale * design @ covariance @ design.T + np.diag(noise)
        return np.linalg.slogdet(k)[1] + gains @ np.linalg.solve(k, gains)

    scaled = min(SCALES, key=negative_log_likelihood) * covariance
    k = design @ scaled @ design.T + np.diag(noise)                      # [S, S]
    pull = np.linalg.solve(k, design @ scaled).T                         # [G, S]
    return pull @ gains, scaled - pull @ design @ scaled


def best_stack(effects, grid):
    """The best one of each matrix, where it is above 0: the best stack if effects add up."""
    best = {}
    for effect, i in zip(effects, grid):
        if effect > max(0.0, best.get(i.place, (0.0,))[0]):
            best[i.place] = (effect, i)
    return tuple(sorted(i for _, i in best.values()))


def initial_design(grid, count):
    """`count` interventions, alone, spread evenly over the grid's order."""
    return [(grid[n],) for n in np.unique(np.linspace(0, len(grid) - 1, count).round().astype(int))]


class EffectPosterior:
    """What is known of the effects, given the stacks tried so far."""

    def __init__(self, scorer, grid):
        self.scorer, self.grid, self.errors = scorer, grid, {}
        evaluator = scorer.outputs.evaluator
        times = [1 - describe(evaluator, i)["energy"] for i in grid]        # ‖W − W'‖²/‖W‖²
        self.covariance = prior(np.array(times), [i.place for i in grid])

    def update(self):
        self.tried = [stack for stack in self.scorer.gains if stack]
        for stack in self.tried:
            if stack not in self.errors:
                self.errors[stack] = max(self.scorer.noise(stack), 1e-4)
        errors = np.array([self.errors[stack] for stack in self.tried])
        gains = np.maximum([self.scorer.gains[stack] for stack in self.tried], -FLOOR * errors)
        self.design = np.array([[i in stack for i in self.grid] for stack in self.tried], float)
        self.mean, self.spread = posterior(self.design, gains, errors ** 2, self.covariance)

    def propose(self, count, rng):
        """Up to `count` stacks that were not tried: the best ones of posterior samples."""
        found = {}
        for effects in rng.multivariate_normal(self.mean, self.spread, 20 * count, method="eigh"):
            stack = best_stack(effects, self.grid)
            if stack and stack not in self.scorer.gains and len(found) < count:
                found[stack] = True
        return list(found)

    def choose(self):
        means = self.design @ self.mean
        return self.tried[means.argmax()] if means.max() > 0 else ()


def additive(scorer, grid, budget, seed=0):
    rng = np.random.default_rng(seed)
    scorer(initial_design(grid, max(1, budget // 3)))
    posterior_of_effects = EffectPosterior(scorer, grid)
    for left in range(ROUNDS, 0, -1):
        posterior_of_effects.update()
        scorer(posterior_of_effects.propose((budget - scorer.evaluations) // left, rng))
    posterior_of_effects.update()
    return posterior_of_effects.choose()
