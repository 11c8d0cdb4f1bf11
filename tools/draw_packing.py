"""Draw docs/pictures/packing.png: how a batch loses its padding.

    python tools/draw_packing.py

Three panels: the padded grid of attention, the matrix of real tokens of all other modules, and the
[CLS] rows, the only queries of the last layer. Words come from the tokenizer of the tiny
checkpoint, rows from bert/layout.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.patches import Rectangle  # noqa: E402

from bert import Layout, Tokenizer  # noqa: E402
from common.plots import new_figure, save_figure  # noqa: E402

OUT = ROOT / "docs" / "pictures" / "packing.png"
SENTENCES = ("the film was good .", "dull !", "i loved the story , and the end was a joy .",
             "a book about nothing .")
COLORS = ("#9ecae1", "#fdae6b", "#a1d99b", "#fc9272")        # one a sentence
PADDING, COLUMNS = "#ececec", 3                              # columns drawn of the H there are


def draw_cell(axes, x, y, color, text="", height=1):
    axes.add_patch(Rectangle((x, y), 1, height, facecolor=color, edgecolor="white"))
    axes.text(x + 0.5, y + height / 2, text, ha="center", va="center_baseline", fontsize=7.5,
              weight="bold" if text.startswith("[") else "normal")


def draw_rows(axes, texts, colors, height=1):
    """A matrix of one row a token, with the token's text in its first column."""
    for y, (text, color) in enumerate(zip(texts, colors)):
        for x in range(COLUMNS):
            draw_cell(axes, x, y * height, color, text if x == 0 else "", height)


def finish_panel(axes, title, caption, width, height):
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(caption, fontsize=9.5)
    axes.spines[:].set_visible(False)


def main():
    tokenizer = Tokenizer.from_pretrained("tiny")
    layout = Layout(tokenizer(list(SENTENCES))["attention_mask"])
    tokens = [tokenizer.backend.encode(sentence).tokens for sentence in SENTENCES]
    words = sum(tokens, [])                                  # [N], in the order of the rows
    cells, batch, width = layout.mask.numel(), layout.batch, layout.tokens
    figure = new_figure(12, 4.4)
    grid, packed, first = figure.subplots(1, 3, width_ratios=(9.5, 3, 3))

    for y in range(batch):
        for x in range(width):
            real = x < len(tokens[y])
            draw_cell(grid, x, y, COLORS[y] if real else PADDING, tokens[y][x] if real else "")
    finish_panel(grid, f"attention: a grid [batch, tokens] of {cells} cells",
                 f"{cells - len(layout)} cells are padding;  layout.unpad →   ← layout.pad",
                 width, batch)
    draw_rows(packed, words, [COLORS[n] for n in layout.sequence.tolist()])
    finish_panel(packed, f"all else: {len(layout)} rows [N, H]",
                 "linear layers, GELU, LayerNorm", COLUMNS, len(layout))
    chosen = layout.cls_rows().rows.tolist()
    draw_rows(first, [words[row] for row in chosen], COLORS, height=1.5)
    finish_panel(first, f"last layer: {len(chosen)} rows", "query, FFN, LayerNorm",
                 COLUMNS, len(layout))
    save_figure(figure, OUT)
    print(f"{OUT}: {len(layout)} rows of {cells} cells")


if __name__ == "__main__":
    main()
