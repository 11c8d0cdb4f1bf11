"""A sweep: every intervention of a grid, each alone; its table and figures."""

import numpy as np

from bert import UserError
from bert.matrices import get_linear, is_empty
from common.flags import parse_numbers
from common.plots import draw_curves, new_figure, save_figure
from common.tables import rows_table
from laser.interventions import Intervention, reduced_linear
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
    """→ [Intervention], without empty matrices. UserError if one is impossible, or none is left."""
    targets = [(layer, matrix) for layer in layers for matrix in matrices
               if not is_empty(bert, layer, matrix)]
    if not targets:
        raise UserError("every matrix that --layers and --matrices name is empty, because all "
                        "heads or neurons of its layer were removed; choose others")
    for target in targets:
        get_linear(bert, *target)
    return [Intervention(*target, keep, variant) for target in targets for keep in keeps]


def approximation_stats(evaluator, intervention):
    """Of W' beside W: "rank" (magnitude: ""), "energy" ‖W'‖²/‖W‖², "error" ‖W − W'‖_F."""
    linear = evaluator.linear(intervention.target)
    if intervention.variant == "svd":
        rank = rank_of(intervention.keep, linear.weight.shape)
        svd = evaluator.decomposition(intervention.target)
        return {"rank": rank, "energy": svd.energy(rank), "error": svd.error(rank)}
    old, new = linear.weight.detach(), reduced_linear(linear, intervention).weight.detach()
    return {"rank": "", "energy": float(new.square().sum() / old.square().sum()),
            "error": float((old - new).norm())}


def sweep(outputs, interventions):
    """Score each intervention alone → [{column: value}]; the first row is the unedited model."""
    outputs.add([(), *((i,) for i in interventions)], "sweep")
    return [{"laser": ""} | outputs.scores(()), *(
        {"laser": str(i)} | i._asdict() | approximation_stats(outputs.evaluator, i)
        | outputs.scores((i,)) for i in interventions)]


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
    return {str(i): {name: (values - base[name]).std() for name, values in draws((i,)).items()}
            for i in interventions}


def score_names(rows):
    """The columns of a sweep that hold scores: the tasks, overall and mean."""
    return [name for name in rows[0] if name != "laser"]


def sweep_table(rows):
    """The unedited model, and for each score the best intervention, as a table."""
    best = {name: max(rows[1:], key=lambda row: row[name]) for name in score_names(rows)}
    first = {"chosen by": "(none)"} | rows[0] | {"laser": "the run as it is"}
    return rows_table([first, *({"chosen by": name} | row for name, row in best.items())], left=2)


def draw_heat_maps(rows, path, errors=None):
    """Draw the rows of a sweep: a panel for each score and matrix, layers × keeps. Color and number
    are the gain in points (hundredths) over the unedited model, whose score is in the title. With
    `errors` (gain_errors) a gain within its standard error is gray."""
    from matplotlib.colors import SymLogNorm  # slow to import

    base, edited, names = rows[0], rows[1:], score_names(rows)
    names = names[:1] if names[1:] == ["mean"] else names    # of one task
    matrices, layers, keeps = (list(dict.fromkeys(row[key] for row in edited))
                               for key in ("matrix", "layer", "keep"))
    figure = new_figure(2.5 + 0.55 * len(keeps) * len(matrices),
                        1 + (0.6 + 0.3 * len(layers)) * len(names))
    panels = figure.subplots(len(names), len(matrices), squeeze=False)
    largest = max(1, *(100 * abs(row[name] - base[name]) for row in edited for name in names))
    norm = SymLogNorm(1, vmin=-largest, vmax=largest)
    for name, panel_row in zip(names, panels):
        cells = {(row["matrix"], row["layer"], row["keep"]): (
            100 * (row[name] - base[name]), 100 * errors[row["laser"]][name] if errors else -1)
            for row in edited}                               # gain, standard error
        for matrix, axes in zip(matrices, panel_row):
            gains, limits = np.moveaxis(np.array(
                [[cells.get((matrix, layer, keep), (np.nan, np.nan)) for keep in keeps]
                 for layer in layers]), -1, 0)
            noise = abs(gains) <= limits
            axes.set_facecolor("lightgray")
            image = axes.imshow(np.where(noise, np.nan, gains), cmap="RdBu", norm=norm,
                                aspect="auto")
            for y, x in np.argwhere(~np.isnan(gains)):       # an empty matrix has no gain
                dark = not noise[y, x] and abs(norm(gains[y, x]) - 0.5) > 0.35
                axes.text(x, y, f"{gains[y, x]:+.1f}", ha="center", va="center", fontsize=6,
                          color="white" if dark else "black")
            axes.set_title(f"{name} ({base[name]:.3f}), {matrix}", fontsize=9)
            axes.set_xticks(range(len(keeps)), [f"{k:g}" for k in keeps], fontsize=7)
            axes.set_yticks(range(len(layers)), layers, fontsize=7)
            axes.set(xlabel="keep", ylabel="layer")
    ticks = [sign * t for t in (1, 2, 5, 10, 20, 50) if t <= largest for sign in (-1, 1)]
    figure.colorbar(image, ax=panels, label="gain (points)", format="{x:+g}", ticks=[0, *ticks])
    figure.suptitle("gain in points when one matrix is reduced; gray: within its standard error; "
                    "colors above 1 point: a logarithmic scale", fontsize=10)
    save_figure(figure, path)


def draw_spectra(decompositions, path):
    """Draw of each {(layer, matrix): Decomposition} singular values and the share of ‖W‖²."""
    panels = {}
    for (layer, matrix), svd in decompositions.items():
        values = svd.values.cpu().numpy()
        fractions = np.arange(1, len(values) + 1) / len(values)
        energy = np.cumsum(values ** 2) / np.sum(values ** 2)
        for label, y in (("singular values", values), ("energy kept", energy)):
            panels.setdefault(f"{matrix}: {label}", {})[f"layer {layer}"] = list(zip(fractions, y))
    draw_curves(list(panels.items()), path, xlabel="fraction of the rank")
