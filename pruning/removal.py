"""Parts of an encoder taken out for good, in place: what is left computes what it computed before.

    remove_heads(bert, {0: [3, 7], 5: [0]})        # heads by the numbers they had at first
    remove_neurons(bert, {0: [17, 18, 400]})       # rows of fc_in as they are now
    remove_layers(bert, [4, 5])                    # later layers move down: their numbers change

Each changes `bert.config`, by which the saved model is built again, and adds to `bert.edits`.
"""

from dataclasses import replace

from torch import nn

from bert import UserError
from bert.model import PackedLinear

CUT = {"heads": ("attention.query", "attention.key", "attention.value", "attention.output"),
       "neurons": ("ffn.fc_in", "ffn.fc_out")}                   # kind of part → matrices that lose rows
KINDS = ("mask_heads", "remove_heads", "remove_neurons", "remove_layers")    # in bert.edits


def keep_rows(projection, rows):
    """W ← W[rows], b ← b[rows]: these outputs stay."""
    for name in ("weight", "bias"):
        old = getattr(projection, name)
        setattr(projection, name, nn.Parameter(old.detach()[rows], old.requires_grad))
    projection.out_features = len(rows)


def keep_columns(projection, columns):
    """W ← W[:, columns]: these inputs stay, and the whole bias."""
    old = projection.weight
    projection.weight = nn.Parameter(old.detach()[:, columns].contiguous(), old.requires_grad)
    projection.in_features = len(columns)


def remove_heads(bert, heads):
    """heads {layer: [head]}: their rows of query, key and value and their columns of output go. A
    layer may lose all: then its attention is the output's bias. UserError where a head is not
    there, or where no head at all would stay."""
    _check_heads(bert, heads)
    check_plain(bert, "heads", heads)
    gone = dict(bert.config.pruned_heads)
    gone |= {layer: [*gone.get(layer, ()), *numbers] for layer, numbers in heads.items()}
    masked = {layer: [h for h in off if h not in gone.get(layer, ())]
              for layer, off in bert.config.masked_heads.items()}
    config = replace(bert.config, pruned_heads=gone, masked_heads=masked)
    _check_head_left(config)
    for layer in heads:
        attention, left = bert.layers[layer].attention, config.remaining_heads(layer)
        size = attention.head_size
        rows = [attention.head_indices.index(head) * size + i for head in left for i in range(size)]
        for projection in (attention.query, attention.key, attention.value):
            keep_rows(projection, rows)
        keep_columns(attention.output, rows)
        attention.head_indices, attention.num_heads = left, len(left)
    _finish(bert, config, kind="remove_heads", heads=_texts(heads))


def mask_heads(bert, heads):
    """heads {layer: [head]}: switched off in every pass, but still there: a mask as a property of
    the model. Those that were switched off before stay so."""
    _check_heads(bert, heads)
    off = dict(bert.config.masked_heads)
    off |= {layer: [*off.get(layer, ()), *numbers] for layer, numbers in heads.items()}
    config = replace(bert.config, masked_heads=off)
    _check_head_left(config)
    _finish(bert, config, kind="mask_heads", heads=_texts(heads))


def remove_neurons(bert, neurons):
    """neurons {layer: [row of fc_in]}: these rows of fc_in and columns of fc_out go. Rows count
    as they are now: what stays moves up."""
    gone = dict(bert.config.pruned_neurons)
    for layer, numbers in neurons.items():
        _check_layer(bert, layer)
        check_plain(bert, "neurons", [layer])
        here = bert.layers[layer].ffn.fc_in.out_features
        wrong = next((n for n in numbers if not 0 <= n < here), None)
        if wrong is not None or len(set(numbers)) < len(numbers):
            raise UserError(f"layer {layer} has neurons 0 to {here - 1}; "
                            + ("one is named twice" if wrong is None else f"{wrong} is none"))
        gone[layer] = gone.get(layer, 0) + len(numbers)
    if not any(neurons.values()):
        raise UserError("no neuron is to be removed; name at least one")
    config = replace(bert.config, pruned_neurons=gone)
    for layer, numbers in neurons.items():
        fc_in, fc_out = bert.layers[layer].ffn.fc_in, bert.layers[layer].ffn.fc_out
        rows = sorted(set(range(fc_in.out_features)) - set(numbers))
        keep_rows(fc_in, rows)
        keep_columns(fc_out, rows)
    counts = {str(layer): len(numbers) for layer, numbers in neurons.items()}
    _finish(bert, config, kind="remove_neurons", neurons=counts)


