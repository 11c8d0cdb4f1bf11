"""Apply interventions to a model in place, and undo them.

A matrix of rank k is stored dense, or as two thin matrices,  W_k x + b = up(down(x)):  k·(m + n)
numbers instead of m·n, and as many multiplications. That is less for k < m·n/(m + n), which for
m = 4n means keep < 0.8.
"""

import torch
from torch import nn

from bert import UserError
from bert.matrices import get_linear, module_name
from bert.model import PackedLinear
from laser.interventions import format_stack
from laser.reduce import Decomposition, keep_largest, low_rank, rank_of


class Factored(nn.Module):
    """Two thin matrices that replace a PackedLinear."""

    def __init__(self, in_features, rank, out_features):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features)

    def forward(self, rows, layout=None):
        return self.up(self.down(rows))                      # [N, in] → [N, k] → [N, out]


def factorize(linear, intervention):
    """→ the Factored of the reduced weight; None if it would not have fewer parameters."""
    (m, n), rank = linear.weight.shape, rank_of(intervention.keep, linear.weight.shape)
    if intervention.variant != "svd" or rank * (m + n) >= m * n:
        return None
    down, up = Decomposition(linear.weight).factors(rank)
    with torch.device("meta"):                               # no weights to initialize
        new = Factored(n, rank, m)
    new.down.weight, new.up.weight = nn.Parameter(down.contiguous()), nn.Parameter(up.contiguous())
    new.up.bias = linear.bias
    return new


def reduced_weight(linear, intervention):
    """→ the reduced weight [out, in] of a PackedLinear; keep = 1 copies it bit for bit."""
    weight, keep = linear.weight, intervention.keep
    if keep == 1:
        return weight.detach().clone()
    if intervention.variant == "magnitude":
        return keep_largest(weight, keep)
    return low_rank(weight, rank_of(keep, weight.shape))


def reduced_linear(linear, intervention):
    """→ a PackedLinear with the reduced weight and the bias of `linear`"""
    weight = reduced_weight(linear, intervention)
    new = PackedLinear(*weight.T.shape, device="meta")
    new.weight, new.bias = nn.Parameter(weight), linear.bias
    return new


def replace_modules(bert, modules):
    """Replace the modules of bert that {name: module} names → a function that puts the previous
    modules back."""
    previous = {name: bert.get_submodule(name) for name in modules}

    def insert(modules):
        for name, module in modules.items():
            bert.set_submodule(name, module)

    insert(modules)
    return lambda: insert(previous)


def apply(bert, stack, factored=False):
    """Reduce the matrices of a Bert in place by a stack of interventions → a function that undoes
    it. `factored`: store two thin matrices where that is smaller. UserError, and the model
    unchanged, if an intervention is impossible."""
    if not stack:
        raise UserError("there is no intervention, so nothing would be changed")
    modules = {}
    for intervention in stack:
        linear = get_linear(bert, *intervention.target)
        thin = factorize(linear, intervention) if factored else None
        modules[module_name(bert, *intervention.target)] = (
            thin or reduced_linear(linear, intervention))
    if factored and not any(isinstance(new, Factored) for new in modules.values()):
        raise UserError(f"two thin matrices would be no smaller than any of {format_stack(stack)}; "
                        f"keep less (a rank below m·n/(m + n)), or leave out --factored")
    return replace_modules(bert, modules)
