"""Operations on the adapters of a model, in place. The model keeps no list of its adapters: the
names in its AdapterLayers are the list."""

import re
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn

from bert.errors import UserError, check_known
from bert.linear import PackedLinear
from bert.matrices import MATRICES, module_name
from lora.kinds import make_adapter
from lora.layers import AdaptedLayerNorm, AdapterLayer
from lora.linear import LoRALinear


def matrix_names(bert):
    """{module's name: (layer, matrix)}"""
    return {module_name(bert, layer, matrix): (layer, matrix)
            for layer in range(len(bert.layers)) for matrix in MATRICES}


def layernorm_names(bert):
    """[module's name]"""
    return ["embedding_norm"] + [f"layers.{layer}.{norm}" for layer in range(len(bert.layers))
                                 for norm in ("attention_norm", "output_norm")]


def base_layer(bert, name):
    """The pretrained module called `name`; if an AdapterLayer replaces it, its `base`."""
    module = bert.get_submodule(name)
    return module.base if isinstance(module, AdapterLayer) else module


def adapter_layers(bert):
    """{module's name: AdapterLayer}"""
    return {name: module for name, module in bert.named_modules()
            if isinstance(module, AdapterLayer)}


def adapter_names(bert):
    """The names of the attached adapters, oldest first."""
    return next((list(layer.adapters) for layer in adapter_layers(bert).values()), [])


def adapter_parameters(bert, adapter):
    """{name in the model: parameter} of one adapter, its LayerNorms included."""
    check_attached(bert, adapter)
    return {name: parameter for name, parameter in bert.named_parameters()
            if f".adapters.{adapter}." in name}


def matrices(bert, adapter):
    """{(layer, matrix): adapter module} of one adapter, without its LayerNorms."""
    check_attached(bert, adapter)
    keys = matrix_names(bert)
    return {keys[name]: layer.adapters[adapter] for name, layer in adapter_layers(bert).items()
            if name in keys and layer.adapters[adapter] is not None}


def check_attached(bert, adapter):
    check_known(adapter, adapter_names(bert), "adapter")


def check_new(bert, adapter):
    if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter):
        raise UserError(f"an adapter cannot be called {adapter!r}; use letters, digits, - and _")
    if hasattr(nn.ModuleDict, adapter):
        raise UserError(f"an adapter cannot be called {adapter!r}, a name that torch reserves")
    if adapter in adapter_names(bert):
        raise UserError(f"there is an adapter {adapter!r} already; choose another name")
    check_unmerged(bert)


def check_unmerged(bert):
    """UserError if an adapter is merged: the weights are then not the pretrained ones."""
    for layer in adapter_layers(bert).values():
        if layer.merged is not None:
            raise UserError(f"adapter {layer.merged!r} is merged into the weights; unmerge first")


def attach(bert, targets=("query", "value"), rank=8, adapters=("default",), alpha=None, dropout=0.0,
           layernorms=False, kind="lora"):
    """Add new trainable adapters and freeze the pretrained weights. If no adapter is active, the
    first of the new ones becomes active. After a UserError the model is unchanged.

    targets: matrices to adapt in every layer (bert.matrices.MATRICES). rank: an int, or
    {(layer, matrix): int}, which replaces `targets`. alpha: ΔW is scaled by alpha/rank (None: by
    1). layernorms: give each adapter its own copy of all LayerNorms. kind: a row of lora/kinds.py.
    Empty matrices get no adapter."""
    if isinstance(adapters, str) or isinstance(targets, str):
        raise UserError("adapters and targets are lists of names; write ('a',) for a single one")
    if not adapters:
        raise UserError("adapters is empty; name at least one")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is {dropout}; it must be 0 or more and below 1")
    ranks = rank if isinstance(rank, dict) else {
        (layer, matrix): rank for layer in range(len(bert.layers)) for matrix in targets}
    if not ranks:
        raise UserError(f"nothing would be trained; choose targets among {', '.join(MATRICES)}")
    adapted, new = {}, {}
    for (layer, matrix), r in ranks.items():
        name = module_name(bert, layer, matrix)
        base = base_layer(bert, name)
        if not isinstance(r, int) or r < 1:
            raise UserError(f"the rank of {matrix} in layer {layer} is {r}; choose 1 or more")
        if r > max(bert.config.hidden_size, bert.config.intermediate_size):
            raise UserError(f"the rank {r:,} is more than any matrix of this model has; {matrix} "
                            f"in layer {layer} has at most {min(base.weight.shape):,}")
        if not isinstance(base, PackedLinear):
            raise UserError(f"{name} is a {type(base).__name__}, and LoRA adapts plain matrices; "
                            f"attach adapters before matrices are factored, or choose others")
        if base.weight.numel():
            adapted[name] = base, r
    for adapter in adapters:
        check_new(bert, adapter)
        new[adapter] = {name: make_adapter(kind, base.weight, r, alpha or r, dropout)
                        for name, (base, r) in adapted.items()}
        for name in layernorm_names(bert) if layernorms else ():
            new[adapter][name] = deepcopy(base_layer(bert, name)).requires_grad_()
    insert_adapters(bert, new)
    return bert


