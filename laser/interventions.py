"""An intervention: how much to keep of one matrix of one layer.

    10:fc_out:0.1               layer 10 (of 0, 1, …), the FFN's second matrix, a tenth of the rank
    3:query:0.5:magnitude       the larger half of the entries, the others set to zero

Several, separated by commas, are a stack. The matrices are bert.matrices.MATRICES; biases stay
unchanged.
"""

from typing import NamedTuple

from bert import UserError
from bert.errors import check_known
from bert.matrices import MATRICES

VARIANTS = ("svd", "magnitude")


class Intervention(NamedTuple):
    layer: int
    matrix: str
    keep: float                                              # fraction of the rank or the entries
    variant: str = "svd"

    def __str__(self):
        text = f"{self.layer}:{self.matrix}:{self.keep:.12g}"
        return text if self.variant == "svd" else f"{text}:{self.variant}"

    @property
    def target(self):
        return self.layer, self.matrix


def format_stack(stack):
    """(Intervention, …) → the text that parse reads. Equal stacks give equal texts."""
    return ",".join(map(str, sorted(stack)))


def parse(text):
    """"10:fc_out:0.1,8:fc_in:0.3" → [Intervention, …]. UserError for an unknown or impossible
    intervention, for two interventions on one matrix, and if nothing would change."""
    stack = [_parse_one(part.strip()) for part in text.split(",")]
    targets = [i.target for i in stack]
    for layer, matrix in targets:
        if targets.count((layer, matrix)) > 1:
            raise UserError(f"--laser {text} names {layer}:{matrix} twice; a matrix can be reduced "
                            f"once")
    if all(i.keep == 1 for i in stack):
        raise UserError(f"--laser {text} keeps everything, so nothing would be changed; keep less "
                        f"than 1 of some matrix")
    return stack


def _parse_one(text):
    fields = text.split(":")
    try:
        layer, matrix, keep, variant = fields if len(fields) != 3 else (*fields, "svd")
        found = Intervention(int(layer), matrix, float(keep), variant)
    except ValueError:
        raise UserError(f"--laser: {text!r} is not an intervention; write layer:matrix:keep, as in "
                        f"10:fc_out:0.1, or with :magnitude after it") from None
    check_known(matrix, MATRICES, "matrix", where=f"--laser {text}")
    check_known(variant, VARIANTS, "variant", where=f"--laser {text}")
    if not 0 < found.keep <= 1:
        raise UserError(f"--laser {text}: keep must be a fraction, above 0 and at most 1")
    return found
