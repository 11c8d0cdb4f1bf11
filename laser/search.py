"""Searches for the stack of interventions to keep, if any.

A search is given the gains of stacks on one half of the dev examples and returns the stack to
keep. Its budget is a number of evaluations, one for each new stack. Alappat chose and scored on the
same dev set; paper_protocol does the same.
"""

import numpy as np

from common.tables import format_number, text_table
from laser.additive import additive
from laser.heldout import Comparison, halves
from laser.interventions import format_stack


class StackScorer:
    """Scores stacks for a search: their gains in `metric` on the examples `indices` {task:
    indices}. `gains` {stack: gain} holds every stack that was tried."""

    def __init__(self, outputs, indices, metric):
        self.outputs, self.indices, self.metric = outputs, indices, metric
        self.gains = {(): 0.0}
        outputs.add([()])
        self.base = outputs.predictions(())

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
        outputs = self.outputs
        return Comparison(outputs.predictions(stack), self.base, outputs.labels, self.metric)

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
        if singles[intervention] <= 0:
            break
        if intervention.target in {i.target for i in kept}:
            continue
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
    names = list(chosen["as it is"][1])
    return text_table([["chosen and scored on all of dev", *names, ""], *(
        [name, *(format_number(scores[n]) for n in names), format_stack(stack)]
        for name, (stack, scores) in chosen.items())])


def held_out(outputs, grid, metric, splits):
    """Run each search on the first half of each of `splits` seeded halvings → [{"search", "split",
    "laser", "evaluations", "selection_gain": gain on that half, "gain": Gain on the other}]."""
    sizes, budget = {task: len(split) for task, split in outputs.splits.items()}, len(grid)
    found = []
    for seed in range(splits):
        choose, report = halves(sizes, seed)
        for name, search in SEARCHES.items():
            scorer = StackScorer(outputs, choose, metric)
            stack = tuple(sorted(search(scorer, grid, budget=budget, seed=seed)))
            found.append({"search": name, "split": seed, "laser": format_stack(stack),
                          "gain": scorer.compare(stack).gain_with_interval(report),
                          "evaluations": scorer.evaluations,
                          "selection_gain": scorer.gains[stack]})
    return found


def held_out_table(found, metric):
    """The result of held_out as text."""
    header = ("chosen on one half", "split", "tried", "gain there",
              f"gain in {metric} on the other half [95 %]", "")
    return text_table([header, *(
        (row["search"], str(row["split"]), str(row["evaluations"]),
         f"{row['selection_gain']:+.4f}", str(row["gain"]), row["laser"] or "none")
        for row in found)])


def summary_table(found, metric):
    """The mean gains of each search in held_out, and in how many splits its gain survives: the
    interval is above 0."""
    rows = [["mean gain", "where it was chosen", f"in {metric} on the other half", "survives"]]
    for name in dict.fromkeys(row["search"] for row in found):
        gains = [row["gain"] for row in found if row["search"] == name]
        selection = [row["selection_gain"] for row in found if row["search"] == name]
        rows.append([name, f"{np.mean(selection):+.4f}",
                     f"{np.mean([g.value for g in gains]):+.4f}",
                     f"{sum(g.survives for g in gains)} of {len(gains)}"])
    return text_table(rows)
