"""Approximate one matrix W [out, in] by the closest matrix of lower rank, or set its smallest
entries to zero. `keep` is the fraction of the largest possible rank, or of the entries."""

import math

import torch
import torch.nn.functional as F

from bert import UserError


def low_rank(weight, rank):
    """U_k Σ_k V_kᵀ, the closest matrix of this rank in the Frobenius norm (Eckart–Young)."""
    svd = Decomposition(weight)
    return svd.left[:, :rank] @ svd.right[:rank]


def rank_of(keep, shape):
    """k = ⌊keep · min(m, n)⌋, and at least 1. UserError unless 0 < keep <= 1."""
    if not 0 < keep <= 1:
        raise UserError(f"keep is {keep}; it is a fraction, above 0 and at most 1")
    return max(1, math.floor(keep * min(shape) + 1e-9))      # 0.29 · 100 is 28.999… in floats


class Decomposition:
    """The singular value decomposition W = U Σ Vᵀ, computed once in float64 for all ranks."""

    def __init__(self, weight):
        u, self.values, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        self.right = vh.to(weight.dtype)                     # Vᵀ  [r, in]
        self.left = (u * self.values).to(weight.dtype)       # UΣ  [out, r]
        self.rows = self.projected = None

    def product(self, rows, rank, bias):
        """W_k x + b of rows x: [N, in] → [N, out]. All ranks share Vᵀx, which is cached while
        `rows` is the same tensor."""
        if rows is not self.rows:
            self.rows, self.projected = rows, F.linear(rows, self.right)                # [N, r]
        return F.linear(self.projected[:, :rank], self.left[:, :rank], bias)

    def factors(self, rank):
        """→ √Σ_k V_kᵀ [rank, in] and U_k √Σ_k [out, rank]"""
        root = self.values[:rank].sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        root = root.to(self.left.dtype)
        return self.right[:rank] * root[:, None], self.left[:, :rank] / root

    def energy(self, rank):
        """‖W_k‖²/‖W‖² = Σ_{i≤k} σᵢ² / Σ σᵢ²"""
        squares = self.values.square()
        return float(squares[:rank].sum() / squares.sum())

    def error(self, rank):
        """‖W − W_k‖_F = √Σ_{i>k} σᵢ²"""
        return float(self.values[rank:].square().sum().sqrt())


def keep_largest(weight, keep):
    """Set the smallest entries to zero: those up to the ⌊(1 − keep)·mn⌋-th of all |w|, counted
    from 0, so one more. LASER's code calls this `dropout`, though nothing in it is random."""
    sizes = weight.detach().abs()
    last = math.floor((1 - keep) * weight.numel() + 1e-9)
    threshold = sizes.flatten().kthvalue(min(last + 1, weight.numel())).values
    return weight.detach().masked_fill(sizes <= threshold, 0.0)
