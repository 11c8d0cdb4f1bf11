"""Split feed-forward networks into experts of similar neurons, and train routers for them.

Balanced k-means on the rows of W₁, divided by their length: an expert has exactly n = d_ff/E of
them. k-means gives the centers; then rows are assigned to E·n places, n at each center, so that the
sum of the cosines is largest, and the centers become the means of their rows, a few times.

    a router's loss = mean over tokens and experts of (n̂ᵢ(x) − ‖Eᵢ(x)‖₂)²      without b₂

The model is frozen and its dropout off. The inputs of each layer's feed-forward network are kept
once, a bounded number of tokens, in half precision.
"""

from contextlib import ExitStack

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bert.errors import UserError
from bert.matrices import get_linear
from bert.model import FeedForward
from experts.layers import ExpertFeedForward, expert_layers
from experts.rules import expert_norms

ROUNDS = 4                 # of assigning rows to centers
SHARE = 0.025              # of the feed-forward network's multiply-adds: the router's
ROWS = 40_000              # tokens that are kept for each layer
CHUNK = 4096               # tokens whose norms are computed at once


class Router(nn.Module):
    """n̂ = |W_b ReLU(W_a x)|: [N, H] → [N, E], without biases."""

    def __init__(self, hidden_size, width, experts):
        super().__init__()
        self.down = nn.Linear(hidden_size, width, bias=False)
        self.up = nn.Linear(width, experts, bias=False)

    def forward(self, hidden):
        return self.up(self.down(hidden).relu()).abs()


def router_width(config, experts):
    """The largest multiple of 8 (at least 8) whose router costs at most SHARE of the feed-forward
    network: 72 for 16 experts at hidden size 384, 144 at 768."""
    hidden, size = config.hidden_size, config.intermediate_size
    return max(8, int(SHARE * 2 * hidden * size / (hidden + experts)) // 8 * 8)


def balanced_clusters(rows, experts, seed=0):
    """rows [neurons, H] → [experts, neurons/experts] numbers of rows, ascending in each expert."""
    from scipy.cluster.vq import kmeans2  # slow to import
    from scipy.optimize import linear_sum_assignment

    unit, size = F.normalize(rows.detach().float().cpu()).double().numpy(), len(rows) // experts
    centers, _ = kmeans2(unit, experts, minit="++", seed=np.random.default_rng(seed))
    for _ in range(ROUNDS):
        cosines = unit @ centers.T                           # [neurons, experts]
        _, place = linear_sum_assignment(cosines.repeat(size, axis=1), maximize=True)
        members = torch.from_numpy(place // size).argsort(stable=True).view(experts, size)
        centers = unit[members.numpy()].mean(axis=1)
    return members


def check_divisible(bert, experts, width):
    """UserError unless every layer has a plain feed-forward network that `experts` divides and that
    is wider than a router of `width`."""
    if experts < 2:
        raise UserError(f"--experts is {experts}; it must be 2 or more")
    if width > bert.config.intermediate_size:
        raise UserError(f"--width {width} is wider than the layer, and would save nothing")
    for number, layer, _ in bert.walk():
        if isinstance(layer.ffn, ExpertFeedForward):
            raise UserError("this run has experts already; split the run that it was made from")
        if not isinstance(layer.ffn, FeedForward):
            raise UserError(f"the feed-forward network of layer {number} is a "
                            f"{type(layer.ffn).__name__}, which cannot be split")
        neurons, _ = (get_linear(bert, number, name).out_features for name in ("fc_in", "fc_out"))
        if neurons % experts:
            known = ", ".join(str(n) for n in range(2, neurons + 1) if neurons % n == 0)
            raise UserError(f"--experts is {experts}, which does not divide the {neurons} neurons "
                            f"of layer {number}; its divisors are {known}")


def split(bert, experts, width=0, seed=0):
    """Replace every FeedForward by an ExpertFeedForward with a new, untrained router of `width` (0:
    by router_width), in place. UserError, and the model unchanged, if that is impossible."""
    check_divisible(bert, experts, width)
    width = width or router_width(bert.config, experts)
    for _, layer, _ in bert.walk():
        fc_in, fc_out = layer.ffn.fc_in, layer.ffn.fc_out
        order = balanced_clusters(fc_in.weight, experts, seed).flatten().to(fc_in.weight.device)
        fc_in.weight = nn.Parameter(fc_in.weight.detach()[order])
        fc_in.bias = nn.Parameter(fc_in.bias.detach()[order])
        fc_out.weight = nn.Parameter(fc_out.weight.detach()[:, order].contiguous())
    insert_experts(bert, experts, width)
    bert.edits = [*bert.edits, {"method": "experts", "kind": "split", "experts": experts,
                                "width": width, "seed": seed}]


def insert_experts(bert, experts, width):
    """Put an ExpertFeedForward with a new router in every layer, whose neurons lie in order."""
    for _, layer, _ in bert.walk():
        router = Router(bert.config.hidden_size, width, experts).to(layer.ffn.fc_in.weight)
        layer.ffn = ExpertFeedForward(layer.ffn, router, experts).train(layer.training)


@torch.no_grad()
def ffn_inputs(bert, batches, forward, rows=ROWS, seed=0):
    """→ [tokens, H] in float16 for each layer: a sample of the inputs of its feed-forward network.
    forward(batch) runs the model, in eval mode. At most `rows` of a layer are kept, the same number
    of each of the `batches` (a list)."""
    kept, generator = [[] for _ in bert.layers], torch.Generator().manual_seed(seed)
    quota = -(-rows // len(batches))

    def keep(parts, hidden):
        chosen = torch.randperm(len(hidden), generator=generator)[:quota].to(hidden.device)
        parts.append(hidden.index_select(0, chosen).half())

    with ExitStack() as hooks:
        for number, layer, _ in bert.walk():
            hooks.enter_context(layer.ffn.register_forward_pre_hook(
                lambda ffn, inputs, parts=kept[number]: keep(parts, inputs[0])))
        for batch in batches:
            forward(batch)
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
            order, losses = torch.randperm(len(hidden), generator=generator).to(hidden.device), []
            for rows in order.split(batch_size):
                loss = F.mse_loss(ffn.router(hidden[rows].float()), norms[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            progress()
        ffn.router.requires_grad_(False)
        errors.append(float(torch.stack(losses).mean() / norms.var(dim=0).mean().clamp(min=1e-20)))
    return errors