def insert_adapters(bert, new):
    """Insert new adapters {adapter: {module's name: module}}."""
    before = adapter_names(bert)
    active = next((layer.active for layer in adapter_layers(bert).values()), None)
    for name in dict.fromkeys(name for modules in new.values() for name in modules):
        module = bert.get_submodule(name)
        if not isinstance(module, AdapterLayer):
            layer = (AdaptedLayerNorm if isinstance(module, nn.LayerNorm) else LoRALinear)(module)
            layer.adapters.update(dict.fromkeys(before))
            bert.set_submodule(name, layer)
    for name, layer in adapter_layers(bert).items():
        layer.adapters.update({adapter: modules.get(name) for adapter, modules in new.items()})
        layer.train(layer.base.training)
    for name, parameter in bert.named_parameters():
        if ".adapters." not in name:
            parameter.requires_grad_(False)
    activate(bert, active or next(iter(new)))


def activate(bert, adapter):
    """Apply this adapter (None: none) to every sequence whose layout names no adapter."""
    if adapter is not None:
        check_attached(bert, adapter)
    for layer in adapter_layers(bert).values():
        layer.active = adapter


def train_only(bert, adapters):
    trained = [p for adapter in adapters for p in adapter_parameters(bert, adapter).values()]
    bert.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


@torch.no_grad()
def merge(bert, adapter):
    """W ← W₀ + ΔW, always from W₀, and its LayerNorms; it is active then and after `unmerge`."""
    activate(bert, adapter)
    unmerge(bert)
    for layer in adapter_layers(bert).values():
        if (module := layer.adapters[adapter]) is not None:
            layer.pretrained = deepcopy(layer.base.state_dict())
            if isinstance(module, nn.LayerNorm):
                layer.base.load_state_dict(module.state_dict())
            else:
                module.merge_into(layer.base)
        layer.merged = adapter


def unmerge(bert):
    """Restore the pretrained weights bit for bit."""
    for layer in adapter_layers(bert).values():
        if layer.pretrained:
            layer.base.load_state_dict(layer.pretrained)
        layer.merged, layer.pretrained = None, {}


def detach(bert, adapter=None):
    """Remove one adapter, or all (None). When none is left, the plain modules are restored and
    trainable; after `merge` they hold the merged weights."""
    if adapter is not None:
        check_attached(bert, adapter)
    for name, layer in adapter_layers(bert).items():
        if adapter is not None and layer.merged == adapter:
            check_unmerged(bert)
        for gone in list(layer.adapters) if adapter is None else [adapter]:
            del layer.adapters[gone]
            layer.active = None if layer.active == gone else layer.active
        if not layer.adapters:
            bert.set_submodule(name, layer.base)
    if not adapter_layers(bert):
        bert.requires_grad_(True)


@contextmanager
def detached(bert):
    """Context in which bert has no adapters, to save or count it. UserError if one is merged."""
    check_unmerged(bert)
    layers = adapter_layers(bert)
    for name, layer in layers.items():
        bert.set_submodule(name, layer.base)
    try:
        yield bert
    finally:
        for name, layer in layers.items():
            bert.set_submodule(name, layer)


def count(bert, heads=0):
    """→ the parameters to store, of LoRA-XS R alone: {"base", "heads", "adapters": {name: …},
    "incremental": heads and all adapters, "bundled": all}. `heads`: those outside the encoder."""
    with detached(bert):
        base = sum(parameter.numel() for parameter in bert.parameters())
    sizes = {name: sum(parameter.numel() for parameter in adapter_parameters(bert, name).values())
             for name in adapter_names(bert)}
    incremental = heads + sum(sizes.values())
    return {"base": base, "heads": heads, "adapters": sizes, "incremental": incremental,
            "bundled": base + incremental}
