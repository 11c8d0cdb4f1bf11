"""The classifiers after the layers (Wołczyk et al. 2021, section 3). Exit m = 0, 1, … stands after
layer m; after the last layer stands the task's own head, which is no exit.

    logits_m = W_m [h_m ; LN(sg(logits_{m-1}))] + b_m         h_m: states after layer m
    log q_m  = ensemble of log p_0 … log p_m                  p_m = softmax(logits_m)

h_m is [CLS] and the mean of all tokens, side by side: [CLS] of the lower layers knows little of
its text yet. With `mean` False it is [CLS] alone, as in the paper.

sg stops the gradient: an exit does not change the exits before it. Without the cascade
(logits_m = W_m h_m + b_m) and without the ensemble (q_m = p_m) the exits are those of shallow-deep
networks, SDN (Kaya et al. 2019, arXiv 1810.07052).

Shapes: B examples, M exits, W = 2·H, or 4·H for a pair encoded separately, C classes.
"""

import torch
import torch.nn.functional as F
from torch import nn


def geometric(log_probs, weights, bias):
    """1/n Σ_j (exp(w_j) log p_j) + b: log_probs [n, B, C], weights [n], bias [C] → [B, C]."""
    return (weights.exp()[:, None, None] * log_probs).mean(dim=0) + bias


def arithmetic(log_probs, weights, bias):
    """log(Σ_j softmax(w)_j p_j) + b, the ablation: a mean of probabilities. Shapes as above."""
    return (weights.log_softmax(dim=0)[:, None, None] + log_probs).logsumexp(dim=0) + bias


def last_alone(log_probs, weights, bias):
    """log p_m: no ensemble."""
    return log_probs[-1]


ENSEMBLES = {"geometric": geometric, "arithmetic": arithmetic, "none": last_alone}
METHODS = {"ztw": (True, "geometric"), "sdn": (False, "none"),           # (cascade, ensemble)
           "cascade": (True, "none"), "ensemble": (False, "geometric"),
           "ztw-arithmetic": (True, "arithmetic")}


class Exits(nn.Module):
    """All exits of one task, whose head has `outputs` outputs and whose examples have `segments`
    sequences of `width` H. `classifiers` and `norms` are trained first, then, on other examples,
    `weights` and `biases` of the ensemble."""

    def __init__(self, count, width, outputs, segments=1, cascade=True, ensemble="geometric",
                 mean=True):
        super().__init__()
        self.cascade, self.ensemble, self.segments, self.mean = cascade, ensemble, segments, mean
        self.outputs, self.classes = outputs, max(outputs, 2)            # of the head; of the exits
        classes, width = self.classes, segments * width * (1 + mean)
        self.classifiers = nn.ModuleList(
            nn.Linear(width + (classes if cascade and m else 0), classes) for m in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(classes) for _ in range(count if cascade else 0))
        self.weights = nn.ParameterList(0.01 * torch.randn(m + 1) for m in range(count))
        self.biases = nn.Parameter(torch.zeros(count, classes))
        self.register_buffer("means", torch.zeros(count, width))
        self.register_buffer("scales", torch.ones(count, width))

    def standardize(self, states):
        """Let exits read h_m with mean 0 and variance about 1 over the examples of `states` [n, M,
        W]. [CLS] of the lower layers is nearly the same vector for every text: without this a
        classifier learns little in a few epochs. It stays a linear function of h_m."""
        states = self.chosen(states)
        variance = states.var(dim=0, correction=0)                           # [M, W]
        floor = 0.01 * variance.mean(dim=1, keepdim=True) + 1e-12            # of dead features
        self.means.copy_(states.mean(dim=0))
        self.scales.copy_((variance + floor).rsqrt())

    def __len__(self):
        return len(self.classifiers)

    def chosen(self, states):
        """states […, W] → the same; without `mean` [CLS] of each sequence alone, […, W/2]"""
        return states if self.mean else states.unflatten(-1, (self.segments, 2, -1))[
            ..., 0, :].flatten(-2)

    def logits(self, m, states, previous=None):
        """states [B, W] after layer m, the logits [B, C] of the exit before → logits [B, C]"""
        vectors = (self.chosen(states) - self.means[m]) * self.scales[m]
        if self.cascade and m:
            vectors = torch.cat([vectors, self.norms[m](previous.detach())], dim=1)
        return self.classifiers[m](vectors)

    def combine(self, m, log_probs):
        """log p_0 … log p_m [m + 1, B, C] → log q_m [B, C]"""
        scores = ENSEMBLES[self.ensemble](log_probs, self.weights[m], self.biases[m])
        return scores.log_softmax(dim=1)

    def all_logits(self, states):
        """states [B, M, W] → logits [M, B, C] of every exit"""
        found = []
        for m, vectors in enumerate(states.unbind(dim=1)):
            found.append(self.logits(m, vectors, found[-1] if m else None))
        return torch.stack(found)

    def forward(self, states):
        """states [B, M, W] → log q [M, B, C] of every exit, for all examples"""
        return self.combine_all(self.all_logits(states).log_softmax(dim=2))

    def combine_all(self, log_probs):
        """log p [M, B, C] → log q [M, B, C]"""
        return torch.stack([self.combine(m, log_probs[:m + 1]) for m in range(len(self))])

    def exit_parameters(self):
        """The parameters of the classifiers, which are trained first."""
        return [*self.classifiers.parameters(), *self.norms.parameters()]

    def multiply_adds(self, m):
        """Multiply-adds of the exits 0 to m for one example, that of the ensembles included."""
        matrices = sum(exit.weight.numel() for exit in list(self.classifiers)[:m + 1])
        mixing = (m + 1) * (m + 2) // 2 * self.classes
        return matrices + (mixing if self.ensemble != "none" else 0)


def log_probabilities(outputs):
    """A head's outputs [B, outputs] → log p [B, C]; one output z is two classes, p_1 = σ(z)."""
    if outputs.size(1) > 1:
        return outputs.log_softmax(dim=1)
    return torch.cat([F.logsigmoid(-outputs), F.logsigmoid(outputs)], dim=1)


def as_outputs(log_probs, outputs):
    """log p [B, C] → what a head with so many outputs would say: log p itself, or for one output
    z = log p_1 - log p_0."""
    return log_probs if outputs > 1 else log_probs[:, 1:] - log_probs[:, :1]
