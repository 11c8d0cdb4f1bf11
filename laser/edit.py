"""Interventions in a model: reduce its matrices in place, and undo it."""

from torch import nn

from bert import UserError
from bert.matrices import get_linear, module_name, replace_module
from bert.model import PackedLinear
from laser.factored import Factored
from laser.interventions import format_stack
from laser.reduce import Decomposition, keep_largest, low_rank, rank_of


def reduced_weight(linear, intervention):
    """→ the reduced weight [out, in] of a PackedLinear; keep = 1 copies it bit by bit."""
    weight, keep = linear.weight, intervention.keep
    if keep == 1:
        return weight.detach().clone()
    if intervention.variant == "magnitude":
        return keep_largest(weight, keep)
    return low_rank(weight, rank_of(keep, weight.shape))


def with_weight(linear, weight):
    """A PackedLinear with this weight [out, in] and the bias of `linear`."""
    new = PackedLinear(*weight.T.shape, device="meta")
    new.weight, new.bias = nn.Parameter(weight), linear.bias
    return new


def factorize(linear, intervention):
    """→ the Factored of the reduced weight; None if it would not have fewer parameters."""
    (m, n), rank = linear.weight.shape, rank_of(intervention.keep, linear.weight.shape)
    if intervention.variant != "svd" or rank * (m + n) >= m * n:
        return None
    return Factored.from_factors(*Decomposition(linear.weight).factors(rank), linear.bias)


def replace_modules(bert, modules):
    """Replace the modules of bert that {name: module} names → a function that puts the previous
    modules back."""
    previous = {name: bert.get_submodule(name) for name in modules}
    for name, module in modules.items():
        replace_module(bert, name, module)

    def undo():
        for name, module in previous.items():
            replace_module(bert, name, module)

    return undo


def apply(bert, stack, factored=False):
    """Reduce the matrices of a Bert in place by a stack of interventions → a function that undoes
    it. `factored`: as two thin matrices where that is smaller. UserError if an intervention is
    impossible, and then nothing is changed."""
    if not stack:
        raise UserError("there is no intervention, so nothing would be changed")
    modules = {}
    for intervention in stack:
        linear = get_linear(bert, *intervention.target)
        new = factorize(linear, intervention) if factored else None
        modules[module_name(bert, *intervention.target)] = (
            new or with_weight(linear, reduced_weight(linear, intervention)))
    if factored and not any(isinstance(new, Factored) for new in modules.values()):
        raise UserError(f"two thin matrices would be no smaller than any of {format_stack(stack)}; "
                        f"keep less (a rank below m·n/(m + n)), or leave out --factored")
    return replace_modules(bert, modules)
