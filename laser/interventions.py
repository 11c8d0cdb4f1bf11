"""Interventions, each how much to keep of one matrix of one layer, and a model under them.

    10:fc_out:0.1               layer 10 (of 0, 1, …), the FFN's second matrix, a tenth of the rank
    3:query:0.5:magnitude       the smaller half of the entries, and one more, set to zero

Several, separated by commas, are a stack. The matrices are bert.matrices.MATRICES; biases stay
unchanged. A matrix of rank k is stored dense, or as two thin ones,  W_k x + b = up(down(x)):
k·(m + n) numbers and multiplications instead of m·n. For m = 4n that is less where keep < 0.8."""

from contextlib import ExitStack
from typing import NamedTuple

from torch import nn

from bert import UserError
from bert.errors import check_known, plain_number
from bert.linear import PackedLinear
from bert.matrices import MATRICES, get_linear, module_name
from laser.reduce import Decomposition, keep_largest, low_rank, rank_of

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
    """"10:fc_out:0.1,8:fc_in:0.3" → [Intervention, …]. UserError if impossible or vacuous."""
    stack = []
    for part in map(str.strip, text.split(",")):
        fields = part.split(":")
        try:
            layer, matrix, keep, variant = fields if len(fields) != 3 else (*fields, "svd")
            found = Intervention(plain_number(layer, int), matrix, plain_number(keep), variant)
        except ValueError:
            raise UserError(f"--laser: {part!r} is not an intervention; write layer:matrix:keep, "
                            f"as in 10:fc_out:0.1, or with :magnitude after it") from None
        check_known(matrix, MATRICES, "matrix", where=f"--laser {part}")
        check_known(variant, VARIANTS, "variant", where=f"--laser {part}")
        if not 0 < found.keep <= 1:
            raise UserError(f"--laser {part}: keep must be a fraction, above 0 and at most 1")
        if found.target in [i.target for i in stack]:
            raise UserError(f"--laser {text} names {layer}:{matrix} twice; a matrix can be reduced "
                            f"once")
        stack.append(found)
    if all(i.keep == 1 for i in stack):
        raise UserError(f"--laser {text} keeps everything, so nothing would be changed; keep less "
                        f"than 1 of some matrix")
    return stack


class Factored(nn.Module):
    """Two thin matrices that replace a PackedLinear."""

    def __init__(self, in_features, rank, out_features, device=None):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False, device=device)
        self.up = nn.Linear(rank, out_features, device=device)

    def forward(self, rows, layout=None):
        return self.up(self.down(rows))                      # [N, in] → [N, k] → [N, out]


def reduced_linear(linear, intervention, factored=False):
    """→ a PackedLinear with the reduced weight and the bias of `linear`, or if `factored` a
    Factored where that has fewer parameters. keep = 1 copies the weight bit for bit."""
    weight, keep, svd = linear.weight, intervention.keep, intervention.variant == "svd"
    (m, n), rank = weight.shape, rank_of(keep, weight.shape)
    if factored and svd and rank * (m + n) < m * n:
        down, up = Decomposition(weight).factors(rank)
        new = Factored(n, rank, m, device="meta")            # no weights to initialize
        new.down.weight, new.up.weight = map(nn.Parameter, (down.contiguous(), up.contiguous()))
        new.up.bias = linear.bias
        return new
    new = PackedLinear(n, m, device="meta")
    if keep < 1:
        weight = low_rank(weight, rank) if svd else keep_largest(weight, keep)
    new.weight, new.bias = nn.Parameter(weight.detach().clone()), linear.bias
    return new


def replace_modules(bert, modules):
    """Replace modules of bert by {name: module} → an ExitStack that puts the previous ones back."""
    undo = ExitStack()
    for name, module in modules.items():
        undo.callback(bert.set_submodule, name, bert.get_submodule(name))
        bert.set_submodule(name, module)
    return undo


def apply(bert, stack, factored=False):
    """Replace modules of a Bert by reduced ones → a function that puts the previous ones back.
    `factored`: store two thin matrices where that is smaller; `bert.edits` records their ranks.
    UserError, and the model unchanged, if an intervention is impossible."""
    modules, ranks = {}, {}
    for i in stack:
        new = reduced_linear(get_linear(bert, *i.target), i, factored)
        modules[module_name(bert, *i.target)] = new
        if isinstance(new, Factored):
            ranks[f"{i.layer}:{i.matrix}"] = new.down.out_features
    if not modules:
        raise UserError("there is no intervention, so nothing would be changed")
    if factored and not ranks:
        raise UserError(f"two thin matrices would be no smaller than any of {format_stack(stack)}; "
                        f"keep less (a rank below m·n/(m + n)), or leave out --factored")
    undo = replace_modules(bert, modules)
    undo.callback(setattr, bert, "edits", bert.edits)
    bert.edits = [*bert.edits, {"method": "laser", "interventions": format_stack(stack),
                                "ranks": ranks}]
    return undo.close
