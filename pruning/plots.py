"""Importance for people: a heat map layers × parts for each task, a CSV file, a few lines."""

import csv
import io

from bert.files import atomic_write


def write_csv(path, raw, scores, part):
    """raw, scores {task: [layers, parts]} → task, layer, part, both values; no line where NaN."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["task", "layer", part, "raw", "importance"])
    for task, values in scores.items():
        for layer, row in enumerate(values.tolist()):
            for number, value in enumerate(row):
                if value == value:                           # not NaN: the part is there
                    unscaled = f"{raw[task][layer, number]:.9g}" if task in raw else ""
                    table.writerow([task, layer, number, unscaled, f"{value:.9g}"])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def draw_heat_maps(path, scores, part):
    """scores {task: [layers, parts]} from 0 to 1 → one map for each task, side by side (Wang et al.'s
    figure 1). White: the part is gone."""
    from matplotlib.figure import Figure  # slow to import, needed once

    figure = Figure(figsize=(1 + 3.5 * len(scores), 3.4), layout="constrained")
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, (task, values) in zip(panels, scores.items()):
        shown = axes.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axes.set(title=task, xlabel=part)
    panels[0].set_ylabel("layer")
    figure.colorbar(shown, ax=list(panels), label="importance")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def in_text(values):
    """[layers, heads] as lines of hundredths; a dot where a head is gone."""
    def row(layer, numbers):
        return f"{layer:5}  " + " ".join("  ." if n != n else f"{100 * n:3.0f}" for n in numbers)

    header = "layer  " + " ".join(f"{n:3}" for n in range(values.size(1)))
    return "\n".join([header, *(row(*r) for r in enumerate(values.tolist()))])
