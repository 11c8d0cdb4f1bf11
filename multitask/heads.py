"""From a sentence's vector, or the two vectors of a pair, to a task's outputs [B, outputs].

To add a kind of head: a class, its line in HEADS, and its name in the `heads` of each Task that may
have it.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Module):
    """W·x + b;  of a pair encoded separately, x = [u; v]."""

    def __init__(self, width, vectors, outputs, dropout):
        super().__init__()
        self.out = nn.Linear(width * vectors, outputs)

    def forward(self, *vectors):
        return self.out(torch.cat(vectors, dim=1))           # [B, vectors·H] → [B, outputs]


class MLP(nn.Module):
    """Linear → Dropout → ReLU → Linear (Alappat; Fuest & Tacke, in another
    order)."""

    def __init__(self, width, vectors, outputs, dropout):
        super().__init__()
        self.dense = nn.Linear(width * vectors, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)

    def forward(self, *vectors):
        hidden = self.dense(torch.cat(vectors, dim=1))       # [B, H]
        return self.out(F.relu(self.dropout(hidden)))


class Cosine(nn.Module):
    """scale · cos(D·u, D·v), one dense layer D for both sentences (siamese; Alappat scales to
    labels 0–5). Before training D is the identity, so that the head starts as the encoder's own
    cosine."""

    scale = 5.0

    def __init__(self, width, vectors, outputs, dropout):
        super().__init__()
        self.dense = nn.Linear(width, width)
        with torch.no_grad():
            self.dense.weight.copy_(torch.eye(width))
            self.dense.bias.zero_()

    def forward(self, first, second):
        return self.scale * F.cosine_similarity(self.dense(first), self.dense(second)).unsqueeze(1)


class ReLUCosine(Cosine):
    """scale · ReLU(cos(D·u, D·v)), Alappat's similarity head. Straight-through ReLU: negative
    cosines still receive a gradient, or a pair that starts there would never be learned."""

    def forward(self, first, second):
        cosine = super().forward(first, second)
        return cosine + (F.relu(cosine) - cosine).detach()


HEADS = {"linear": Linear, "mlp": MLP, "cosine": Cosine, "relu-cosine": ReLUCosine}
