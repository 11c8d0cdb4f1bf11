"""Figures: matplotlib without its global state, imported only when something is drawn."""

from bert.files import atomic_write

# told apart by color-blind readers too (Okabe & Ito)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = ("-", "--", "-.", ":", "-", "--", "-.")             # and in print without colors


def new_figure(width, height):
    """An empty figure, `width` × `height` inches."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path, dpi=120):
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=dpi)


def draw_curves(panels, path, xlabel="step"):
    """Write curves side by side; panels is [(title, {name: [(x, y), …]})]. xlabel: of all panels,
    or a list with one for each."""
    below = max(len(curves) for _, curves in panels) > 4     # a legend would hide the curves
    figure = new_figure(5 * len(panels), 5 if below else 4)
    labels = [xlabel] * len(panels) if isinstance(xlabel, str) else xlabel
    for axes, (title, curves), label in zip(figure.subplots(1, len(panels), squeeze=False)[0],
                                            panels, labels):
        axes.set_prop_cycle(color=COLORS, linestyle=STYLES)
        for name, points in curves.items():
            axes.plot(*zip(*points), marker="." if len(points) < 50 else "", label=name)
        axes.set(xlabel=label, title=title)
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(**dict(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2,
                               fontsize=8) if below else {})
    save_figure(figure, path)
