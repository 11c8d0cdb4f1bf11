"""Remove parts of an encoder for good, in place. The other parts stay as they are.

    remove_heads(bert, {0: [3, 7], 5: [0]})        # {layer: [head]}, heads by original numbers
    mask_heads(bert, {0: [3]})                     # switched off, but still there
    remove_neurons(bert, {0: [17, 18, 400]})       # {layer: [row of fc_in]}, rows as they are now
    remove_layers(bert, [4, 5])                    # later layers are renumbered

Each changes `bert.config`, from which a saved model is rebuilt, and adds to `bert.edits`.
Each raises UserError, and changes nothing, if a part is not there, if none is named, if no head at
all would be left, or if a matrix is not a plain one (it is factored, or carries an adapter)."""

from dataclasses import replace
from textwrap import shorten

from torch import nn

from bert.errors import UserError, check_known
from bert.matrices import get_linear
from pruning.gates import feed_forward, zero_importance

CUT = {"heads": ("query", "key", "value", "attention_output"), "neurons": ("fc_in", "fc_out")}


def keep_rows(linear, rows):
    """W ← W[rows], b ← b[rows]: these outputs of a PackedLinear stay, in this order."""
    for name in ("weight", "bias"):
        old = getattr(linear, name)
        setattr(linear, name, nn.Parameter(old.detach()[rows], old.requires_grad))
    linear.out_features = len(rows)


def keep_columns(linear, columns):
    """W ← W[:, columns]: these inputs of a PackedLinear stay, and the whole bias."""
    old = linear.weight
    linear.weight = nn.Parameter(old.detach()[:, columns].contiguous(), old.requires_grad)
    linear.in_features = len(columns)


def remove_heads(bert, heads):
    """Remove rows of query, key and value and columns of the output matrix: d of them a head, in
    the order of attention.head_indices. heads: {layer: [head]}, by original numbers. Without heads
    a layer's attention is the output matrix's bias."""
    heads = _check_parts(bert, heads, "head", bert.config.remaining_heads)
    matrices = plain_matrices(bert, "heads", heads)
    gone = _union(bert.config.pruned_heads, heads)
    masked = {layer: [head for head in off if head not in gone.get(layer, ())]
              for layer, off in bert.config.masked_heads.items()}
    config = replace(bert.config, pruned_heads=gone, masked_heads=masked)
    _record(bert, config, kind="remove_heads", heads=heads)
    for layer, (query, key, value, output) in matrices.items():
        attention, left = bert.layers[layer].attention, config.remaining_heads(layer)
        size = attention.head_size
        rows = [attention.head_indices.index(head) * size + i for head in left for i in range(size)]
        for linear in (query, key, value):
            keep_rows(linear, rows)
        keep_columns(output, rows)
        attention.head_indices, attention.num_heads = left, len(left)
        attention.set_masked_heads(config, config.masked_heads.get(layer, ()))


def mask_heads(bert, heads):
    """Switch these heads off in every pass. Heads that are off already stay off."""
    heads = _check_parts(bert, heads, "head", bert.config.remaining_heads)
    config = replace(bert.config, masked_heads=_union(bert.config.masked_heads, heads))
    _record(bert, config, kind="mask_heads", heads=heads)
    for layer in heads:
        bert.layers[layer].attention.set_masked_heads(config, config.masked_heads[layer])


def remove_neurons(bert, neurons):
    """Remove rows of fc_in and columns of fc_out, each named once. The rows that stay move up."""
    for layer, rows in neurons.items():
        if len(set(rows)) < len(rows):
            raise UserError(f"a neuron of layer {layer} is named twice; name each once")
    neurons = _check_parts(bert, neurons, "neuron", lambda n: range(bert.config.ffn_size(n)))
    matrices = plain_matrices(bert, "neurons", neurons)
    old, counts = bert.config.pruned_neurons, {layer: len(rows) for layer, rows in neurons.items()}
    gone = old | {layer: old.get(layer, 0) + count for layer, count in counts.items()}
    config = replace(bert.config, pruned_neurons=gone)
    _record(bert, config, kind="remove_neurons", neurons=counts)
    for layer, (fc_in, fc_out) in matrices.items():
        rows = sorted(set(range(fc_in.out_features)) - set(neurons[layer]))
        keep_rows(fc_in, rows)
        keep_columns(fc_out, rows)


def remove_layers(bert, layers):
    """Remove these layers; refused if an edit of another method names layers by number."""
    layers = sorted(_check_parts(bert, dict.fromkeys(layers, [0]), "layer", lambda n: [0]))
    check_removable(bert, "layers")
    left = [number for number in range(len(bert.layers)) if number not in layers]
    if not left:
        raise UserError(f"all of the {len(bert.layers)} layers would be removed; leave one")
    renumbered = {}
    for name in ("pruned_heads", "masked_heads", "pruned_neurons"):
        old = getattr(bert.config, name)
        renumbered[name] = {new: old[number] for new, number in enumerate(left) if number in old}
    config = replace(bert.config, num_hidden_layers=len(left), **renumbered)
    _record(bert, config, kind="remove_layers", layers=layers)
    bert.layers = nn.ModuleList(bert.layers[number] for number in left)


def plain_matrices(bert, kind, layers):
    """→ {layer: [the matrices that lose rows or columns]}. UserError if one is not a plain one."""
    for layer in layers if kind == "neurons" else ():
        feed_forward(bert, layer)
    return {layer: [get_linear(bert, layer, name) for name in CUT[kind]] for layer in layers}


def check_removable(bert, kind):
    """UserError if parts of this kind cannot be removed from some layer that has any."""
    if kind != "layers":
        scores = zero_importance(bert.config, kind)
        plain_matrices(bert, kind, [n for n, row in enumerate(scores) if not row.isnan().all()])
        return
    others = [edit["method"] for edit in bert.edits if edit["method"] != "pruning"]
    if others:
        raise UserError(f"layers cannot be removed after {', '.join(others)}, which names layers "
                        f"by number; remove layers first, or merge adapters (python -m lora merge)")


def _record(bert, config, **edit):
    """Give bert this config and add to its edits. UserError, and no change, if no head is left."""
    if all(set(config.remaining_heads(layer)) <= set(config.masked_heads.get(layer, ()))
           for layer in range(config.num_hidden_layers)):
        raise UserError("all heads of all layers would be removed or switched off; tokens could no "
                        "longer attend to each other: keep at least one")
    edit = {name: {str(layer): parts for layer, parts in value.items()}    # keys as in JSON
            if isinstance(value, dict) else value for name, value in edit.items()}
    bert.config, bert.edits = config, [*bert.edits, {"method": "pruning", **edit}]


def _union(old, new):
    return old | {layer: [*old.get(layer, ()), *heads] for layer, heads in new.items()}


def _check_parts(bert, parts, what, left):
    """{layer: [part]} → the same, sorted, without empty lists. left(layer): the parts it has."""
    parts = {layer: sorted(set(numbers)) for layer, numbers in parts.items() if numbers}
    if not parts:
        raise UserError(f"no {what} is named; name at least one")
    for layer, numbers in parts.items():
        check_known(layer, range(len(bert.layers)), "layer")
        for number in sorted(set(numbers) - set(left(layer))):
            names = shorten(", ".join(map(str, left(layer))) or "none", 60)
            raise UserError(f"layer {layer} has no {what} {number}; it has {names}")
    return parts
