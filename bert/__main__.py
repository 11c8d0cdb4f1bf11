"""The way of a text through the encoder: tokens, ids, the padded grid, the packed rows, and every
tensor's name, shape and line of code. Two more texts are in the batch, so that there is padding.

    python -m bert "A dull, dull film."
    python -m bert "A cat sleeps." "A cat is asleep." --bert runs/tiny/model --picture tour.png
"""

import argparse
import inspect
import sys
import warnings

import torch

from bert import Bert, Tokenizer, UserError
from bert.attention import eager_attention
from bert.terminal import safe_streams
from bert.tour import attention_maps, draw_tour, watch

BESIDE = ["Good.", "This text is long, and all others are padded to the length of the longest one."]


def describe(tokenizer, batch, layout, seen, layers):
    """Yield the lines of the tour."""
    yield (f"A grid [{layout.batch}, {layout.tokens}]: ■ is a token, · is padding. Packed, the "
           f"tokens are N = {len(layout)} rows (bert/layout.py).")
    yield from ("".join("·■"[real] for real in line) for line in layout.mask.tolist())
    for number, bucket in enumerate(layout.length_buckets):
        yield f"length bucket {number}: attention on a grid {list(bucket.mask.shape)}"
    yield "\n row  sequence  position  cell     id  type  token (bert/tokenizer.py)"
    columns = (layout.sequence, layout.positions, layout.flat_index,
               *(layout.unpad(batch[name]) for name in ("input_ids", "token_type_ids")))
    for row, (sequence, position, cell, token, kind) in enumerate(torch.stack(columns, 1).tolist()):
        yield (f"{row:4} {sequence:9} {position:9} {cell:5} {token:6} {kind:5}  "
               f"{tokenizer.backend.id_to_token(token)}")
    yield "\nEach tensor, its shape, and the line that computes it (layers between: as layer 0):"
    between = tuple(f"layers.{number}." for number in range(1, layers - 1))
    yield from (f"{name:47} {str(list(tensor.shape)):19} {line}" for name, tensor, line in seen
                if not name.startswith(between))
    lines, first = inspect.getsourcelines(eager_attention)
    yield (f"Probabilities and context: softmax(QKᵀ/√d) V, bert/attention.py:{first} to "
           f"{first + len(lines) - 1}.\n"
           f"From the last layer's queries on, only the {layout.batch} rows of [CLS] are computed.")


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m bert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("pair", nargs="?", help="a second text, in one sequence with the first")
    parser.add_argument("--bert", default="tiny", help="folder or name on the hub (default: tiny)")
    parser.add_argument("--picture", metavar="FILE", help="draw grid and attention maps, as PNG")
    args = parser.parse_args(arguments)
    if not all(text is None or text.strip() for text in (args.text, args.pair)):
        raise UserError("a text is empty, so there is nothing to show; write one or more words")
    bert, tokenizer = Bert.from_pretrained(args.bert).eval(), Tokenizer.from_pretrained(args.bert)
    batch = tokenizer([args.text, *BESIDE], [args.pair, None, None])
    with torch.inference_mode():
        with watch(bert) as seen:
            hidden, layout = bert.embed(**batch)
            hidden = bert.encode(hidden, layout, output_rows=layout.cls_rows())
            if not bert.pooler_is_new:
                bert.pool(hidden)
        print(*describe(tokenizer, batch, layout, seen, len(bert.layers)), sep="\n")
        if args.picture:
            alone = tokenizer(args.text, args.pair)
            tokens = list(map(tokenizer.backend.id_to_token, alone["input_ids"][0].tolist()))
            maps = attention_maps(bert, *bert.embed(**alone))
            draw_tour(args.picture, bert, tokens, layout, maps)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *rest: f"note: {message}\n"
    try:
        with safe_streams():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
