"""Score against cost of a run with exits. Thresholds are chosen on one half of dev, at random, and
everything that is printed about them is measured on the other half."""

import statistics
import time
from typing import NamedTuple

import torch

from bert import UserError
from common.plots import draw_curves
from common.tables import text_table
from early_exit.cost import exit_costs
from early_exit.exits import as_outputs, log_probabilities
from early_exit.leaving import EarlyExit, answers, exit_layers, task_exits
from early_exit.states import collect, segments_of, subset
from multitask.evaluation import check_outputs, run_split
from multitask.tasks import TASKS

THRESHOLDS = [n / 100 for n in range(101)]                   # at 1 nothing leaves
BUDGETS = (0.25, 0.5, 0.75, 1.0)                             # of the whole model's multiply-adds
LOSS = 0.01                                                  # of the score, for a faster model


class Point(NamedTuple):
    """One threshold on some examples. `cost` is the share of the multiply-adds of the model without
    exits; `left` the share of examples that leave after each layer."""

    threshold: float
    cost: float
    score: float
    left: list


class Measured:
    """Everything about one task's exits on its first dev set that follows from one pass."""

    def __init__(self, session, task):
        self.task, self.split = task, session.first_splits[task]
        model, exits = session.model, task_exits(session.model, task)
        states, outputs = collect(session, task, self.split, title=f"dev states, {task}")
        with torch.inference_mode():
            self.log_q = exits.cpu()(states)                 # [M, n, C]
        check_outputs(self.log_q.transpose(0, 1), task, self.split.ids, "exits' outputs")
        exits.to(session.device)
        self.final, self.outputs = log_probabilities(outputs), exits.outputs
        lengths = torch.tensor([[len(ids) for ids in side] for side, _ in self.split.segments])
        self.costs, self.plain = exit_costs(model, task, lengths.view(
            segments_of(model, task), -1))                   # [M + 1, n], [n]

    def score(self, log_probs, examples):
        """The task's first metric of log p [n, C] on these examples"""
        metric = next(iter(TASKS[self.task].metrics.values()))
        predicted = TASKS[self.task].predict(as_outputs(log_probs, self.outputs))
        return metric(predicted[examples].tolist(), self.split.labels[examples].tolist())

    def point(self, threshold, examples):
        """→ Point at this threshold on these examples [k]"""
        layers = exit_layers(self.log_q, threshold)
        costs = self.costs.gather(0, layers[None])[0]
        counts = torch.bincount(layers[examples], minlength=len(self.costs))
        return Point(threshold, float(costs[examples].sum() / self.plain[examples].sum()),
                     self.score(answers(self.log_q, self.final, layers), examples),
                     (counts / len(examples)).tolist())

    def full_score(self, examples):
        """The score of the whole model."""
        return self.score(self.final, examples)


