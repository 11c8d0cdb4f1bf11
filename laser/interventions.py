"""An intervention: in this layer, of this matrix, keep so much.

    10:fc_out:0.1               layer 10 (of 0, 1, …), the FFN's second matrix, a tenth of the rank
    3:query:0.5:magnitude       the larger half of the entries, the others zero
    3:query:0.5:random:7        a random half of the entries, seed 7

Several, with commas between, are a stack. fc_in and fc_out are LASER's names for the FFN's first
and second matrix (Hugging Face: intermediate.dense and output.dense); attention_output is another
matrix than fc_out, though Hugging Face's names for the two end alike. Biases stay as they are.
"""

from typing import NamedTuple

from bert import UserError
from bert.errors import did_you_mean
from bert.model import PackedLinear

MATRICES = {                                                 # our name → its place in a BertLayer
    "fc_in": "ffn.fc_in",
    "fc_out": "ffn.fc_out",
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "attention_output": "attention.output",
}
VARIANTS = ("svd", "magnitude", "random")


class Intervention(NamedTuple):
    layer: int
    matrix: str                                              # a key of MATRICES
    keep: float                                              # of the rank or the entries, up to 1
    variant: str = "svd"
    seed: int = 0                                            # of the variant random

    def __str__(self):
        text = f"{self.layer}:{self.matrix}:{self.keep:.12g}"
        text += "" if self.variant == "svd" else f":{self.variant}"
        return text + (f":{self.seed}" if self.seed else "")

    @property
    def place(self):
        return self.layer, self.matrix


def format_stack(stack):
    """(Intervention, …) → the text that parse reads, in one order for all equal stacks."""
    return ",".join(map(str, sorted(stack)))


def parse(text):
    """"10:fc_out:0.1,8:fc_in:0.3" → [Intervention, …]; UserError for what cannot be one."""
    stack = [_parse_one(part.strip()) for part in text.split(",")]
    places = [i.place for i in stack]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"--laser {text} names {twice[0]}:{twice[1]} twice; a matrix can be "
                        f"reduced once")
    if all(i.keep == 1 for i in stack):
        raise UserError(f"--laser {text} keeps everything, so nothing would be changed; keep less "
                        f"than 1 of some matrix")
    return stack


def _parse_one(text):
    fields = text.split(":")
    variant = fields[3] if len(fields) > 3 else "svd"
    try:
        if not 3 <= len(fields) <= 4 + (variant == "random"):
            raise ValueError
        found = Intervention(int(fields[0]), fields[1], float(fields[2]), variant,
                             int(fields[4]) if len(fields) > 4 else 0)
    except ValueError:
        raise UserError(f"--laser: {text!r} is not an intervention; write layer:matrix:keep, as in "
                        f"10:fc_out:0.1, or with :magnitude or :random[:seed] after it") from None
    for what, name, known in (("matrix", found.matrix, MATRICES), ("variant", variant, VARIANTS)):
        if name not in known:
            raise UserError(f"--laser {text}: there is no {what} {name!r}"
                            f"{did_you_mean(name, known)}; there are {', '.join(known)}")
    if not 0 < found.keep <= 1 or found.seed < 0:
        raise UserError(f"--laser {text}: keep must be above 0 and at most 1, a fraction of the "
                        f"rank or of the entries, and a seed 0 or more")
    return found


def parent_module(bert, layer, matrix):
    """→ the module that holds this matrix's module, and its attribute's name."""
    if not 0 <= layer < len(bert.layers):
        raise UserError(f"{layer}:{matrix}: there is no layer {layer}; this model's layers are 0 "
                        f"to {len(bert.layers) - 1}")
    before, _, name = MATRICES[matrix].rpartition(".")
    return bert.layers[layer].get_submodule(before), name


def is_empty(bert, layer, matrix):
    """Whether this matrix has lost all its rows or columns, with its layer's heads or neurons."""
    weight = getattr(getattr(*parent_module(bert, layer, matrix)), "weight", None)
    return weight is not None and not weight.numel()


def get_linear(bert, layer, matrix):
    """→ the module that holds it, its attribute's name, the Projection itself; UserError where
    another module has taken its place, or where it is empty."""
    parent, name = parent_module(bert, layer, matrix)
    found = getattr(parent, name)
    if not isinstance(found, PackedLinear):
        raise UserError(f"{layer}:{matrix} is no single matrix any more but a "
                        f"{type(found).__name__}; choose other matrices, merge adapters first "
                        f"(python -m lora merge), or take the run it was made of")
    if not found.weight.numel():
        raise UserError(f"{layer}:{matrix} is empty, because all heads or neurons of its layer "
                        f"were removed; choose another matrix")
    return parent, name, found
