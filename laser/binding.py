"""LASER in runs: run.json records the interventions, and which matrices are factored."""

from bert import UserError
from bert.matrices import get_linear, module_name
from laser.interventions import Factored

EDIT = {"interventions": str, "ranks": dict[str, int]}       # in run.json


def rebuild(bert, edit):
    """Insert a Factored for each factored matrix, before the saved weights are loaded."""
    for target, rank in edit["ranks"].items():
        layer, _, matrix = target.partition(":")
        layer = int(layer) if layer.isdecimal() and len(layer) < 6 else layer
        old = get_linear(bert, layer, matrix)
        if not 1 <= rank <= min(old.weight.shape):
            raise UserError(f"run.json: {target} cannot have the rank {rank}")
        bert.set_submodule(module_name(bert, layer, matrix),
                           Factored(old.in_features, rank, old.out_features))
