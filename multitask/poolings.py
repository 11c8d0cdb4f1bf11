"""From the last hidden states to one vector a sequence, [sequences, H].

To add a pooling, add a class and its line in POOLINGS. `all_rows` says whether it needs the last
layer's states of all tokens, or of [CLS] alone; each task has a pooling of its own.
"""

from torch import nn


class CLSPooling(nn.Module):
    """The last hidden state at [CLS]."""

    all_rows = False

    def __init__(self, width):
        super().__init__()

    def forward(self, bert, hidden, layout):
        """hidden [sequences, H] at [CLS], or with all_rows [N, H] → [sequences, H]"""
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
