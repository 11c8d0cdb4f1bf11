"""Operations on the adapters of a model: attach, activate, train_only, merge, unmerge, detach. Each
changes the model in place; train() and eval() do none of them."""

from contextlib import contextmanager

from torch import nn

from bert import UserError
from bert.matrices import MATRICES, module_name, replace_module
from bert.model import PackedLinear
from lora.kinds import make_adapter
from lora.layers import AdaptedLayerNorm, AdapterLayer, LayerNormCopy, LoRALinear
from lora.targets import (
    adapter_layers,
    adapter_names,
    adapter_parameters,
    base_layer,
    check_attached,
    check_new,
    check_unmerged,
    layernorm_names,
)


def attach(bert, targets=("query", "value"), rank=8, adapters=("default",), alpha=None, dropout=0.0,
           layernorms=False, kind="lora"):
    """Add new adapters, all of the same kind, and freeze the pretrained weights. The new adapters
    are trainable, earlier ones stay as they are. If no adapter is active, the first becomes active.

    targets: matrices to adapt in every layer (bert.matrices.MATRICES). rank: an int, or
    {(layer, matrix): int}, which replaces `targets`. alpha: ΔW is scaled by alpha/rank (None: by
    1). layernorms: give each adapter its own copy of all LayerNorms. kind: a row of lora/kinds.py.
    Matrices from which all heads were removed get no adapter. UserError if nothing would be
    adapted, a name is taken or unknown, or a matrix is not plain; the model is then unchanged."""
    if isinstance(adapters, str) or isinstance(targets, str):
        raise UserError("adapters and targets are lists of names; write ('a',) for a single one")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is {dropout}; it must be 0 or more and below 1")
    ranks = rank if isinstance(rank, dict) else {
        (layer, matrix): rank for layer in range(len(bert.layers)) for matrix in targets}
    adapted, new = plain_matrices(bert, ranks), {}
    for adapter in adapters:
        check_new(bert, adapter)
        new[adapter] = {name: make_adapter(kind, base.weight, rank, rank if alpha is None else alpha,
                                           dropout) for name, (base, rank) in adapted.items()}
        for name in layernorm_names(bert) if layernorms else ():
            new[adapter][name] = LayerNormCopy(base_layer(bert, name))
    insert_adapters(bert, new)
    return bert


def plain_matrices(bert, ranks):
    """{(layer, matrix): rank} → {module's name: (PackedLinear, rank)}, without empty matrices."""
    if not ranks:
        raise UserError(f"no matrix is named, so nothing would be trained; choose targets among "
                        f"{', '.join(MATRICES)}")
    found = {}
    for (layer, matrix), rank in ranks.items():
        name = module_name(bert, layer, matrix)
        base = base_layer(bert, name)
        if not isinstance(rank, int) or rank < 1:
            raise UserError(f"the rank of {matrix} in layer {layer} is {rank}; it must be a whole "
                            f"number from 1 on (leave the matrix out to adapt nothing)")
        if not isinstance(base, PackedLinear):
            raise UserError(f"{name} is a {type(base).__name__}, and LoRA adapts plain matrices; "
                            f"attach adapters before matrices are factored, or choose others")
        if base.weight.numel():
            found[name] = base, rank
    return found


def insert_adapters(bert, new):
    """Insert new adapters {adapter: {module's name: module}}."""
    before, active = adapter_names(bert), active_adapter(bert)
    for name in dict.fromkeys(name for modules in new.values() for name in modules):
        base = bert.get_submodule(name)
        if not isinstance(base, AdapterLayer):
            layer = AdaptedLayerNorm if isinstance(base, nn.LayerNorm) else LoRALinear
            replace_module(bert, name, layer(base)).adapters.update(dict.fromkeys(before))
    for name, layer in adapter_layers(bert).items():
        layer.adapters.update({adapter: modules.get(name) for adapter, modules in new.items()})
        layer.train(layer.base.training)
    for name, parameter in bert.named_parameters():
        if ".adapters." not in name:
            parameter.requires_grad_(False)
    activate(bert, active or next(iter(new)))


def active_adapter(bert):
    """The name of the active adapter, or None."""
    return next((layer.active for layer in adapter_layers(bert).values()), None)


def activate(bert, adapter):
    """Apply this adapter (None: none) to every sequence whose layout names no adapter."""
    if adapter is not None:
        check_attached(bert, adapter)
    for layer in adapter_layers(bert).values():
        layer.active = adapter


def train_only(bert, adapters):
    """Make these adapters trainable and freeze everything else."""
    for adapter in adapters:
        check_attached(bert, adapter)
    bert.requires_grad_(False)
    for adapter in adapters:
        for parameter in adapter_parameters(bert, adapter).values():
            parameter.requires_grad_(True)


def merge(bert, adapter):
    """W ← W₀ + ΔW, and the adapter's LayerNorms replace the pretrained ones, so that it costs
    nothing in the forward pass. Starts from W₀ each time: merging twice is merging once."""
    check_attached(bert, adapter)
    for layer in adapter_layers(bert).values():
        layer.merge(adapter)
    activate(bert, adapter)


def unmerge(bert):
    """Restore the pretrained weights bit for bit. Does nothing if no adapter is merged."""
    for layer in adapter_layers(bert).values():
        layer.unmerge()


def detach(bert, adapter=None):
    """Remove one adapter, or all (None). Removing the last one restores the plain modules, which are
    trainable again; a merged adapter stays in their weights: merge, then detach gives a plain Bert."""
    if adapter is not None:
        check_attached(bert, adapter)
        if next(iter(adapter_layers(bert).values())).merged == adapter:
            raise UserError(f"adapter {adapter!r} is merged into the weights; unmerge first")
    for name, layer in adapter_layers(bert).items():
        for gone in list(layer.adapters) if adapter is None else [adapter]:
            del layer.adapters[gone]
            layer.active = None if layer.active == gone else layer.active
        if not layer.adapters:
            replace_module(bert, name, layer.base)
    if not adapter_layers(bert):
        bert.requires_grad_(True)


@contextmanager
def detached(bert):
    """Context in which the pretrained modules replace their AdapterLayers, so that the encoder can
    be saved or counted without adapters. UserError if an adapter is merged."""
    check_unmerged(bert)
    layers = adapter_layers(bert)
    for name, layer in layers.items():
        replace_module(bert, name, layer.base)
    try:
        yield bert
    finally:
        for name, layer in layers.items():
            replace_module(bert, name, layer)
