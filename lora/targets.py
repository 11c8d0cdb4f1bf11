"""Where adapters may be in a Bert, and where they are. A model remembers nothing of its own about
them: what is attached is what its modules hold."""

import re

from torch import nn

from bert import UserError
from bert.errors import did_you_mean
from lora.layers import AdapterLayer, unknown

TARGETS = {                                                  # a layer's matrices: name → place
    "query": "attention.query", "key": "attention.key", "value": "attention.value",
    "attention_output": "attention.output", "fc_in": "ffn.fc_in", "fc_out": "ffn.fc_out",
}
NAME = re.compile(r"[A-Za-z0-9_-]+")


def module_name_of(bert, layer, target):
    """(3, "query") → "layers.3.attention.query" """
    if target not in TARGETS:
        raise UserError(f"there is no target {target!r}{did_you_mean(str(target), TARGETS)}; a "
                        f"layer has {', '.join(TARGETS)}")
    if layer not in range(len(bert.layers)):
        raise UserError(f"there is no layer {layer}; the model has layers 0 to "
                        f"{len(bert.layers) - 1}")
    return f"layers.{layer}.{TARGETS[target]}"


def layernorm_names(bert):
    return ["embedding_norm"] + [f"layers.{layer}.{norm}" for layer in range(len(bert.layers))
                                 for norm in ("attention_norm", "output_norm")]


def replace(bert, module_name, module):
    parent, _, attribute = module_name.rpartition(".")
    setattr(bert.get_submodule(parent), attribute, module)
    return module


def base_layer(bert, module_name):
    """The module that the checkpoint's weights are in, whatever holds it now."""
    module = bert.get_submodule(module_name)
    return module.base if isinstance(module, AdapterLayer) else module


def adapter_layers(bert):
    """{place: module} of all that hold adapters."""
    return {module_name: module for module_name, module in bert.named_modules() if isinstance(module, AdapterLayer)}


def adapter_names(bert):
    """The adapters attached, in the order in which they came."""
    return list(next(iter(adapter_layers(bert).values())).adapters) if adapter_layers(bert) else []


def adapter_parameters(bert, name):
    """One adapter's parameters by their names in the model: of its matrices and its LayerNorms."""
    check_name(bert, name)
    return {f"{module_name}.adapters.{name}.{key}": parameter for module_name, module in adapter_layers(bert).items()
            if module.adapters[name] is not None
            for key, parameter in module.adapters[name].named_parameters()}


def matrices(bert, name):
    """One adapter's modules beside matrices, {(layer, target): module}; its LayerNorms left out."""
    check_name(bert, name)
    inner = {f"layers.{layer}.{inside}": (layer, target) for layer in range(len(bert.layers))
             for target, inside in TARGETS.items()}
    return {inner[module_name]: module.adapters[name] for module_name, module in adapter_layers(bert).items()
            if module_name in inner and module.adapters[name] is not None}


def check_name(bert, name):
    if name not in adapter_names(bert):
        raise unknown(name, adapter_names(bert))


def check_new(bert, name):
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        raise UserError(f"an adapter cannot be called {name!r}; choose a plain word of letters, "
                        f"digits, - and _")
    if name in adapter_names(bert):
        raise UserError(f"there is an adapter {name!r} already; detach it first, or choose another "
                        f"name")
    check_unmerged(bert)


def check_unmerged(bert):
    merged = next((m.merged for m in adapter_layers(bert).values() if m.merged is not None), None)
    if merged is not None:
        raise UserError(f"adapter {merged!r} is merged into the weights, which are not the "
                        f"pretrained ones now; unmerge first")
