"""r-softmax: a softmax with a chosen share of exact zeros (Bałazy et al. 2023, arXiv 2304.05243).

    r-softmax(x)ᵢ = wᵢ·exp(xᵢ) / Σⱼ wⱼ·exp(xⱼ)      wᵢ = ReLU(xᵢ - max x + t)

t is the distance of the largest score from the k-th smallest, so k entries get zero; t → ∞ gives
the softmax. With a ramp s from 0 to 1, t + c·(1 - s)/s takes t's place: the softmax at s = 0.

    probabilities = r_softmax(scores, zeros=0.1, valid=key_mask)
    bert.use_attention("r-softmax");  configure(bert, zeros=0.1)
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

RAMP_SCALE = 2.0                     # c: the steps of a ramp over scores of deviation 1 are equal


def zero_count(zeros, count):
    """k = ⌊zeros · count + 5e-7⌋ for rows of `count` valid entries ([..., 1], whole numbers), but
    at most count - 1, and 0 where count is 0 → [..., 1] int64. `zeros` is a number or a tensor
    [..., 1]. 5e-7 makes up for binary fractions: .29 · 100 is 28.999…"""
    return (zeros * count.double() + 5e-7).floor().clamp(0).minimum((count - 1).clamp(0)).long()


def threshold(scores, zeros, count):
    """→ max x - t, the largest score that becomes zero, [..., 1]. It is the largest of the k
    smallest scores that is less than the (k + 1)-th smallest: of 1, 1, 2, 2, 3 and k = 3 it is 1,
    because both 2s survive together. -inf if there is none (k = 0, or all k are equal to the next).
    scores [..., n] hold +inf where an entry is not valid; `count` [..., 1] is the number of valid
    ones in each row. The gradient flows to that score."""
    n = scores.size(-1)
    limit = n - 1 if isinstance(zeros, torch.Tensor) else min(math.floor(zeros * n + 5e-7), n - 1)
    smallest = scores.topk(limit + 1, largest=False).values   # the same for all rows, sorted
    k = zero_count(zeros, count)                             # [..., 1]
    next_larger = smallest.gather(-1, k.expand(*smallest.shape[:-1], 1))
    return smallest.masked_fill(smallest >= next_larger, -math.inf).amax(dim=-1, keepdim=True)


def r_softmax(scores, zeros, valid=None, ramp=1.0, detached=False):
    """scores [..., n] → probabilities [..., n], of which ⌊zeros · valid entries⌋ are zero. Equal
    scores at the threshold survive together: then fewer are.

    zeros      a number from 0 to 1, or a tensor [..., 1] of one for each row
    valid      a mask, broadcast to [..., n]: where it is False the probability is zero, and does
               not count. None: the entries above -inf; True: all, which is not checked
    ramp       s, from the softmax (0) to r-softmax (1)
    detached   t is a constant for the gradient, as published (max x is not); else the gradient is
               the true one"""
    lowest, hidden, padded = torch.finfo(scores.dtype).min, scores, scores
    if valid is None:
        valid = scores > lowest
    if valid is True:
        count = torch.full_like(scores[..., :1], scores.size(-1), dtype=torch.long)
    else:
        count = valid.sum(dim=-1, keepdim=True)
        hidden, padded = (scores.masked_fill(~valid, fill) for fill in (lowest, math.inf))
    softmax = hidden.softmax(dim=-1)
    if ramp == 0 or (not isinstance(zeros, torch.Tensor) and zeros == 0):
        return softmax if valid is True else softmax.masked_fill(count == 0, 0)
    lower = threshold(padded, zeros, count)                  # max x - t
    found = lower > lowest
    lower = lower.masked_fill(~found, 0)
    if detached:
        largest = hidden.amax(dim=-1, keepdim=True)
        lower = lower.detach() + (largest - largest.detach())            # the same number exactly
    slope = ramp * found.to(scores)                          # [..., 1]; 0: the row is a softmax
    shift = torch.where(found, (1 - ramp) * RAMP_SCALE - ramp * lower, (count > 0).to(scores))
    weighted = softmax * torch.addcmul(shift, hidden, slope).relu_()
    return weighted / weighted.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def label_distribution(scores, labels):
    """For examples with several labels: scores [..., n] and how many labels each has [..., 1] → a
    distribution over the n labels in which exactly so many are above zero, if no scores tie."""
    return r_softmax(scores, 1 - labels.double() / scores.size(-1))


class RSoftmaxAttention(nn.Module):
    """Attention by r-softmax over the real tokens of a sequence. A `ramp` below 1 acts in training
    only. In training, or where `counting` is set, `zero_counts` [2] sums the zeros and all entries
    of real tokens, over length buckets and passes, until measured_zeros reads it."""

    def __init__(self, config):
        super().__init__()
        self.zeros, self.ramp, self.detached, self.counting = 0.1, 1.0, False, False
        self.zero_counts = None

    def forward(self, query, key, value, key_mask=None, dropout=0.0, layouts=None):
        with torch.autocast(query.device.type, enabled=False):           # bf16 would tie scores
            scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.size(-1))
        probabilities = r_softmax(scores, self.zeros, True if key_mask is None else key_mask,
                                  self.ramp if self.training else 1.0, self.detached)
        if (self.training or self.counting) and layouts is not None:
            counts = count_zeros(probabilities.detach(), layouts)
            before = self.zero_counts
            self.zero_counts = counts if before is None else counts + before.to(counts.device)
        return F.dropout(probabilities, dropout).to(value) @ value


def count_zeros(probabilities, layouts):
    """probabilities [B, heads, Tq, Tk] → [2], zeros and all, among the pairs of real tokens."""
    pairs = layouts[0].mask[:, None, :, None] & layouts[1].mask[:, None, None, :]
    zero = (probabilities == 0) & pairs
    return torch.stack([zero.sum(), pairs.sum() * probabilities.size(1)])


def functions(bert):
    """→ the RSoftmaxAttention of each layer; [] where another attention is in use."""
    found = (layer.attention.attention_function for layer in bert.layers)
    return [function for function in found if isinstance(function, RSoftmaxAttention)]


def configure(bert, **values):
    """Set attributes of every layer's RSoftmaxAttention: zeros, ramp, detached, counting."""
    for function in functions(bert):
        vars(function).update(values)


def measured_zeros(bert):
    """The mean over the layers of the share of zeros since the last call; None if none is known."""
    counts = [f.zero_counts for f in functions(bert) if f.zero_counts is not None]
    configure(bert, zero_counts=None)
    return torch.stack([zeros / entries for zeros, entries in counts]).mean() if counts else None
