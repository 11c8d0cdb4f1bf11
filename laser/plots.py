"""Figures of a sweep and of a search."""

import numpy as np

from common.plots import COLORS, draw_curves, new_figure, save_figure
from laser.sweep import score_names


def draw_heat_maps(rows, path, errors=None):
    """Draw the rows of a sweep: a panel for each score and matrix, layers × keeps. Color and number
    are the gain in points (hundredths) over the unedited model, whose score is in the title. With
    `errors` (gain_errors) a gain within its standard error is gray."""
    from matplotlib.colors import SymLogNorm  # slow to import

    base, edited, names = rows[0], rows[1:], score_names(rows)
    matrices, layers, keeps = (list(dict.fromkeys(row[key] for row in edited))
                               for key in ("matrix", "layer", "keep"))
    figure = new_figure(2.5 + 0.55 * len(keeps) * len(matrices),
                        1 + (0.6 + 0.3 * len(layers)) * len(names))
    panels = figure.subplots(len(names), len(matrices), squeeze=False)
    largest = max(1, *(100 * abs(row[name] - base[name]) for row in edited for name in names))
    norm = SymLogNorm(1, vmin=-largest, vmax=largest)
    for name, panel_row in zip(names, panels):
        for matrix, axes in zip(matrices, panel_row):
            gains = np.full((len(layers), len(keeps)), np.nan)
            noise = np.zeros_like(gains, dtype=bool)
            for row in edited:
                if row["matrix"] == matrix:
                    cell = layers.index(row["layer"]), keeps.index(row["keep"])
                    gains[cell] = 100 * (row[name] - base[name])
                    noise[cell] = errors and abs(gains[cell]) <= 100 * errors[row["laser"]][name]
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
    figure.colorbar(image, ax=panels, label="gain in points; above 1 on a logarithmic scale",
                    format="{x:+g}")
    figure.suptitle("gain in points when one matrix is reduced; gray: within its standard error",
                    fontsize=10)
    save_figure(figure, path)


def draw_gains(rows, title, path):
    """Draw the rows of a search: for each search the Gain of every split on the half that it did
    not choose on, with its interval, and the mean over the splits as a line."""
    names = list(dict.fromkeys(row["search"] for row in rows))
    figure = new_figure(1.5 + 1.3 * len(names), 4)
    axes = figure.subplots()
    for x, name in enumerate(names):
        gains = np.array([row["gain"] for row in rows if row["search"] == name]) * 100
        value, low, high = gains.T                           # in points
        places = x + (np.linspace(-0.25, 0.25, len(value)) if len(value) > 1 else np.zeros(1))
        axes.errorbar(places, value, np.abs([value - low, high - value]), fmt="o", markersize=4,
                      color=COLORS[0], label="a split: gain and its 95 % interval" * (not x))
        axes.plot([x - 0.3, x + 0.3], [value.mean()] * 2, color=COLORS[1], linewidth=2,
                  label="mean over the splits" * (not x))
    axes.axhline(0, color="gray", linewidth=0.8, label="the unedited model")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="gain in points on the other half", title=title)
    save_figure(figure, path)


def draw_spectra(decompositions, path):
    """Draw {(layer, matrix): Decomposition}: for each matrix the singular values, and the fraction
    of ‖W‖² in the largest of them."""
    panels = {}
    for (layer, matrix), svd in decompositions.items():
        values = svd.values.cpu().numpy()
        fractions = np.arange(1, len(values) + 1) / len(values)
        for label, y in (("singular values", values),
                         ("energy kept", np.cumsum(values ** 2) / np.sum(values ** 2))):
            panels.setdefault(f"{matrix}: {label}", {})[f"layer {layer}"] = list(zip(fractions, y))
    draw_curves(list(panels.items()), path, xlabel="fraction of the rank")
