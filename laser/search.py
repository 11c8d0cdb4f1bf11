"""Searches for the stack of interventions to keep, if any.

A search is given the gains of stacks on one half of the dev examples and returns the stack to
keep. Its budget is a number of evaluations, one for each new stack. Alappat chose and scored on the
same dev set; paper_protocol does the same. But the best of many noisy scores looks better than it
is, so held_out reports each gain on the other half,

    gain = score(edited model) − score(model),

with a bootstrap interval (Efron 1979): both models are scored many times on n examples drawn
with replacement, the same examples for both.
"""

from typing import NamedTuple

import numpy as np

from common.plots import new_figure, save_figure
from common.tables import text_table
from laser.additive import additive
from laser.interventions import format_stack
from laser.output_cache import scores_of
from laser.sweep import stacks_table


def halves(sizes, seed):
    """{task: n} → two disjoint {task: indices} at random: one for choosing, one for reporting."""
    choose, report = {}, {}
    for task, n in sizes.items():
        order = np.random.default_rng([seed, n]).permutation(n)
        choose[task], report[task] = np.sort(order[:n // 2]), np.sort(order[n // 2:])
    return choose, report


class Comparison(NamedTuple):
    """Predictions of an edited and the unedited model, and labels, {task: [n]} each; the metric in
    which they are compared: a task, overall or mean. `indices` {task: examples} to compare on."""

    edited: dict
    base: dict
    labels: dict
    metric: str

    def gain(self, indices):
        edited, base = (scores_of({task: side[task][i] for task, i in indices.items()},
                                  {task: self.labels[task][i] for task, i in indices.items()})
                        for side in (self.edited, self.base))
        return edited[self.metric] - base[self.metric]

    def bootstrap(self, indices, draws=1000):
        """→ [draws] gains on samples of `indices` drawn with replacement"""
        rng = np.random.default_rng(0)
        return np.array([self.gain({task: rng.choice(i, len(i)) for task, i in indices.items()})
                         for _ in range(draws)])

    def interval(self, indices):
        """→ the ends of the bootstrap interval of 95 %"""
        return np.quantile(self.bootstrap(indices), [0.025, 0.975]).tolist()


class StackScorer:
    """Scores stacks for a search: their gains in `metric` on the examples `indices` {task:
    indices}. `gains` {stack: gain} holds every stack that was tried."""

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
                self.gains[stack] = self.compare(stack).gain(self.indices)
        return [self.gains[stack] for stack in stacks]

    def compare(self, stack):
        """→ the Comparison of the stack with the unedited model"""
        edited, base = map(self.outputs.predictions, (stack, ()))
        return Comparison(edited, base, self.outputs.labels, self.metric)

    def standard_error(self, stack):
        """The standard error of a stack's gain, by the bootstrap."""
        return float(self.compare(stack).bootstrap(self.indices, draws=50).std())

    @property
    def evaluations(self):
        return len(self.gains) - 1

    def best(self):
        """The stack with the highest gain of all that were tried; () if no gain is above 0."""
        return max(self.gains, key=self.gains.get)


def single(scorer, grid, **_):
    """The best intervention alone."""
    scorer([(i,) for i in grid])
    return scorer.best()


def backwards(scorer, grid, **_):
    """Alappat: from the last layer down, the best intervention of each layer, or none, given the
    stack so far."""
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


SEARCHES = {"single": single, "backwards": backwards, "forwards": forwards, "additive": additive}


def paper_protocol(outputs, grid, metric):
    """Choose and score on all of dev, as in Alappat's table 1: the best single intervention for
    each task, and the greedy stack → {name: (stack, scores)}."""
    indices = {task: np.arange(len(split)) for task, split in outputs.splits.items()}
    chosen = {"as it is": ()}
    for score in (*outputs.splits, metric):
        chosen[f"best for {score}"] = single(StackScorer(outputs, indices, score), grid)
    chosen["backwards"] = backwards(StackScorer(outputs, indices, metric), grid)
    return {name: (stack, outputs.scores(stack)) for name, stack in chosen.items()}


def paper_table(chosen):
    """The result of paper_protocol as text."""
    return stacks_table("chosen and scored on all of dev", {
        name: {"laser": format_stack(stack)} | scores for name, (stack, scores) in chosen.items()})


def held_out(outputs, grid, metric, splits):
    """Run each search on the first half of each of `splits` seeded halvings → [{"search", "split",
    "laser", "evaluations", "selection_gain": gain on that half, "gain": on the other, "low" and
    "high": its interval of 95 %}]."""
    sizes, found = {task: len(split) for task, split in outputs.splits.items()}, []
    for seed in range(splits):
        choose, report = halves(sizes, seed)
        for name, search in SEARCHES.items():
            scorer = StackScorer(outputs, choose, metric)
            stack = tuple(sorted(search(scorer, grid, budget=len(grid), seed=seed)))
            comparison = scorer.compare(stack)
            low, high = comparison.interval(report)
            found.append({"search": name, "split": seed, "laser": format_stack(stack),
                          "gain": comparison.gain(report), "evaluations": scorer.evaluations,
                          "selection_gain": scorer.gains[stack], "low": low, "high": high})
    return found


def held_out_tables(found, metric):
    """The result of held_out, and for each search its mean gains and in how many splits its gain
    survives: the interval is above 0."""
    there = f"gain in {metric} on the other half"
    rows = [["chosen on one half", "split", "tried", "gain there", f"{there} [95 %]", ""], *(
        [row["search"], str(row["split"]), str(row["evaluations"]),
         f"{row['selection_gain']:+.4f}",
         f"{row['gain']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]", row["laser"] or "none"]
        for row in found)]
    means = [["mean gain", "where it was chosen", there.removeprefix("gain "), "survives"]]
    for name in dict.fromkeys(row["search"] for row in found):
        own = [row for row in found if row["search"] == name]
        means.append([name, *(f"{np.mean([row[key] for row in own]):+.4f}"
                              for key in ("selection_gain", "gain")),
                      f"{sum(row['low'] > 0 for row in own)} of {len(own)}"])
    return f"{text_table(rows)}\n\n{text_table(means)}"


def draw_gains(rows, title, path):
    """Draw the result of held_out: for each search the gain of every split on the half that it did
    not choose on, with its interval, and the mean over the splits as a line."""
    names = list(dict.fromkeys(row["search"] for row in rows))
    figure = new_figure(1.5 + 1.3 * len(names), 4)
    axes = figure.subplots()
    for x, name in enumerate(names):
        value, low, high = 100 * np.array([                  # in points
            [row[key] for row in rows if row["search"] == name] for key in ("gain", "low", "high")])
        places = x + (np.linspace(-0.25, 0.25, len(value)) if len(value) > 1 else np.zeros(1))
        axes.errorbar(places, value, np.abs([value - low, high - value]), fmt="o", markersize=4)
        axes.plot([x - 0.3, x + 0.3], [value.mean()] * 2, color="black", linewidth=1)
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="gain in points on the other half", title=title)
    save_figure(figure, path)
