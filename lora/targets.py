"""Which modules of a Bert can hold adapters, and which do. The model keeps no list of its adapters:
its AdapterLayers are the list."""

import re

from torch import nn

from bert import UserError
from bert.errors import check_known
from bert.matrices import MATRICES, module_name
from lora.layers import AdapterLayer

NAME = re.compile(r"[A-Za-z0-9_-]+")


def matrix_names(bert):
    """{module's name: (layer, matrix)} of all matrices, as "layers.3.attention.query": (3, "query")"""
    return {module_name(bert, layer, matrix): (layer, matrix)
            for layer in range(len(bert.layers)) for matrix in MATRICES}


def layernorm_names(bert):
    """The names of all LayerNorms."""
    return ["embedding_norm"] + [f"layers.{layer}.{norm}" for layer in range(len(bert.layers))
                                 for norm in ("attention_norm", "output_norm")]


def base_layer(bert, name):
    """The pretrained module called `name`, without the AdapterLayer that may hold it."""
    module = bert.get_submodule(name)
    return module.base if isinstance(module, AdapterLayer) else module


def adapter_layers(bert):
    """{module's name: AdapterLayer}"""
    return {name: module for name, module in bert.named_modules()
            if isinstance(module, AdapterLayer)}


def adapter_names(bert):
    """The names of the attached adapters, oldest first."""
    layers = list(adapter_layers(bert).values())
    return list(layers[0].adapters) if layers else []


def adapter_parameters(bert, adapter):
    """{name in the model: parameter} of one adapter, its LayerNorms included."""
    check_attached(bert, adapter)
    return {name: parameter for name, parameter in bert.named_parameters()
            if f".adapters.{adapter}." in name}


def matrices(bert, adapter):
    """{(layer, matrix): module} of one adapter, without its LayerNorms."""
    check_attached(bert, adapter)
    keys = matrix_names(bert)
    return {keys[name]: layer.adapters[adapter] for name, layer in adapter_layers(bert).items()
            if name in keys and layer.adapters[adapter] is not None}


def check_attached(bert, adapter):
    """UserError unless an adapter of this name is attached."""
    check_known(adapter, adapter_names(bert), "adapter")


def check_new(bert, adapter):
    """UserError unless an adapter of this name can be attached."""
    if not NAME.fullmatch(adapter) or hasattr(nn.ModuleDict, adapter):
        raise UserError(f"an adapter cannot be called {adapter!r}; choose a plain word of letters, "
                        f"digits, - and _")
    if adapter in adapter_names(bert):
        raise UserError(f"there is an adapter {adapter!r} already; detach it first, or choose "
                        f"another name")
    check_unmerged(bert)


def check_unmerged(bert):
    """UserError if an adapter is merged: the weights are not the pretrained ones then."""
    for layer in adapter_layers(bert).values():
        if layer.merged is not None:
            raise UserError(f"adapter {layer.merged!r} is merged into the weights, which are not "
                            f"the pretrained ones now; unmerge first")