def halves(n, seed=0):
    """→ numbers of the examples that choose, and of those that report"""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[:n // 2], order[n // 2:]


def at_budget(measured, budget, choosing, reporting):
    """→ Point on `reporting`, at the highest threshold whose cost on `choosing` is within `budget`;
    where none is, at 0, at which all examples leave at the first exit"""
    points = [measured.point(threshold, choosing) for threshold in THRESHOLDS]
    within = [point.threshold for point in points if point.cost <= budget]
    return measured.point(max(within, default=0.0), reporting)


def at_loss(measured, loss, choosing, reporting):
    """→ Point on `reporting`, at the lowest threshold from which on no score on `choosing` is more
    than `loss` below the whole model's"""
    required, chosen = measured.full_score(choosing) - loss, THRESHOLDS[-1]
    for threshold in reversed(THRESHOLDS):
        if measured.point(threshold, choosing).score < required - 1e-9:
            break
        chosen = threshold
    return measured.point(chosen, reporting)


def milliseconds(session, task, split, thresholds, repeats=3):
    """Time passes over a split at each threshold (None: the model without exits), in turn →
    {threshold: {"wall", "cpu": ms an example, the median; "share": the median of the rounds' ratios
    to the model without exits, in processor time}}"""
    times = {threshold: [] for threshold in thresholds}
    for _ in range(repeats + 1):                             # the first round warms up
        for threshold in thresholds:
            session.model.early_exit = None if threshold is None else EarlyExit(threshold)
            began = time.perf_counter(), time.process_time()
            run_split(session.model, task, split, session.device, session.autocast)
            times[threshold].append((time.perf_counter() - began[0],
                                     time.process_time() - began[1]))
    session.model.early_exit = None
    which = 1 if session.device.type == "cpu" else 0
    found = {}
    for threshold, rounds in times.items():
        wall, cpu = (1000 * statistics.median(column) / len(split) for column in zip(*rounds[1:]))
        ratios = [mine[which] / whole[which] for mine, whole in zip(rounds[1:], times[None][1:])]
        found[threshold] = {"wall": wall, "cpu": cpu, "share": statistics.median(ratios)}
    return found


def measure_task(session, task, repeats, seed):
    """→ rows of the curve on all of dev, rows {"what", …} of the chosen thresholds, both as
    dictionaries"""
    measured = Measured(session, task)
    if len(measured.split) < 2:
        raise UserError(f"{task}: one half of the dev examples chooses thresholds and the other is "
                        f"scored, and there is only {len(measured.split)} example; raise --limit")
    choosing, reporting = halves(len(measured.split), seed)
    everything = torch.arange(len(measured.split))
    curve = [{"task": task, "threshold": point.threshold, "multiply_adds": point.cost,
              "score": point.score, "ms": None}
             for point in (measured.point(threshold, everything) for threshold in THRESHOLDS)]
    chosen = {f"budget {budget:.0%}": at_budget(measured, budget, choosing, reporting)
              for budget in BUDGETS}
    chosen[f"loss up to {LOSS:g}"] = at_loss(measured, LOSS, choosing, reporting)
    rest = subset(measured.split, reporting.tolist())
    times = milliseconds(session, task, rest, dict.fromkeys(
        [None, *(point.threshold for point in chosen.values())]), repeats)
    for row in curve:
        row["ms"] = times.get(row["threshold"], {}).get("wall")
    rows = [{"task": task, "what": "the whole model", "threshold": None, "multiply_adds": 1.0,
             "score": measured.full_score(reporting), **times[None], "left": ""}]
    rows += [{"task": task, "what": what, "threshold": point.threshold,
              "multiply_adds": point.cost, "score": point.score, **times[point.threshold],
              "left": " ".join(f"{share:.0%}" for share in point.left)}
             for what, point in chosen.items()]
    return curve, rows


def table(rows):
    """The chosen thresholds as text."""
    return text_table([["task", "", "--exit", "multiply-adds", "score", "ms", "CPU ms", "time",
                        "leave after layer 0, 1, …"]] + [
        [row["task"], row["what"], "–" if row["threshold"] is None else f"{row['threshold']:g}",
         f"{row['multiply_adds']:.1%}", f"{row['score']:.4f}", f"{row['wall']:.2f}",
         f"{row['cpu']:.2f}", f"{row['share']:.2f}×", row["left"]] for row in rows], left=2)


def draw(curves, rows, path):
    """Two panels: score against multiply-adds, and against measured milliseconds."""
    operations, times = {}, {}
    for row in curves:
        operations.setdefault(row["task"], []).append((row["multiply_adds"], row["score"]))
    for row in rows:
        times.setdefault(row["task"], []).append((row["wall"], row["score"]))
    draw_curves([("score at every threshold, dev", operations),
                 ("score at chosen thresholds, half of dev",
                  {task: sorted(points) for task, points in times.items()})], path,
                xlabel=["share of the whole model's multiply-adds", "milliseconds an example"])
