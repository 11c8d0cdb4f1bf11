"""LASER in runs: run.json records the interventions, and which matrices are factored."""

from bert import UserError
from bert.matrices import get_linear, module_name
from laser.edit import Factored
from laser.interventions import format_stack


def edit_of(bert, stack):
    """The record of a stack that was applied to bert: {"ranks": {"2:fc_in": rank, …}} for
    the factored matrices; the others are dense."""
    modules = {f"{i.layer}:{i.matrix}": bert.get_submodule(module_name(bert, *i.target))
               for i in stack}
    return {"method": "laser", "interventions": format_stack(stack),
            "ranks": {target: module.down.out_features for target, module in modules.items()
                      if isinstance(module, Factored)}}


def rebuild(bert, edit):
    """Insert a Factored for each factored matrix, before the saved weights are loaded."""
    for target, rank in edit["ranks"].items():
        layer, matrix = target.split(":")
        old = get_linear(bert, int(layer), matrix)
        if not 1 <= rank <= min(old.weight.shape):
            raise UserError(f"run.json: {target} cannot have the rank {rank}")
        bert.set_submodule(module_name(bert, int(layer), matrix),
                           Factored(old.in_features, rank, old.out_features))
