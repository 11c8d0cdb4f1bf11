"""How much the loss depends on each head, neuron or layer (Michel, Levy & Neubig 2019; Wang, Yang &
Sun 2023, section 2.1):

    I(part) = Σ_x |∂L(x)/∂ξ| / tokens       ξ = 1 multiplies what the part adds, and ξ = 0 removes
                                            the part; tokens: the real ones of all examples x

The absolute value stands inside the sum, so every example needs a gradient of its own. Examples do
not influence each other: if each has its own gates, one backward pass of the summed loss is enough.
"""

from contextlib import ExitStack

import torch

from bert.errors import UserError, check_known
from bert.model import FeedForward


def scale_inputs(linear, gates, size=1):
    """Scale the inputs of a PackedLinear, `size` columns by each gate; gates [sequences,
    parts] → the hook's handle. A layer computes M rows: all, or only its `output_rows`."""
    def scale(linear, inputs):
        rows, layout = inputs                                # [M, parts·size]
        gate = gates.index_select(0, layout.sequence)        # [M, parts]
        return rows * gate.repeat_interleave(size, dim=1), layout

    return linear.register_forward_pre_hook(scale)


def gate_layer(layer, gates):
    """x + ξ·(layer(x) - x), so that ξ = 0 gives one without this layer; gates [sequences, 1]."""
    def scale(layer, inputs, options, output):
        hidden, layout = inputs
        if options.get("output_rows") is not None:
            layout = options["output_rows"]
            hidden = hidden.index_select(0, layout.rows)
        return hidden + gates.index_select(0, layout.sequence) * (output - hidden)

    return layer.register_forward_hook(scale, with_kwargs=True)


GATES = {
    "heads": lambda layer, gates: scale_inputs(layer.attention.output, gates,
                                               layer.attention.head_size),
    "neurons": lambda layer, gates: scale_inputs(layer.ffn.fc_out, gates),
    "layers": gate_layer}
NORMS = ("global", "layer")


def zero_importance(config, kind):
    """[layers, parts the layers were built with] in float64: 0, or NaN where a part is gone."""
    width = {"heads": config.num_attention_heads, "neurons": config.intermediate_size, "layers": 1}
    scores = torch.full((config.num_hidden_layers, width[kind]), torch.nan, dtype=torch.float64)
    for layer, row in enumerate(scores):
        row[{"heads": config.remaining_heads(layer), "neurons": slice(config.ffn_size(layer)),
             "layers": 0}[kind]] = 0
    return scores


def feed_forward(bert, layer):
    """The FeedForward of a layer. UserError if another module has replaced it."""
    ffn = bert.layers[layer].ffn
    if not isinstance(ffn, FeedForward):
        raise UserError(f"the feed-forward network of layer {layer} is a {type(ffn).__name__}, not "
                        f"a FeedForward: its neurons cannot be counted or removed")
    return ffn


def importance(bert, batches, loss, kind="heads"):
    """→ raw importance [layers, parts] in float64, NaN where a part is gone. Each batch has .layout
    and .labels [B]; an example may have several sequences (multitask.data.Batch). loss(batch) runs
    `bert`, in eval mode (dropout would be noise), and returns the *sum* of the examples' losses.
    Gates have the dtype and device of the weights. All weights are frozen meanwhile: they take no
    memory for gradients. UserError if there is no such kind, or no example."""
    check_known(kind, GATES, "kind of part")
    raw, tokens = zero_importance(bert.config, kind), 0
    layers = [layer for _, layer, _ in bert.walk()]
    for number in range(len(layers)) if kind == "neurons" else ():
        feed_forward(bert, number)                           # UserError if it was replaced
    weight, parts = bert.word_embeddings.weight, (~raw.isnan()).sum(dim=1).tolist()
    sums = [weight.new_zeros(count, dtype=torch.float64) for count in parts]
    for batch in batches:
        gates = [weight.new_ones(len(batch.labels), count, requires_grad=True) for count in parts]
        texts = batch.layout.batch // len(batch.labels)      # 2 where a pair's texts are separate
        with ExitStack() as undo:
            for parameter in bert.parameters():
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
            for layer, ones in zip(layers, gates):
                undo.enter_context(GATES[kind](layer, ones.repeat(texts, 1)))
            gradients = torch.autograd.grad(loss(batch), gates)
        for total, gradient in zip(sums, gradients):
            total += gradient.double().abs().sum(dim=0)
        tokens += len(batch.layout)
    if not tokens:
        raise UserError("importance needs at least one example")
    if not all(total.isfinite().all() for total in sums):
        raise UserError("the gradients of the loss are not finite, so nothing can be said of what "
                        "matters to it; train again with a lower --lr")
    for row, total in zip(raw, sums):
        row[~row.isnan()] = total.cpu() / tokens
    return raw


def normalize(raw, by="global"):
    """I' = I/(‖I‖₂ + ε), then (I' - min I')/(max I' - min I'): from 0 to 1 (Wang, Yang & Sun, eq. 1
    and 2), ε = 1e-20; max - min is at least 1e-20 too, so equal scores give 0. raw [layers, parts]
    → the same shape, NaN where a part is gone. by="global" takes the norm of all parts, by="layer"
    that of each layer's row, as the code of Michel, Levy & Neubig does (benchmarks/importance.py
    compares them); of whole layers, a table of one column, the norm is always global. Minimum and
    maximum are those of the whole table in each case."""
    check_known(by, NORMS, "norm")
    if raw.isnan().all():
        raise UserError("nothing is left whose importance could be compared")
    values = raw.nan_to_num()
    rows = by == "layer" and raw.size(1) > 1
    norm = values.norm(dim=1, keepdim=True) if rows else values.norm()
    scaled = raw / norm.add(1e-20)
    there = scaled[~scaled.isnan()]
    return (scaled - there.min()) / (there.max() - there.min()).clamp(min=1e-20)
