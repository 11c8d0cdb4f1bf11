"""How much the loss depends on each head, neuron or layer (Michel et al. 2019; Wang et al.'s §2.1):

    I(part) = Σ_x |∂L(x)/∂ξ_part| / tokens       ξ = 1 multiplies what the part adds; at ξ = 0 the
                                                 part is removed;  tokens: the real ones of all x

|·| stands inside the sum, so each example needs a gradient of its own. Examples do not meet, so one
backward pass of the summed loss gives them all when every example has its own gate. Weights need no
gradients, activations do.

The last layer works at [CLS] alone where only that is read, and its gates see only that.
"""

from contextlib import contextmanager

import torch

from bert import UserError


def gate_heads(layer, gates):
    """gates [B, heads of the layer] scale each head's context before the output matrix. Of M rows:
    all, or those that the last layer is asked for."""
    def scale(output, inputs):
        context, layout = inputs                             # [M, heads·d]
        gate = gates.index_select(0, layout.sequence)        # [M, heads]
        return context * gate.repeat_interleave(layer.attention.head_size, dim=1), layout

    return layer.attention.output.register_forward_pre_hook(scale)


def gate_neurons(layer, gates):
    """gates [B, neurons of the layer] scale each activation of the feed-forward network, of the
    same M rows."""
    def scale(fc_out, inputs):
        inner, layout = inputs                               # [M, neurons]
        return inner * gates.index_select(0, layout.sequence), layout

    return layer.ffn.fc_out.register_forward_pre_hook(scale)


def gate_layer(layer, gates):
    """gates [B, 1]: x + ξ·(layer(x) - x), so that ξ = 0 is an encoder without this layer."""
    def scale(layer, inputs, options, output):
        hidden, layout = inputs
        if options.get("output_rows") is not None:
            layout = options["output_rows"]
            hidden = hidden.index_select(0, layout.rows)
        return hidden + gates.index_select(0, layout.sequence) * (output - hidden)

    return layer.register_forward_hook(scale, with_kwargs=True)


GATES = {                                                    # kind → (gate, the parts of a layer)
    "heads": (gate_heads, lambda config, layer: config.remaining_heads(layer)),
    "neurons": (gate_neurons, lambda config, layer: list(range(config.ffn_size(layer)))),
    "layers": (gate_layer, lambda config, layer: [0]),
}


def original_count(config, kind):
    """How many parts each layer was built with: the width of the importance [layers, parts]."""
    return {"heads": config.num_attention_heads, "neurons": config.intermediate_size,
            "layers": 1}[kind]


def importance(bert, batches, loss, kind="heads"):
    """→ raw importance [layers, parts] in float64, NaN where a part was removed. `batches` yields
    multitask.data.Batch (or what has .layout and .labels), `loss(batch)` is the *sum* of its
    examples' losses, computed through `bert`. Put the model into eval mode first: dropout would be
    noise."""
    if kind not in GATES:
        raise UserError(f"there is no kind of part {kind!r}; there are {', '.join(GATES)}")
    gate, parts_of = GATES[kind]
    parts = [parts_of(bert.config, number) for number in range(len(bert.layers))]
    weight, tokens = bert.word_embeddings.weight, 0
    sums = [weight.new_zeros(len(p), dtype=torch.float64) for p in parts]
    with frozen(bert):
        for batch in batches:
            examples = len(batch.labels)
            ones = [weight.new_ones(examples, len(p), requires_grad=True) for p in parts]
            segments = batch.layout.batch // examples           # 2: each text of a pair on its own
            hooks = [gate(layer, xi.repeat(segments, 1)) for layer, xi in zip(bert.layers, ones)]
            try:
                summed = loss(batch)
            finally:
                for hook in hooks:
                    hook.remove()
            for total, gradient in zip(sums, torch.autograd.grad(summed, ones)):
                total += gradient.double().abs().sum(dim=0)
            tokens += len(batch.layout)
    if not tokens:
        raise UserError("importance needs at least one example")
    raw = torch.full((len(parts), original_count(bert.config, kind)), torch.nan,
                     dtype=torch.float64)
    for row, numbers, total in zip(raw, parts, sums):
        row[numbers] = total.cpu() / tokens
    return raw


@contextmanager
def frozen(module):
    """Within this context no parameter asks for its gradient."""
    query_layout = [p for p in module.parameters() if p.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in query_layout:
            parameter.requires_grad_(True)


def normalize(raw, by="global"):
    """Wang et al.'s eq. 1 and 2: I' = I/(‖I‖₂ + ε), the norm of all ("global", which changes only the
    scale) or of each layer's row ("layer", as in the code of Michel et al.; heads of a layer that
    matters little then rank as high as others: benchmarks/importance.py compares the two); then
    (I' - min I')/(max I' - min I') over all. raw [layers, parts], NaN where a part is gone."""
    if by not in ("global", "layer"):
        raise UserError(f"the norm {by!r} is unknown; known are global and layer")
    if raw.isnan().all():
        raise UserError("nothing is left whose importance could be compared")
    whole = raw.nan_to_num()
    scaled = raw / (whole.norm(dim=1, keepdim=True) if by == "layer" else whole.norm()).add(1e-20)
    there = scaled[~scaled.isnan()]
    return (scaled - there.min()) / (there.max() - there.min()).clamp(min=1e-20)