def remove_layers(bert, layers):
    """layers [number]: the stack closes over them, so that the numbers of later layers change; of
    an encoder that was edited by layer in another way than here they may not."""
    for layer in layers:
        _check_layer(bert, layer)
    others = [edit["kind"] for edit in bert.edits if edit["kind"] not in KINDS]
    if others:
        raise UserError(f"layers cannot be removed after {', '.join(others)}, which knows layers "
                        f"by number; remove the layers first, or merge adapters (python -m lora "
                        f"merge)")
    left = [n for n in range(len(bert.layers)) if n not in layers]
    if not left or len(left) == len(bert.layers):
        raise UserError(f"{'all' if layers else 'none'} of the {len(bert.layers)} layers would be "
                        f"removed; name some, and leave one")
    fields = {name: {new: getattr(bert.config, name)[old] for new, old in enumerate(left)
                     if old in getattr(bert.config, name)}
              for name in ("pruned_heads", "masked_heads", "pruned_neurons")}
    config = replace(bert.config, num_hidden_layers=len(left), **fields)
    _check_head_left(config)
    bert.layers = nn.ModuleList(bert.layers[n] for n in left)
    _finish(bert, config, kind="remove_layers", layers=sorted(layers))


def _finish(bert, config, **edit):
    bert.config = config
    bert.edits = [*bert.edits, {"method": "pruning", **edit}]
    for number, layer in enumerate(bert.layers):
        layer.attention.set_masked_heads(config, config.masked_heads.get(number, ()))


def _check_head_left(config):
    """Tokens meet in heads alone."""
    if all(set(config.remaining_heads(layer)) <= set(config.masked_heads.get(layer, ()))
           for layer in range(config.num_hidden_layers)):
        raise UserError("all heads of all layers would be removed or switched off; tokens could no "
                        "longer meet: keep at least one")


def _check_layer(bert, layer):
    if not 0 <= layer < len(bert.layers):
        raise UserError(f"there is no layer {layer}; this encoder has layers 0 to "
                        f"{len(bert.layers) - 1}")


def _check_heads(bert, heads):
    if not any(heads.values()):
        raise UserError("no head is named; name at least one")
    for layer, numbers in heads.items():
        _check_layer(bert, layer)
        for head in numbers:
            if not 0 <= head < bert.config.num_attention_heads:
                raise UserError(f"layer {layer} has no head {head}; its heads are 0 to "
                                f"{bert.config.num_attention_heads - 1}")
            if head not in bert.layers[layer].attention.head_indices:
                raise UserError(f"head {head} of layer {layer} is removed already")


def check_plain(bert, kind, layers):
    """Only a plain matrix can lose rows: not one that is factored or carries an adapter."""
    for layer in layers:
        for name in CUT.get(kind, ()):
            found = bert.layers[layer].get_submodule(name)
            if type(found) is not PackedLinear:
                raise UserError(f"{name} of layer {layer} is a {type(found).__name__}, not a plain "
                                f"matrix, so nothing can be removed from it; merge adapters first "
                                f"(python -m lora merge), and prune before matrices are factored")


def _texts(heads):
    """JSON's keys are texts."""
    return {str(layer): sorted(set(numbers)) for layer, numbers in heads.items() if numbers}
