"""Split feed-forward networks into experts: neurons with similar rows of W₁ come together.

Balanced k-means on the rows of W₁, divided by their length: an expert has exactly n = d_ff/E of
them. k-means gives the centers; then rows are assigned to E·n places, n at each center, so that the
sum of the cosines is largest, and the centers become the means of their rows, a few times.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import nn

from bert.errors import UserError
from bert.matrices import get_linear
from bert.model import FeedForward
from experts.layers import ExpertFeedForward, Router
from experts.routers import router_width

ROUNDS = 4


def balanced_clusters(rows, experts, seed=0):
    """rows [neurons, H] → [experts, neurons/experts] numbers of rows, ascending in each expert."""
    unit, size = F.normalize(rows.detach().float().cpu()).double().numpy(), len(rows) // experts
    centers, _ = kmeans2(unit, experts, minit="++", seed=np.random.default_rng(seed))
    for _ in range(ROUNDS):
        cosines = unit @ centers.T                           # [neurons, experts]
        _, place = linear_sum_assignment(cosines.repeat(size, axis=1), maximize=True)
        members = torch.from_numpy(place // size).argsort(stable=True).view(experts, size)
        centers = unit[members.numpy()].mean(axis=1)
    return members


def check_divisible(bert, experts):
    """UserError unless every layer has a plain feed-forward network that `experts` divides."""
    if experts < 2:
        raise UserError(f"--experts is {experts}; it must be 2 or more")
    for number, layer, _ in bert.walk():
        if isinstance(layer.ffn, ExpertFeedForward):
            raise UserError("this run has experts already; split the run that it was made from")
        if not isinstance(layer.ffn, FeedForward):
            raise UserError(f"the feed-forward network of layer {number} is a "
                            f"{type(layer.ffn).__name__}, which cannot be split")
        neurons = get_linear(bert, number, "fc_in").out_features
        get_linear(bert, number, "fc_out")
        if neurons % experts:
            known = [n for n in range(2, neurons + 1) if neurons % n == 0]
            raise UserError(f"--experts is {experts}, which does not divide the {neurons} neurons "
                            f"of layer {number}; its divisors are {', '.join(map(str, known))}")


def permute(ffn, order):
    """Give the neurons of a FeedForward another order. Its outputs stay the same."""
    ffn.fc_in.weight = nn.Parameter(ffn.fc_in.weight.detach()[order])
    ffn.fc_in.bias = nn.Parameter(ffn.fc_in.bias.detach()[order])
    ffn.fc_out.weight = nn.Parameter(ffn.fc_out.weight.detach()[:, order].contiguous())


def split(bert, experts, width=0, seed=0):
    """Replace every FeedForward by an ExpertFeedForward with a new, untrained router of `width` (0:
    by router_width), in place. UserError, and the model unchanged, if that is impossible."""
    check_divisible(bert, experts)
    width, hidden = width or router_width(bert.config, experts), bert.config.hidden_size
    for _, layer, _ in bert.walk():
        order = balanced_clusters(layer.ffn.fc_in.weight, experts, seed).flatten()
        permute(layer.ffn, order.to(layer.ffn.fc_in.weight.device))
    insert_experts(bert, experts, width, hidden)
    bert.edits = [*bert.edits, {"method": "experts", "kind": "split", "experts": experts,
                                "width": width, "seed": seed}]


def insert_experts(bert, experts, width, hidden):
    """Put an ExpertFeedForward with a new router in every layer, whose neurons lie in order."""
    for _, layer, _ in bert.walk():
        router = Router(hidden, width, experts).to(layer.ffn.fc_in.weight)
        layer.ffn = ExpertFeedForward(layer.ffn, router, experts).train(layer.training)
