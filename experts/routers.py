"""Train routers to predict the norms of experts' outputs.

    loss = mean over tokens and experts of (n̂ᵢ(x) − ‖Eᵢ(x)‖₂)²       without b₂; the model is frozen

The model's inputs to its feed-forward networks are kept once, a bounded number of tokens for each
layer, in half precision. Dropout is off: routers see what they will see in use.
"""

import torch
import torch.nn.functional as F

from experts.layers import expert_layers, expert_norms

ROWS = 40_000              # tokens that are kept for each layer
SHARE = 0.025              # of the feed-forward network's multiply-adds: the router's
CHUNK = 4096


def router_width(config, experts):
    """The largest multiple of 8 (at least 8) whose router costs at most SHARE of the feed-forward
    network: 72 for 16 experts at hidden size 384, 144 at 768."""
    hidden, size = config.hidden_size, config.intermediate_size
    return max(8, int(SHARE * 2 * hidden * size / (hidden + experts)) // 8 * 8)


@torch.no_grad()
def ffn_inputs(bert, batches, forward, rows=ROWS, seed=0):
    """→ [tokens, H] in float16 for each layer: a sample of the inputs of its feed-forward network.
    forward(batch) runs the model, in eval mode. At most `rows` of a layer are kept, the same number
    of each of the `batches` (a list)."""
    kept, generator = [[] for _ in bert.layers], torch.Generator().manual_seed(seed)
    quota = -(-rows // len(batches))

    def keep(number, hidden):
        chosen = torch.randperm(len(hidden), generator=generator)[:quota].to(hidden.device)
        kept[number].append(hidden.index_select(0, chosen).half())

    hooks = [layer.ffn.register_forward_pre_hook(
        lambda module, inputs, number=number: keep(number, inputs[0]))
        for number, layer, _ in bert.walk()]
    try:
        for batch in batches:
            forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(parts)[:rows] for parts in kept]


def fit_routers(bert, inputs, epochs=10, batch_size=256, lr=1e-3, seed=0, progress=lambda: None):
    """Train the router of every layer on its inputs [tokens, H] → the mean squared error of each
    layer, divided by the norms' variance. progress() is called after each epoch of a layer."""
    errors, generator = [], torch.Generator().manual_seed(seed)
    for ffn, hidden in zip(expert_layers(bert), inputs):
        with torch.no_grad():
            norms = torch.cat([expert_norms(ffn, rows.float()) for rows in hidden.split(CHUNK)])
        ffn.router.requires_grad_(True)
        optimizer = torch.optim.Adam(ffn.router.parameters(), lr=lr)
        for _ in range(epochs):
            order = torch.randperm(len(hidden), generator=generator).to(hidden.device)
            losses = [_step(ffn.router, optimizer, hidden[rows].float(), norms[rows])
                      for rows in order.split(batch_size)]
            progress()
        ffn.router.requires_grad_(False)
        errors.append(float(torch.stack(losses).mean() / norms.var(dim=0).mean().clamp(min=1e-20)))
    return errors


def _step(router, optimizer, hidden, norms):
    with torch.enable_grad():
        loss = F.mse_loss(router(hidden), norms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()
