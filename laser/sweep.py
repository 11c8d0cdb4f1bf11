"""Every layer × matrix × keep, each alone, on the dev sets of all tasks.

    python -m laser sweep RUN                      # Alappat's: FFN matrices of the upper half
    python -m laser sweep RUN --layers all --matrices all --keep 0.9,0.5,0.1

Leaves in RUN/laser (or --out): sweep.csv, heatmap.png, spectra.png, and outputs.safetensors, from
which a stopped sweep goes on and `search` starts. The same command goes on.
"""

import csv
import io

import torch

from bert import UserError
from bert.errors import did_you_mean
from bert.files import atomic_write
from laser.edit import reduced_weight
from laser.interventions import MATRICES, Intervention, format_stack, get_linear, is_empty
from laser.output_cache import scores_of
from laser.reduce import rank_of
from laser.report import flat

KEEPS = (0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.1, 0.05, 0.01)


def choose_layers(text, depth):
    """"upper", "all" or "3,4,5" → layers. upper is the upper half: 6 to 11 of 12 in Alappat."""
    named = {"upper": range(depth // 2, depth), "all": range(depth)}
    try:
        layers = list(named[text] if text in named else map(int, text.split(",")))
    except ValueError:
        raise UserError(f"--layers {text!r} is not understood; write upper, all, or numbers as in "
                        f"3,4,5") from None
    if not all(0 <= layer < depth for layer in layers):
        raise UserError(f"--layers {text}: this model's layers are 0 to {depth - 1}")
    return layers


def choose_matrices(text):
    """"all" or "fc_in,query" → names."""
    names = list(MATRICES) if text == "all" else text.split(",")
    for name in names:
        if name not in MATRICES:
            raise UserError(f"--matrices: there is no matrix {name!r}"
                            f"{did_you_mean(name, MATRICES)}; there are {', '.join(MATRICES)}, "
                            f"or all")
    return names


def choose_keeps(text):
    try:
        keeps = [float(part) for part in text.split(",")]
    except ValueError:
        keeps = [0.0]
    if not all(0 < keep <= 1 for keep in keeps):
        raise UserError(f"--keep {text} is not understood; write fractions above 0 and up to 1, as "
                        f"in 0.9,0.5,0.1")
    return keeps


def grid(bert, layers, matrices, keeps, variant="svd", seed=0):
    """All interventions of a sweep, without those on empty matrices; UserError where one is
    impossible, or where none is left."""
    found = [Intervention(layer, matrix, keep, variant, seed) for layer in layers
             for matrix in matrices if not is_empty(bert, layer, matrix) for keep in keeps]
    if not found:
        raise UserError("every matrix that --layers and --matrices name is empty, because all "
                        "heads or neurons of its layer were removed; choose others")
    for intervention in found:
        get_linear(bert, *intervention.place)
    return found


def describe(evaluator, intervention):
    """What it does to the matrix itself: {"rank" (empty where entries are dropped), "energy":
    ‖W'‖²/‖W‖², "error": ‖W − W'‖_F}."""
    *_, projection = get_linear(evaluator.bert, *intervention.place)
    if intervention.variant == "svd":
        rank = rank_of(intervention.keep, projection.weight.shape)
        parts = evaluator.ranks_of(intervention.place).parts
        return {"rank": rank, "energy": parts.energy(rank), "error": parts.error(rank)}
    weight, new = projection.weight.detach(), reduced_weight(projection, intervention)
    return {"rank": "", "energy": float(new.square().sum() / weight.square().sum()),
            "error": float(torch.linalg.norm(weight - new))}


def sweep(outputs, interventions):
    """Score each intervention alone → a row {column: value} for each, the unedited model first."""
    stacks = [(), *((intervention,) for intervention in interventions)]
    outputs.add(stacks, "sweep")
    rows = []
    for stack in stacks:
        row = {"laser": format_stack(stack)}
        for i in stack:
            row |= {"layer": i.layer, "matrix": i.matrix, "keep": i.keep, "variant": i.variant,
                    **describe(outputs.evaluator, i)}
        scores = scores_of(outputs.predictions(stack), outputs.labels)
        rows.append(row | flat(scores))
    return rows


def write_csv(path, rows):
    """Rows {column: value} as a table; a row may lack columns of another."""
    names = list(dict.fromkeys(name for row in rows[::-1] for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def score_names(rows):
    """The columns with scores: the tasks, overall and mean."""
    return [name for name in rows[0] if name != "laser"]


def sweep_table(rows):
    """For each score the intervention that is best in it, as text."""
    names = score_names(rows)
    lines = [f"{'chosen by':10} {'laser':24}" + "".join(f"{name:>9}" for name in names)]
    chosen = {"(none)": rows[0]} | {name: max(rows[1:], key=lambda row: row[name])
                                    for name in names}
    lines += [f"{by:10} {row['laser'] or 'the run as it is':24}"
              + "".join(f"{row[name]:9.4f}" for name in names) for by, row in chosen.items()]
    return "\n".join(lines)
