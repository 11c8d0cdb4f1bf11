"""Which stack of interventions to keep, if any.

    python -m laser search RUN                     # 5 splits of dev; resumable: the same command

A search asks for the gains of stacks on one half of the dev examples, the only half it sees, and
names the one it would keep. Its budget is a number of evaluations, one for each new stack.

    single      the best intervention alone
    backwards   Alappat: from the last layer down, the best (matrix, keep) of each layer, or none,
                given what is kept above
    forwards    singles in the order of their own gain, kept where the stack gets better
    additive    ours: a Bayesian model of what each matrix adds, see laser/additive.py

Alappat chose and scored on the same dev set. That table comes first; the one after it is of the
half that the search did not see, with a bootstrap interval for each split.
"""

import statistics

import numpy as np

from bert import UserError
from bert.errors import did_you_mean
from laser.additive import additive
from laser.heldout import bootstrap, gain, gain_with_interval, halves
from laser.interventions import format_stack
from laser.output_cache import scores_of
from laser.report import flat


class StackScorer:
    """What a search may ask: gains of stacks on its half. Counts the stacks that were new to it."""

    def __init__(self, outputs, rows, metric):
        self.outputs, self.rows, self.metric = outputs, rows, metric
        self.gains = {(): 0.0}                               # stack → gain
        outputs.add([()], "evaluate")
        self.base = outputs.predictions(())

    def __call__(self, stacks):
        """→ the stacks' gains; those that are new are evaluated in one pass."""
        stacks = [tuple(sorted(stack)) for stack in stacks]
        self.outputs.add(stacks, "search")
        for stack in stacks:
            if stack not in self.gains:
                self.gains[stack] = gain(self.rows, self.outputs.predictions(stack), self.base,
                                         self.outputs.labels, self.metric)
        return [self.gains[stack] for stack in stacks]

    def noise(self, stack, draws=50):
        """The standard error of a stack's gain: by how much it varies from sample to sample."""
        return float(bootstrap(self.rows, self.outputs.predictions(stack), self.base,
                               self.outputs.labels, self.metric, draws).std())

    @property
    def evaluations(self):
        return len(self.gains) - 1

    def best(self):
        """The stack with the highest gain of all that were tried; () where none has any."""
        return max(self.gains, key=self.gains.get)


def single(scorer, grid, **_):
    scorer([(i,) for i in grid])
    return scorer.best()


def backwards(scorer, grid, **_):
    kept = ()
    for layer in sorted({i.layer for i in grid}, reverse=True):
        options = [kept, *((*kept, i) for i in grid if i.layer == layer)]
        gains = scorer(options)
        kept = options[gains.index(max(gains))]              # the first, so none if none is better
    return kept


def forwards(scorer, grid, **_):
    singles = dict(zip(grid, scorer([(i,) for i in grid])))
    kept = ()
    for intervention in sorted(singles, key=singles.get, reverse=True):
        if singles[intervention] <= 0:
            break
        if intervention.place in {i.place for i in kept}:
            continue
        before, after = scorer([kept, (*kept, intervention)])
        kept = (*kept, intervention) if after > before else kept
    return kept


SEARCHES = {"single": single, "backwards": backwards, "forwards": forwards, "additive": additive}


def choose_score(outputs, metric=""):
    """The score to raise, `by` if it is given; UserError where there is none of that name."""
    scores = scores_of(outputs.predictions(()), outputs.labels)
    if metric and metric not in scores:
        raise UserError(f"--metric: there is no score {metric!r}{did_you_mean(metric, scores)}; this run has "
                        f"{', '.join(scores)}")
    return metric or ("overall" if "overall" in scores else "mean")


def paper_protocol(outputs, grid, metric):
    """Chosen and scored on all of dev, as in Alappat's table 1: the best single intervention for
    each task, and the greedy stack → {name: (stack, scores)}."""
    rows = {task: np.arange(len(split)) for task, split in outputs.splits.items()}
    chosen = {"as it is": ()}
    for task in outputs.splits:
        chosen[f"best for {task}"] = single(StackScorer(outputs, rows, task), grid)
    chosen[f"best for {metric}"] = single(StackScorer(outputs, rows, metric), grid)
    chosen["backwards"] = backwards(StackScorer(outputs, rows, metric), grid)
    return {name: (stack, scores_of(outputs.predictions(stack), outputs.labels))
            for name, stack in chosen.items()}


def held_out(outputs, grid, metric, splits):
    """Each search on each split's first half → rows {"search", "split", "laser", "evaluations",
    "selection_gain": gain on that half, "gain": Gain on the other}."""
    sizes, budget = {task: len(split) for task, split in outputs.splits.items()}, len(grid)
    found = []
    for seed in range(splits):
        choose, report = halves(sizes, seed)
        for name, search in SEARCHES.items():
            scorer = StackScorer(outputs, choose, metric)
            stack = tuple(sorted(search(scorer, grid, budget=budget, seed=seed)))
            worth = gain_with_interval(report, outputs.predictions(stack), scorer.base,
                                       outputs.labels, metric)
            found.append({"search": name, "split": seed, "laser": format_stack(stack), "gain": worth,
                          "evaluations": scorer.evaluations, "selection_gain": scorer.gains[stack]})
    return found


def paper_table(chosen):
    names = list(next(iter(chosen.values()))[1])
    lines = [f"{'chosen and scored on all of dev':32}" + "".join(f"{name:>9}" for name in names)]
    for name, (stack, scores) in chosen.items():
        lines.append(f"{name:32}" + "".join(f"{value:9.4f}" for value in flat(scores).values())
                     + (f"  {format_stack(stack)}" if stack else ""))
    return "\n".join(lines)


def held_out_table(found, metric):
    lines = [f"{'chosen on one half':18} {'split':>5} {'tried':>5} {'gain there':>10}   "
             f"gain in {metric} on the other half [95 %]"]
    for row in found:
        lines.append(f"{row['search']:18} {row['split']:5} {row['evaluations']:5} "
                     f"{row['seen']:+10.4f}   {row['gain']}  {row['laser'] or 'none'}")
    return "\n".join(lines)


def verdict(found, metric):
    """A sentence for each search: its mean gain, and whether it survives."""
    lines = []
    for name in dict.fromkeys(row["search"] for row in found):
        gains = [row["gain"] for row in found if row["search"] == name]
        seen = statistics.mean(row["selection_gain"] for row in found if row["search"] == name)
        mean, above = statistics.mean(g.value for g in gains), sum(g.survives for g in gains)
        word = "survives" if above == len(gains) else "does not survive"
        lines.append(f"{name}: the gain in {metric} is {seen:+.4f} where it was chosen and {mean:+.4f} "
                     f"on the other half; its interval is above 0 in {above} of {len(gains)} "
                     f"splits: it {word}")
    return "\n".join(lines)
