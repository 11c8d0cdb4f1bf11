"""The importance of a run's parts as rows of a CSV file, as heat maps, and as text."""

from common.plots import new_figure, save_figure
from common.tables import text_table


def csv_rows(raw, scores, part):
    """raw, scores {task: [layers, parts]} → [{"task", "layer", part, "raw", "importance"}]. The sum
    of the tasks has no raw importance; a part that is gone has no row."""
    return [{"task": task, "layer": layer, part: layer if part == "layer" else number,
             "raw": f"{raw[task][layer, number]:.9g}" if task in raw else "",
             "importance": f"{value:.9g}"}
            for task, values in scores.items() for layer, row in enumerate(values.tolist())
            for number, value in enumerate(row) if value == value]       # not NaN


def draw_heat_maps(path, scores, part):
    """scores {task: [layers, parts]} from 0 to 1 → one map for each task, side by side (Wang, Yang
    & Sun, figure 1). A part that is gone is white."""
    figure = new_figure(2 + 3.5 * len(scores), 2 + 0.25 * len(next(iter(scores.values()))))
    panels = figure.subplots(1, len(scores), squeeze=False)[0]
    for axes, (task, values) in zip(panels, scores.items()):
        image = axes.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1,
                            interpolation="nearest")
        axes.set(title=task, xlabel=part, yticks=range(len(values)))
        axes.xaxis.get_major_locator().set_params(integer=True)
        if part == "layer":
            axes.set(xlabel="", xticks=[])
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label="importance")
    figure.supxlabel(f"0: the {part} that matters least, 1: the one that matters most; white: "
                     f"removed", fontsize="small")
    save_figure(figure, path)


def in_text(scores, part):
    """scores [layers, parts] → a table of hundredths; a dot where a part is gone."""
    rows = [[f"{100 * value:.0f}" if value == value else "." for value in row]
            for row in scores.tolist()]
    header = [rf"layer \ {part}", *map(str, range(scores.size(1)))]
    return text_table([header, *([str(n), *row] for n, row in enumerate(rows))], left=0)
