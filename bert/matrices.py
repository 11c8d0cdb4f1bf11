"""The matrices of a layer by name: LoRA adapts them, LASER reduces them, pruning shortens them.

    module_name(bert, 3, "query")                 # "layers.3.attention.query"
    get_linear(bert, 3, "fc_in")                  # the PackedLinear with that matrix
"""

from bert.errors import UserError, check_known
from bert.linear import PackedLinear

MATRICES = {                                                 # name → module of a BertLayer
    "fc_in": "ffn.fc_in",                                    # Hugging Face: intermediate.dense
    "fc_out": "ffn.fc_out",                                  # Hugging Face: output.dense
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "attention_output": "attention.output",                  # Hugging Face: attention.output.dense
}


def module_name(bert, layer, matrix):
    """The name in `bert` of the module that holds this matrix. UserError if there is none."""
    check_known(matrix, MATRICES, "matrix", where=f"{layer}:{matrix}")
    if layer not in range(len(bert.layers)):
        raise UserError(f"{layer}:{matrix}: there is no layer {layer}; this model has layers 0 to "
                        f"{len(bert.layers) - 1}")
    return f"layers.{layer}.{MATRICES[matrix]}"


def get_linear(bert, layer, matrix):
    """The PackedLinear that holds this matrix. UserError if it was replaced or emptied."""
    found = bert.get_submodule(module_name(bert, layer, matrix))
    if not isinstance(found, PackedLinear):
        raise UserError(f"{layer}:{matrix} is a {type(found).__name__}, not a plain matrix; merge "
                        "adapters first (python -m lora merge), or take the run before the change")
    if is_empty(bert, layer, matrix):
        raise UserError(f"{layer}:{matrix} is empty, because all heads or neurons were removed")
    return found


def is_empty(bert, layer, matrix):
    """Whether pruning has removed all rows or columns of this matrix."""
    weight = getattr(bert.get_submodule(module_name(bert, layer, matrix)), "weight", None)
    return weight is not None and not weight.numel()
