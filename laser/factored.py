"""A matrix of rank k as two thin ones:  W_k x + b = up(down(x)),  down [k, in], up [out, k].

k·(m + n) numbers instead of m·n, and as many multiplications: smaller and faster for
k < m·n/(m + n), which for m = 4n is a keep below 0.8.
"""

from torch import nn


def is_smaller(rank, shape):
    return rank * sum(shape) < shape[0] * shape[1]


class Factored(nn.Module):
    """What stands in a Projection's place."""

    def __init__(self, in_features, rank, out_features):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features)

    @classmethod
    def of(cls, bias, down, up):
        """From the factors [k, in] and [out, k], and the bias [out] of the whole."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.down = _linear(down, None)
        new.up = _linear(up, bias)
        return new

    def forward(self, rows, layout=None):
        return self.up(self.down(rows))                      # [N, in] → [N, k] → [N, out]


def _linear(weight, bias):
    linear = nn.Linear(*weight.T.shape, bias=False, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.contiguous()), bias
    return linear
