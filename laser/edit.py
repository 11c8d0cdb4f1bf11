"""Interventions put into a model, taken out again, and done again when a saved run is opened."""

from torch import nn

from bert import UserError
from bert.model import PackedLinear
from laser.factored import Factored, is_smaller
from laser.interventions import MATRICES, format_stack, get_linear
from laser.reduce import Decomposition, keep_largest, keep_random, low_rank, rank_of


def reduced_weight(projection, intervention):
    """→ [out, in]; keep = 1 gives the same bits."""
    weight, keep = projection.weight, intervention.keep
    if keep == 1:
        return weight.detach().clone()
    if intervention.variant == "magnitude":
        return keep_largest(weight, keep)
    if intervention.variant == "random":
        place = intervention.layer * len(MATRICES) + list(MATRICES).index(intervention.matrix)
        return keep_random(weight, keep, intervention.seed * 1_000_003 + place)
    return low_rank(weight, rank_of(keep, weight.shape))


def with_weight(projection, weight):
    """A Projection with another weight and the same bias."""
    new = PackedLinear(*weight.T.shape, device="meta")
    new.weight, new.bias = nn.Parameter(weight), projection.bias
    return new


def factorize(projection, intervention):
    """The Factored that computes the same with fewer parameters; None where it would have more."""
    shape = projection.weight.shape
    if intervention.variant != "svd" or not is_smaller(rank_of(intervention.keep, shape), shape):
        return None
    factors = Decomposition(projection.weight).factors(rank_of(intervention.keep, shape))
    return Factored.of(projection.bias, *factors)


def apply(bert, stack, factored=False):
    """Reduce a model's matrices in place → a function that puts the very same modules back. With
    `factored`, as two thin matrices where that is smaller. Nothing is changed if anything is
    wrong."""
    if not stack:
        raise UserError("there is no intervention, so nothing would be changed")
    changes = []
    for intervention in stack:
        parent, name, old = get_linear(bert, *intervention.place)
        new = factorize(old, intervention) if factored else None
        changes.append((parent, name, old,
                        new or with_weight(old, reduced_weight(old, intervention))))
    if factored and not any(isinstance(new, Factored) for *_, new in changes):
        raise UserError(f"two thin matrices would be no smaller than any of {format_stack(stack)}; keep "
                        f"less (a rank below m·n/(m + n)), or leave out --factored")
    for parent, name, _, new in changes:
        setattr(parent, name, new)

    def undo():
        for parent, name, old, _ in changes:
            setattr(parent, name, old)

    return undo


def edit_of(bert, stack):
    """run.json's record of the interventions in `stack`: which are dense and which of what rank."""
    found = {f"{i.layer}:{i.matrix}": bert.layers[i.layer].get_submodule(MATRICES[i.matrix])
             for i in stack}
    return {"method": "laser", "kind": "reduced", "interventions": format_stack(stack),
            "ranks": {place: module.down.out_features for place, module in found.items()
                      if isinstance(module, Factored)}}


def rebuild(bert, edit):
    """Before a saved run's weights are loaded: the thin matrices' modules."""
    for place, rank in edit["ranks"].items():
        layer, matrix = place.split(":")
        parent, name, old = get_linear(bert, int(layer), matrix)
        if not 1 <= rank <= min(old.weight.shape):
            raise UserError(f"run.json: {place} cannot have the rank {rank}")
        setattr(parent, name, Factored(old.in_features, rank, old.out_features))
