"""Train the exits of one task on cached states: the encoder is frozen, so it runs once.

First the classifiers, by the mean of their cross-entropies; then the ensembles, by the mean of
theirs, on examples that the classifiers were not trained on (on their own they are too confident).
As in Wołczyk et al. 2021: Adam, batches of 32, 5 epochs, learning rates on a cosine to 0. Unlike
there the exits read standardized states, so their learning rate is lower, and small sets of
examples make more epochs of the ensembles.
"""

import math

import torch
import torch.nn.functional as F

from early_exit.exits import Exits

EPOCHS, BATCH = 5, 32
LR, DECAY = 1e-3, 0.03                                       # of the classifiers
ENSEMBLE_LR, ENSEMBLE_STEPS = 1e-3, 1000                     # at least so many steps


def mean_cross_entropy(log_probs, labels):
    """log p [M, B, C], labels [B] → the mean over exits and examples"""
    return F.nll_loss(log_probs.flatten(0, 1), labels.long().repeat(len(log_probs)))


def minimize(parameters, loss, n, epochs, lr, weight_decay=0.0, seed=0):
    """Minimize loss(indices [B]) by Adam over shuffled batches of n examples."""
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    batches = [indices for _ in range(epochs)
               for indices in torch.randperm(n, generator=generator).split(BATCH)]
    for step, indices in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.zero_grad()
        loss(indices).backward()
        optimizer.step()


def train_exits(states, labels, outputs, segments=1, cascade=True, ensemble="geometric", mean=True,
                held_out=0.2, seed=0):
    """states [n, M, W] and labels [n] of training examples → Exits. The last `held_out` fraction
    of the examples, which are in random order, fits the ensembles."""
    torch.manual_seed(seed)
    exits = Exits(states.size(1), states.size(2) // segments // 2, outputs, segments, cascade,
                  ensemble, mean)
    first = len(states) - max(1, round(held_out * len(states)))
    exits.standardize(states[:first])
    minimize(exits.exit_parameters(),
             lambda i: mean_cross_entropy(exits.all_logits(states[i]).log_softmax(2), labels[i]),
             first, EPOCHS, LR, DECAY, seed)
    if ensemble != "none":
        with torch.no_grad():
            log_probs = exits.all_logits(states[first:]).log_softmax(dim=2)  # [M, held out, C]
        rest = labels[first:]
        epochs = max(EPOCHS, -(-ENSEMBLE_STEPS * BATCH // max(BATCH, len(rest))))
        minimize([*exits.weights, exits.biases],
                 lambda i: mean_cross_entropy(exits.combine_all(log_probs[:, i]), rest[i]),
                 len(rest), epochs, ENSEMBLE_LR, seed=seed)
    return exits.requires_grad_(False)
