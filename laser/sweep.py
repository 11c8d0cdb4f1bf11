"""A sweep: every intervention of a grid of layers, matrices and keeps, each alone."""

import torch

from bert import UserError
from bert.matrices import get_linear, is_empty
from common.flags import parse_numbers
from common.tables import format_number, text_table
from laser.edit import reduced_weight
from laser.interventions import Intervention, format_stack
from laser.reduce import rank_of
from multitask.metrics import main_scores, summary
from multitask.standard_errors import bootstrap
from multitask.tasks import TASKS

KEEPS = (0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.1, 0.05, 0.01)


def parse_layers(text, depth):
    """"upper", "all" or "3,4,5" → layers. upper is the upper half: 6 to 11 of 12 in Alappat."""
    named = {"upper": range(depth // 2, depth), "all": range(depth)}
    return list(named.get(text) or map(int, parse_numbers(
        "--layers", text, float.is_integer, "upper, all, or numbers as in 3,4,5")))


def grid(bert, layers, matrices, keeps, variant="svd"):
    """→ [Intervention] for every combination; empty matrices are left out. UserError if an
    intervention is impossible, or if none is left."""
    targets = [(layer, matrix) for layer in layers for matrix in matrices
               if not is_empty(bert, layer, matrix)]
    if not targets:
        raise UserError("every matrix that --layers and --matrices name is empty, because all "
                        "heads or neurons of its layer were removed; choose others")
    for target in targets:
        get_linear(bert, *target)
    return [Intervention(*target, keep, variant) for target in targets for keep in keeps]


def approximation_stats(evaluator, intervention):
    """How close the reduced matrix W' is to W: {"rank" (empty for magnitude), "energy": ‖W'‖²/‖W‖²,
    "error": ‖W − W'‖_F}."""
    linear = get_linear(evaluator.bert, *intervention.target)
    if intervention.variant == "svd":
        rank = rank_of(intervention.keep, linear.weight.shape)
        svd = evaluator.projection(intervention.target).decomposition
        return {"rank": rank, "energy": svd.energy(rank), "error": svd.error(rank)}
    weight, new = linear.weight.detach(), reduced_weight(linear, intervention)
    return {"rank": "", "energy": float(new.square().sum() / weight.square().sum()),
            "error": float(torch.linalg.norm(weight - new))}


def sweep(outputs, interventions):
    """Score each intervention alone, from an OutputCache → [{column: value}]; the first row is the
    unedited model."""
    stacks = [(), *((intervention,) for intervention in interventions)]
    outputs.add(stacks, "sweep")
    rows = []
    for stack in stacks:
        row = {"laser": format_stack(stack)}
        for i in stack:
            row |= {"layer": i.layer, "matrix": i.matrix, "keep": i.keep, "variant": i.variant,
                    **approximation_stats(outputs.evaluator, i)}
        rows.append(row | outputs.scores(stack))
    return rows


def gain_errors(outputs, interventions):
    """→ {laser: {score: standard error of the intervention's gain}}, over the dev examples."""
    def draws(stack):
        predictions, scores = outputs.predictions(stack), {}
        for task, labels in outputs.labels.items():
            metric = next(iter(TASKS[task].metrics.values()))
            scores[task] = {"": bootstrap(metric, predictions[task], labels, outputs.fingerprint,
                                          draws=100)}
        return main_scores(summary(scores))

    base = draws(())
    return {format_stack((i,)): {name: (values - base[name]).std()
                                 for name, values in draws((i,)).items()} for i in interventions}


def score_names(rows):
    """The columns of a sweep that hold scores: the tasks, overall and mean."""
    return [name for name in rows[0] if name != "laser"]


def sweep_table(rows):
    """The unedited model, and for each score the best intervention, as a table."""
    names = score_names(rows)
    chosen = {"(none)": rows[0]} | {name: max(rows[1:], key=lambda row: row[name])
                                    for name in names}
    return text_table([["chosen by", "laser", *names], *(
        [metric, row["laser"] or "the run as it is", *(format_number(row[n]) for n in names)]
        for metric, row in chosen.items())], left=2)
