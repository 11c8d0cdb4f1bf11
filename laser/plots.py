"""Pictures: what each intervention does, the singular values, gains with their intervals."""

import numpy as np

from bert.files import atomic_write
from laser.sweep import score_names


def _save(figure, path):
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _figure(*size):
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=size, layout="constrained")


def heat_maps(rows, path):
    """A panel for each score and matrix: rows are layers, columns keeps, color and number the gain
    in points (hundredths) over the unedited model, whose score stands above."""
    base, edited, names = rows[0], rows[1:], score_names(rows)
    matrices, layers, keeps = (list(dict.fromkeys(row[key] for row in edited))
                               for key in ("matrix", "layer", "keep"))
    figure = _figure(1.5 + 0.55 * len(keeps) * len(matrices),
                     1 + (0.6 + 0.3 * len(layers)) * len(names))
    grid = figure.subplots(len(names), len(matrices), squeeze=False)
    for name, line in zip(names, grid):
        for matrix, axes in zip(matrices, line):
            values = np.full((len(layers), len(keeps)), np.nan)
            for row in edited:
                if row["matrix"] == matrix:
                    values[layers.index(row["layer"]), keeps.index(row["keep"])] = \
                        100 * (row[name] - base[name])
            axes.imshow(values, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
            for y, x in np.argwhere(~np.isnan(values)):      # an empty matrix has no gain
                axes.text(x, y, f"{values[y, x]:+.1f}", ha="center", va="center", fontsize=6,
                          color="white" if abs(values[y, x]) > 2 else "black")
            axes.set_title(f"{name} ({base[name]:.3f}), {matrix}", fontsize=9)
            axes.set_xticks(range(len(keeps)), [f"{k:g}" for k in keeps], fontsize=7)
            axes.set_yticks(range(len(layers)), layers, fontsize=7)
            axes.set(xlabel="keep", ylabel="layer")
    figure.suptitle("gain in points when one matrix is reduced", fontsize=10)
    _save(figure, path)


def spectra(decompositions, path):
    """{(layer, matrix): Decomposition} → singular values over their number, and the energy kept
    over the fraction of the rank kept; a panel of each for every matrix."""
    matrices = list(dict.fromkeys(matrix for _, matrix in decompositions))
    figure = _figure(3.2 * len(matrices), 5)
    grid = figure.subplots(2, len(matrices), squeeze=False)
    for (layer, matrix), parts in decompositions.items():
        top, below = grid[:, matrices.index(matrix)]
        values = parts.values.cpu().numpy()
        part = np.arange(1, len(values) + 1) / len(values)
        top.plot(part, values, label=f"layer {layer}")
        below.plot(part, np.cumsum(values ** 2) / np.sum(values ** 2), label=f"layer {layer}")
    for matrix, (top, below) in zip(matrices, grid.T):
        top.set(title=matrix, yscale="log", ylabel="singular value")
        below.set(xlabel="fraction of the rank", ylabel="energy kept")
        for axes in (top, below):
            axes.grid(alpha=0.3)
        below.legend(fontsize=7)
    _save(figure, path)


def gains(results, title, path):
    """{search: [Gain, one a split]} → points with their intervals."""
    figure = _figure(1.5 + 1.3 * len(results), 4)
    axes = figure.subplots()
    for x, found in enumerate(results.values()):
        places = x + np.linspace(-0.25, 0.25, len(found)) if len(found) > 1 else [x]
        values = np.array([100 * g.value for g in found])
        reach = [100 * np.array([g.value - g.low for g in found]),
                 100 * np.array([g.high - g.value for g in found])]
        axes.errorbar(places, values, np.abs(reach), fmt="o", markersize=4, linewidth=1)
        axes.plot([x - 0.3, x + 0.3], [values.mean()] * 2, color="black", linewidth=1)
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xticks(range(len(results)), list(results))
    axes.set(ylabel="gain in points on the half not seen", title=title)
    _save(figure, path)


def sizes(curves, title, path):
    """{method: [(bytes, score), …]} and the model as it is under "" → score over stored size."""
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    for name, points in curves.items():
        size, score = zip(*sorted(points))
        axes.plot(np.array(size) / 2 ** 20, score, marker="o", label=name or "as it is")
    axes.set(xlabel="stored model, MiB", ylabel=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)
