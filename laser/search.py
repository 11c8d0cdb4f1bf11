"""Searches for the stack of interventions to keep, if any.

A search is given the gains of stacks, score(edited model) − score(model), on one half of the dev
examples and returns the stack to keep. Its budget is a number of evaluations, one for each new
stack. Alappat chose and scored on the same dev set, as paper_protocol does. But the best of many
noisy scores looks better than it is, so held_out reports each gain on the other half, with a
bootstrap interval (Efron 1979): both models are scored on the same examples, drawn with
replacement, many times."""

from functools import cache

import numpy as np

from common.plots import COLORS, new_figure, save_figure
from common.tables import rows_table
from laser.interventions import format_stack
from laser.output_cache import scores_of
from laser.sweep import approximation_stats

ROUNDS = 4
FLOOR = 5.0                              # gains are clipped at −5 standard errors
SCALES = np.geomspace(1e-9, 1e-2, 29)    # prior variances at t = 1; the most likely is used


def halves(sizes, seed):
    """{task: n} → two disjoint {task: indices} at random: one for choosing, one for reporting."""
    choose, report = {}, {}
    for task, n in sizes.items():
        order = np.random.default_rng([seed, n]).permutation(n)
        choose[task], report[task] = np.sort(order[:n // 2]), np.sort(order[n // 2:])
    return choose, report


def bootstrap(gain, indices, draws=1000):
    """→ [draws] of gain(indices), on samples of {task: examples} drawn with replacement"""
    rng = np.random.default_rng(0)
    return np.array([gain({task: rng.choice(i, len(i)) for task, i in indices.items()})
                     for _ in range(draws)])


def interval(gain, indices):
    """→ the ends of the bootstrap interval of 95 %"""
    return np.quantile(bootstrap(gain, indices), [0.025, 0.975]).tolist()


class StackScorer:
    """The gains of stacks in `metric` on the examples `indices` {task: examples}. `gains` {stack:
    gain} holds every stack that was tried, and ()."""

    def __init__(self, outputs, indices, metric):
        self.outputs, self.indices, self.metric = outputs, indices, metric
        self.gains = {(): 0.0}
        outputs.add([()])

    def __call__(self, stacks):
        """→ gains of the stacks; new ones are evaluated in one pass."""
        stacks = [tuple(sorted(stack)) for stack in stacks]
        self.outputs.add(stacks, "search")
        for stack in stacks:
            if stack not in self.gains:
                self.gains[stack] = self.gain_of(stack)(self.indices)
        return [self.gains[stack] for stack in stacks]

    def gain_of(self, stack):
        """→ a function of {task: examples} that returns the gain of the stack on them"""
        sides, labels = list(map(self.outputs.predictions, (stack, ()))), self.outputs.labels

        def gain(indices):
            edited, base = (scores_of({task: side[task][i] for task, i in indices.items()},
                                      {task: labels[task][i] for task, i in indices.items()})
                            for side in sides)
            return edited[self.metric] - base[self.metric]

        return gain

    def standard_error(self, stack):
        """The standard error of a stack's gain, by the bootstrap."""
        return float(bootstrap(self.gain_of(stack), self.indices, draws=50).std())


def single(scorer, grid, **_):
    """The best intervention alone, or none."""
    scorer([(i,) for i in grid])
    return max(scorer.gains, key=scorer.gains.get)


def backwards(scorer, grid, **_):
    """Alappat: from the last layer down, the best intervention of each layer, or none."""
    kept = ()
    for layer in sorted({i.layer for i in grid}, reverse=True):
        options = [kept, *((*kept, i) for i in grid if i.layer == layer)]
        gains = scorer(options)
        kept = options[gains.index(max(gains))]              # of equals the first, which is `kept`
    return kept


def forwards(scorer, grid, **_):
    """In order of individual gain, add each intervention that improves the stack so far."""
    singles = dict(zip(grid, scorer([(i,) for i in grid])))
    kept = ()
    for intervention in sorted(singles, key=singles.get, reverse=True):
        if singles[intervention] > 0 and intervention.target not in {i.target for i in kept}:
            before, after = scorer([kept, (*kept, intervention)])
            kept = (*kept, intervention) if after > before else kept
    return kept


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
    """A search that models the noise of its scores (Alappat suggests Bayesian optimization):

        gain(stack) = Σ effect(intervention) + noise,    noise ~ N(0, its bootstrap variance)

    A priori the effects of one matrix are a Brownian motion in t = ‖W − W'‖²/‖W‖²: reductions of
    similar size have similar effects. Matrices are independent. The posterior is Gaussian too.
    A third of the budget tries interventions alone. Then, in rounds, the search tries the best
    stack of each of some samples of the posterior (Thompson sampling). → the tried stack with the
    highest posterior mean, if that is above 0."""
    rng, standard_error = np.random.default_rng(seed), cache(scorer.standard_error)
    times = [1 - approximation_stats(scorer.outputs.evaluator, i)["energy"] for i in grid]
    prior = prior_covariance(np.array(times), [i.target for i in grid])
    first = np.linspace(0, len(grid) - 1, max(1, budget // 3)).round().astype(int)
    scorer([(grid[n],) for n in np.unique(first)])
    for rounds_left in range(ROUNDS, -1, -1):                # at 0 only the final posterior
        tried = [stack for stack in scorer.gains if stack]
        errors = np.array([max(standard_error(stack), 1e-4) for stack in tried])
        gains = np.maximum([scorer.gains[stack] for stack in tried], -FLOOR * errors)
        design = np.array([[i in stack for i in grid] for stack in tried], float)
        effects, uncertainty = posterior(design, gains, errors ** 2, prior)
        if rounds_left:
            count = (budget + 1 - len(scorer.gains)) // rounds_left     # () costs nothing
            samples = rng.multivariate_normal(effects, uncertainty, 20 * count, method="eigh")
            stacks = dict.fromkeys(best_stack(sample, grid) for sample in samples)
            scorer([stack for stack in stacks if stack not in scorer.gains][:count])
    means = design @ effects                                 # of the stacks that were tried
    return tried[means.argmax()] if means.max() > 0 else ()


SEARCHES = {"single": single, "backwards": backwards, "forwards": forwards, "additive": additive}


def paper_protocol(outputs, grid, metric):
    """Choose and score on all of dev, as in Alappat's table 1: the best single intervention for
    each task, and the greedy stack → rows {title: name, score: value, "": stack}."""
    indices = {task: np.arange(len(split)) for task, split in outputs.splits.items()}
    chosen = {"as it is": ()}
    for score in (*outputs.splits, metric):
        chosen[f"best for {score}"] = single(StackScorer(outputs, indices, score), grid)
    chosen["backwards"] = backwards(StackScorer(outputs, indices, metric), grid)
    return [{"chosen and scored on all of dev": name} | outputs.scores(stack)
            | {"": format_stack(stack)} for name, stack in chosen.items()]


def held_out(outputs, grid, metric, halvings):
    """Run each search on the first half of each of so many seeded halvings → [{"search", "split",
    "laser", "evaluations", "selection_gain": gain on that half, "gain": on the other, "low" and
    "high": its interval of 95 %}]."""
    sizes = {task: len(split) for task, split in outputs.splits.items()}
    found = []
    for seed in range(halvings):
        choose, report = halves(sizes, seed)
        for name, search in SEARCHES.items():
            scorer = StackScorer(outputs, choose, metric)
            stack = tuple(sorted(search(scorer, grid, budget=len(grid), seed=seed)))
            gain = scorer.gain_of(stack)
            low, high = interval(gain, report)
            found.append({"search": name, "split": seed, "laser": format_stack(stack),
                          "gain": gain(report), "evaluations": len(scorer.gains) - 1,
                          "selection_gain": scorer.gains[stack], "low": low, "high": high})
    return found


def held_out_tables(found, metric):
    """The result of held_out, and the means of each search; a gain survives if low is above 0."""
    means = []
    for name in dict.fromkeys(row["search"] for row in found):
        own = [row for row in found if row["search"] == name]
        means.append({"mean": name, "selection_gain": np.mean([r["selection_gain"] for r in own]),
                      "gain": np.mean([row["gain"] for row in own]),
                      "survives": f"{sum(row['low'] > 0 for row in own)} of {len(own)}"})
    return (f"gains in {metric}: selection_gain is on the half on which the search chose, gain on "
            f"the other,\nlow and high its interval of 95 %\n\n{rows_table(found)}\n\n"
            f"{rows_table(means)}")


def draw_gains(rows, title, path):
    """Draw the result of held_out: each gain with its interval, the mean of a search as a line."""
    names = list(dict.fromkeys(row["search"] for row in rows))
    figure = new_figure(1.5 + 1.3 * len(names), 4)
    axes = figure.subplots()
    for x, name in enumerate(names):
        value, low, high = 100 * np.array([                  # in points
            [row[key] for row in rows if row["search"] == name] for key in ("gain", "low", "high")])
        places = x + 0.1 * (np.arange(len(value)) - (len(value) - 1) / 2)
        axes.errorbar(places, value, np.abs([value - low, high - value]), fmt="o", markersize=4,
                      color=COLORS[0], label="a split: gain and its 95 % interval" * (not x))
        axes.plot([x - 0.3, x + 0.3], [value.mean()] * 2, color=COLORS[1], linewidth=2,
                  label="mean over the splits" * (not x))
    axes.axhline(0, color="gray", linewidth=0.8, label="the unedited model")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.set(ylabel="gain in points on the other half", title=title, xticks=range(len(names)),
             xticklabels=names)
    save_figure(figure, path)
