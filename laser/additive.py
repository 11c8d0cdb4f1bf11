"""A search for stacks of interventions that models the noise of its scores.

The best of many scores on a few hundred examples is mostly noise, and a greedy search follows it.
Alappat suggests Bayesian optimization instead. Here the gain of a stack is a sum,

    gain(stack) = Σ effect(intervention) + noise,     noise ~ N(0, bootstrap variance of that gain)

with a Gaussian prior: the effects of one matrix are a Brownian motion in t = ‖W − W'‖²/‖W‖², so
reductions of similar size have similar effects, and small reductions have small effects; matrices
are independent. The posterior is Gaussian too (ridge regression).

A third of the budget tries interventions alone. Then, in rounds, the search samples the posterior
and tries the best stack of each sample (Thompson sampling: stacks that look good, or are
uncertain). It returns the tried stack with the highest posterior mean, if that is above 0.
"""

from functools import cache

import numpy as np

from laser.sweep import approximation_stats

ROUNDS = 4
FLOOR = 5.0                              # gains are clipped at −5 standard errors
SCALES = np.geomspace(1e-9, 1e-2, 29)    # prior variances at t = 1; the most likely is used


def prior_covariance(times, targets):
    """times t [G], targets [G] → [G, G]: min(t, t') within a matrix, 0 between matrices"""
    same = np.array([[a == b for b in targets] for a in targets])
    return np.where(same, np.minimum.outer(times, times), 0.0)


def posterior(design, gains, noise, covariance):
    """design [S, G], 1 where an intervention is in a stack; gains [S], noise variances [S]; prior
    covariance [G, G], whose scale is chosen by the likelihood of the gains → mean [G] and
    covariance [G, G] of the effects"""
    def negative_log_likelihood(scale):
        k = scale * design @ covariance @ design.T + np.diag(noise)
        return np.linalg.slogdet(k)[1] + gains @ np.linalg.solve(k, gains)

    scaled = min(SCALES, key=negative_log_likelihood) * covariance
    k = design @ scaled @ design.T + np.diag(noise)                      # [S, S]
    weights = np.linalg.solve(k, design @ scaled).T                      # [G, S]
    return weights @ gains, scaled - weights @ design @ scaled


def best_stack(effects, grid):
    """For each matrix the intervention of the highest effect, if it is above 0."""
    best = {}
    for effect, i in zip(effects, grid):
        if effect > max(0.0, best.get(i.target, (0.0,))[0]):
            best[i.target] = (effect, i)
    return tuple(sorted(i for _, i in best.values()))


def additive(scorer, grid, budget, seed=0):
    """→ the stack to keep; the module's docstring describes the search"""
    rng, standard_error = np.random.default_rng(seed), cache(scorer.standard_error)
    times = [1 - approximation_stats(scorer.outputs.evaluator, i)["energy"] for i in grid]
    covariance = prior_covariance(np.array(times), [i.target for i in grid])
    spread = np.linspace(0, len(grid) - 1, max(1, budget // 3)).round().astype(int)
    scorer([(grid[n],) for n in np.unique(spread)])
    for rounds_left in range(ROUNDS, -1, -1):
        tried = [stack for stack in scorer.gains if stack]
        errors = np.array([max(standard_error(stack), 1e-4) for stack in tried])
        gains = np.maximum([scorer.gains[stack] for stack in tried], -FLOOR * errors)
        design = np.array([[i in stack for i in grid] for stack in tried], float)
        mean, spread = posterior(design, gains, errors ** 2, covariance)
        if rounds_left:
            count = (budget + 1 - len(scorer.gains)) // rounds_left     # () costs nothing
            samples = rng.multivariate_normal(mean, spread, 20 * count, method="eigh")
            stacks = dict.fromkeys(best_stack(effects, grid) for effects in samples)
            scorer([stack for stack in stacks if stack not in scorer.gains][:count])
    means = design @ mean
    return tried[means.argmax()] if means.max() > 0 else ()
