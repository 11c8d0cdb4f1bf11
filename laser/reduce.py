"""One matrix made simpler: the closest one of lower rank, or the same with entries set to zero.

`keep` is the fraction that stays: of the largest possible rank, or of the entries.
"""

import math

import torch

from bert import UserError


def low_rank(weight, rank):
    """The closest matrix of this rank in the Frobenius norm (Eckart–Young): U_k Σ_k V_kᵀ."""
    return Decomposition(weight).low_rank(rank)


def rank_of(keep, shape):
    """k = ⌊keep · min(m, n)⌋, and at least 1."""
    if not 0 < keep <= 1:
        raise UserError(f"keep is {keep}; it is a fraction, above 0 and at most 1")
    return max(1, math.floor(keep * min(shape) + 1e-9))      # 0.29 · 100 is 28.999… in floats


class Decomposition:
    """W = U Σ Vᵀ of a matrix [out, in], computed once and exactly (in float64) for all ranks. The
    factors are kept in W's own dtype, the singular values in float64."""

    def __init__(self, weight):
        u, self.values, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        self.right = vh.to(weight.dtype)                     # Vᵀ  [r, in]
        self.left = (u * self.values).to(weight.dtype)       # UΣ  [out, r]

    def low_rank(self, rank):
        """→ [out, in]"""
        return self.left[:, :rank] @ self.right[:rank]

    def factors(self, rank):
        """→ down [rank, in], up [out, rank], of like size: up · down is the low-rank matrix."""
        root = self.values[:rank].sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        root = root.to(self.left.dtype)
        return self.right[:rank] * root[:, None], self.left[:, :rank] / root

    def energy(self, rank):
        """The fraction of ‖W‖² that stays: Σ_{i≤k} σᵢ² / Σ σᵢ²."""
        squares = self.values.square()
        return float(squares[:rank].sum() / squares.sum())

    def error(self, rank):
        """‖W − W_k‖_F, which is the root of the dropped squares: √Σ_{i>k} σᵢ²."""
        return float(self.values[rank:].square().sum().sqrt())


def keep_largest(weight, keep):
    """Zero the smallest entries: those up to the ⌊(1 − keep)·N⌋-th of all |w|, counted from 0.
    LASER's code calls this its `dropout`, though nothing in it is random."""
    if keep == 1:
        return weight.detach().clone()
    sizes = weight.detach().abs()
    last = math.floor((1 - keep) * weight.numel() + 1e-9)
    threshold = sizes.flatten().kthvalue(min(last + 1, weight.numel())).values
    return weight.detach().masked_fill(sizes <= threshold, 0.0)


def keep_random(weight, keep, seed):
    """Zero entries at random. What a smaller `keep` keeps, a larger one keeps too."""
    draw = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    return weight.detach() * (draw < keep).to(weight)
