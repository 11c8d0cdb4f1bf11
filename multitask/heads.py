"""Poolings: from the last hidden states to one vector a sequence, [sequences, H]. Heads: from a
sentence's vector, or the two vectors of a pair, to a task's outputs [B, outputs].

To add a pooling: a class and its line in POOLINGS; `all_rows` says whether it needs the last
layer's states of all tokens, or of [CLS] alone, and each task has a pooling of its own. To add a
kind of head: a class, its line in HEADS, and its name in the `heads` of each Task it fits."""

import torch
import torch.nn.functional as F
from torch import nn


class CLSPooling(nn.Module):
    """The last hidden state at [CLS]."""

    all_rows = False

    def __init__(self, width):
        super().__init__()

    def forward(self, bert, hidden, layout):
        """hidden [sequences, H], or with all_rows [N, H]; the batch's layout → [sequences, H]"""
        return hidden


class PoolerPooling(CLSPooling):
    """BERT's pooler on [CLS]: tanh(W·h + b)."""

    def forward(self, bert, hidden, layout):
        return bert.pool(hidden)


class MeanPooling(CLSPooling):
    """The mean of the last hidden states of all tokens."""

    all_rows = True

    def forward(self, bert, hidden, layout):
        return layout.pad(hidden).sum(dim=1) / layout.mask.sum(dim=1, keepdim=True)


POOLINGS = {"cls": CLSPooling, "pooler": PoolerPooling, "mean": MeanPooling}


class Linear(nn.Module):
    """W·x + b;  of a pair encoded separately, x = [u; v]."""

    def __init__(self, width, vectors, outputs, dropout):
        super().__init__()
        self.out = nn.Linear(width * vectors, outputs)

    def forward(self, *vectors):
        return self.out(torch.cat(vectors, dim=1))           # [B, vectors·H] → [B, outputs]


class MLP(nn.Module):
    """Linear → Dropout → ReLU → Linear (Alappat; Fuest & Tacke, in another order)."""

    def __init__(self, width, vectors, outputs, dropout):
        super().__init__()
        self.dense = nn.Linear(width * vectors, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, outputs)

    def forward(self, *vectors):
        hidden = self.dense(torch.cat(vectors, dim=1))       # [B, H]
        return self.out(F.relu(self.dropout(hidden)))


class Cosine(nn.Module):
    """5 · cos(D·u, D·v), one dense layer D for both sentences (siamese; Alappat scales to labels
    0–5). D starts as the identity, so that the head starts as the encoder's own cosine."""

    def __init__(self, width, vectors, outputs, dropout):
        super().__init__()
        self.dense = nn.Linear(width, width)
        nn.init.eye_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, first, second):
        return 5.0 * F.cosine_similarity(self.dense(first), self.dense(second)).unsqueeze(1)


class ReLUCosine(Cosine):
    """5 · ReLU(cos(D·u, D·v)), Alappat's similarity head. Straight-through ReLU: negative cosines
    still receive a gradient, or a pair that starts there would never be learned."""

    def forward(self, first, second):
        cosine = super().forward(first, second)
        return cosine + (F.relu(cosine) - cosine).detach()


HEADS = {"linear": Linear, "mlp": MLP, "cosine": Cosine, "relu-cosine": ReLUCosine}
