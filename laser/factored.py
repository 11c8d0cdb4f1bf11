"""A matrix of rank k as two thin matrices:  W_k x + b = up(down(x)),  down [k, in], up [out, k].

k·(m + n) numbers instead of m·n, and as many multiplications: smaller and faster if
k < m·n/(m + n), which for m = 4n means keep < 0.8.
"""

import torch
from torch import nn


class Factored(nn.Module):
    """Takes the place of a PackedLinear."""

    def __init__(self, in_features, rank, out_features):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features)

    @classmethod
    def from_factors(cls, down, up, bias):
        """Factors down [k, in] and up [out, k], bias [out]."""
        with torch.device("meta"):                           # no weights to initialize
            new = cls(down.size(1), len(down), len(up))
        new.down.weight, new.up.weight = (nn.Parameter(w.contiguous()) for w in (down, up))
        new.up.bias = bias
        return new

    def forward(self, rows, layout=None):
        return self.up(self.down(rows))                      # [N, in] → [N, k] → [N, out]
