"""Adapters come and go: attach, activate, merge, unmerge, detach. Each changes the model in place,
and none of them happens as a side effect of train() or eval()."""

from contextlib import contextmanager

from torch import nn

from bert import UserError
from bert.model import PackedLinear
from lora.kinds import make_adapter
from lora.layers import AdaptedLayerNorm, AdapterLayer, LayerNormCopy, LoRALinear
from lora.targets import (
    TARGETS,
    adapter_layers,
    adapter_names,
    adapter_parameters,
    base_layer,
    check_name,
    check_new,
    check_unmerged,
    layernorm_names,
    module_name_of,
    replace,
)


def attach(bert, targets=("query", "value"), rank=8, adapters=("default",), alpha=None, dropout=0.0,
           layernorms=False, kind="lora"):
    """Give a Bert new adapters, all of the same kind. What was pretrained is frozen, the new ones
    train, those attached before are left as they are. The first becomes the active one if none is.

    targets: which matrices of every layer (see TARGETS). rank: an int, or {(layer, target): int}
    where it differs, which then says by itself which matrices have an adapter; a matrix from which
    all heads were removed has none. alpha: ΔW is scaled
    by alpha/rank; None makes the scale 1. layernorms: each adapter also owns a copy of all
    LayerNorms. kind: a row's name in lora/kinds.py."""
    if isinstance(adapters, str) or isinstance(targets, str):
        raise UserError("adapters and targets are lists of names; write ('a',) for a single one")
    ranks = rank if isinstance(rank, dict) else {
        (layer, target): rank for layer in range(len(bert.layers)) for target in targets}
    check_ranks(ranks, dropout)
    module_names = {module_name_of(bert, *where): rank for where, rank in ranks.items()}
    for module_name in module_names:
        module = base_layer(bert, module_name)
        if not isinstance(module, PackedLinear):
            raise UserError(f"{module_name} is a {type(module).__name__}, and LoRA adapts plain "
                            f"matrices; attach adapters before matrices are factored, or choose "
                            f"others")
    module_names = {module_name: rank for module_name, rank in module_names.items()
              if base_layer(bert, module_name).weight.numel()}
    new = {}
    for name in adapters:
        check_new(bert, name)
        new[name] = {module_name: make_adapter(kind, base_layer(bert, module_name).weight, rank,
                                         rank if alpha is None else alpha, dropout)
                     for module_name, rank in module_names.items()}
        for module_name in layernorm_names(bert) if layernorms else ():
            new[name][module_name] = LayerNormCopy(base_layer(bert, module_name))
    insert_adapters(bert, new)
    return bert


def check_ranks(ranks, dropout):
    if not ranks:
        raise UserError(f"no matrix is named, so nothing would be trained; choose targets among "
                        f"{', '.join(TARGETS)}")
    for (layer, target), rank in ranks.items():
        if not isinstance(rank, int) or rank < 1:
            raise UserError(f"the rank of {target} in layer {layer} is {rank}; it must be a whole "
                            f"number from 1 on (leave the matrix out to adapt nothing)")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is {dropout}; it must be 0 or more and below 1")


def insert_adapters(bert, new):
    """Put new adapters {name: {place: module}} in their places."""
    before, active = adapter_names(bert), active_adapter(bert)
    for module_name in dict.fromkeys(module_name for modules in new.values() for module_name in modules):
        module = bert.get_submodule(module_name)
        if not isinstance(module, AdapterLayer):
            holder = AdaptedLayerNorm if isinstance(module, nn.LayerNorm) else LoRALinear
            replace(bert, module_name, holder(module)).adapters.update(dict.fromkeys(before))
    for module_name, module in adapter_layers(bert).items():              # None: it leaves this module as it is
        module.adapters.update({name: modules.get(module_name) for name, modules in new.items()})
        module.train(module.base.training)
    for name, parameter in bert.named_parameters():
        if ".adapters." not in name:
            parameter.requires_grad_(False)
    activate(bert, active or next(iter(new)))


def active_adapter(bert):
    return next((module.active for module in adapter_layers(bert).values()), None)


def activate(bert, name):
    """Let this adapter (None: none) serve the sequences of layouts that name no adapter."""
    if name is not None:
        check_name(bert, name)
    for module in adapter_layers(bert).values():
        module.active = name


def train_only(bert, adapters):
    """Train these adapters from now on, and freeze all else."""
    for name in adapters:
        check_name(bert, name)
    bert.requires_grad_(False)
    for name in adapter_names(bert):
        for parameter in adapter_parameters(bert, name).values():
            parameter.requires_grad_(name in adapters)


def merge(bert, name):
    """W ← W₀ + ΔW, and the adapter's LayerNorms in place of the pretrained ones: no extra work is
    left in the forward pass. It starts from W₀ each time, so that twice is once."""
    check_name(bert, name)
    for module in adapter_layers(bert).values():
        module.merge(name)
    activate(bert, name)


def unmerge(bert):
    """Put the pretrained weights back, bit for bit. Without a merged adapter it does nothing."""
    for module in adapter_layers(bert).values():
        module.unmerge()


def detach(bert, name=None):
    """Remove one adapter, or all. With the last one the plain layers come back, and train again;
    those into which an adapter is merged keep it, so that merge and detach leave a plain Bert."""
    if name is not None:
        check_name(bert, name)
    for module_name, module in adapter_layers(bert).items():
        for gone in list(module.adapters) if name is None else [name]:
            if module.merged == gone and name is not None:
                raise UserError(f"adapter {gone!r} is merged into the weights; unmerge first")
            del module.adapters[gone]
            module.active = None if module.active == gone else module.active
        if not module.adapters:
            replace(bert, module_name, module.base)
    if not adapter_layers(bert):
        bert.requires_grad_(True)


@contextmanager
def detached(bert):
    """Within this context the pretrained modules are in their places, as when the model is to be
    saved without its adapters."""
    check_unmerged(bert)
    holders = adapter_layers(bert)
    for module_name, module in holders.items():
        replace(bert, module_name, module.base)
    try:
        yield bert
    finally:
        for module_name, module in holders.items():
            replace(bert, module_name, module)


def by_adapter(rows):
    """The adapter of each sequence of a batch, in any order → the order in which to put the
    sequences, and the [(name, number of sequences), …] that Layout.served_by takes."""
    kinds = list(dict.fromkeys(rows))
    order = sorted(range(len(rows)), key=lambda i: kinds.index(rows[i]))
    return order, [(name, rows.count(name)) for name in kinds]
