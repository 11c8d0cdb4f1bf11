"""What happens inside an encoder: the tensors of one pass by name, and their pictures.

    with watch(bert) as seen:
        bert(**tokenizer("A dull, dull film."))
    for name, tensor, line in seen: …                        # line: "bert/model.py:53"
"""

from contextlib import ExitStack, contextmanager
from pathlib import Path
from traceback import extract_stack

import torch

from bert.files import atomic_write

COLORS = ("#eeeeee", "#56b4e9", "#e69f00", "#2ab28b", "#cc79a7")     # padding, and each sequence
HERE = Path(__file__).parent


@contextmanager
def watch(bert):
    """Within this context every pass appends (name, tensor, line of code) to the list that it
    yields: for each module's output, and for what attention computes in each head."""
    seen = []

    def note(name, tensor):
        calls = ((Path(frame.filename), frame.lineno) for frame in reversed(extract_stack()))
        file, line = next((file, line) for file, line in calls
                          if file.parent == HERE and file.name not in ("tour.py", "linear.py"))
        seen.append((name, tensor, f"bert/{file.name}:{line}"))

    def noting(layer, function):
        def attend(query, key, value, *rest):
            identity = torch.eye(key.size(2)).to(key).expand(*key.shape[:3], -1)
            context = function(query, key, value, *rest)     # probabilities @ value
            for part, tensor in (("query", query), ("key", key), ("value", value),
                                 ("probabilities", function(query, key, identity, *rest)),
                                 ("context", context)):
                note(f"{layer}.{part} of each head", tensor)
            return context
        return attend

    with ExitStack() as stack:
        for name, module in bert.named_modules():
            if name and not isinstance(module, (torch.nn.Dropout, torch.nn.ModuleList)):
                stack.callback(module.register_forward_hook(
                    lambda _, inputs, out, name=name: note(name, out)).remove)
        for number, layer, _ in bert.walk():
            attention, function = layer.attention, layer.attention.attention_function
            attention.set_attention(noting(f"layers.{number}.attention", function), bert.config)
            stack.callback(attention.set_attention, function, bert.config)
        yield seen


def attention_maps(bert, hidden, layout):
    """→ {layer: probabilities [heads, T, T]} of one sequence, from what `embed` returned."""
    with watch(bert) as seen:
        bert.encode(hidden, layout)
    return {int(name.split(".")[1]): tensor[0].float() for name, tensor, _ in seen
            if name.endswith("probabilities of each head")}


def height_of(tokens, maps):
    """How many inches draw_maps needs; above 24 tokens it names none."""
    return len(maps) * (2.8 if 12 < len(tokens) <= 24 else 1.8)


def draw_maps(figure, bert, tokens, maps):
    """Draw {layer: [heads, T, T]}: a row of panels for each layer; darker is more attention."""
    width = max(map(len, maps.values()))
    panels = figure.subplots(len(maps), width, squeeze=False, sharex=True, sharey=True)
    for line, (layer, heads) in zip(panels, maps.items()):
        for axes in line[len(heads):]:
            axes.set_visible(False)
        for axes, head, weights in zip(line, bert.layers[layer].attention.head_indices, heads):
            image = axes.imshow(weights.cpu().numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"head {head}", fontsize=8)
            if len(tokens) <= 24:
                axes.set_yticks(range(len(tokens)), tokens, fontsize=6)
                axes.set_xticks(range(len(tokens)), tokens, fontsize=6, rotation=90)
        line[0].set_ylabel(f"layer {layer}")
    figure.colorbar(image, ax=panels, aspect=50, fraction=0.05, pad=0.01,
                    label="attention of a token (row) to each token (column)")


def draw_grid(figure, layout):
    """Draw the padded grid, the packed rows and the length buckets of a batch."""
    from matplotlib.colors import ListedColormap  # slow to import

    rows = torch.arange(len(layout))
    panels = [("grid: each token has the number of its row, gray is padding", layout.pad, rows),
              ("packed rows, side by side here: for all but attention", torch.atleast_2d, rows)]
    panels += [("attention on a length bucket", b.pad, b.rows) for b in layout.length_buckets]
    heights = [1 + len(pad(rows)) for _, pad, rows in panels]
    columns = figure.subplots(len(panels), height_ratios=heights)
    for axes, (title, pad, rows) in zip(columns, panels):
        numbers, colors = pad(rows), pad(1 + layout.sequence[rows] % 4)
        axes.imshow(colors.numpy(), cmap=ListedColormap(COLORS), vmin=0, vmax=4, aspect="auto")
        axes.axis("off")
        axes.set_xlim(-0.5, len(layout) - 0.5)
        axes.set_title(f"{title}: {list(colors.shape)}", fontsize=9, loc="left")
        for y, x in colors.nonzero().tolist() if len(layout) <= 80 else ():
            axes.text(x, y, numbers[y, x].item(), ha="center", va="center", fontsize=7)


def draw_tour(path, bert, tokens, layout, maps):
    """Write a PNG: a batch's grid, rows and length buckets, and the attention maps of a text."""
    from matplotlib.figure import Figure

    heights = (4, height_of(tokens, maps))
    figure = Figure((12, sum(heights)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    draw_grid(upper, layout)
    draw_maps(lower, bert, tokens, maps)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
