"""LoRA-XS: only r × r numbers of a matrix train (Bałazy et al. 2024, arXiv 2405.17604).

    W₀ = U Σ Vᵀ        ΔW = s · U_r R Σ_r V_rᵀ        R [r, r] ~ N(0, (1e-5)²), s = alpha/rank

    attach(bert, ("query", "value", "output", "fc_out"), rank=16, kind=XS)

Only R trains and is stored: A = Σ_r V_rᵀ and B = U_r follow from W₀. `sigma` says which of the two
carries Σ: "in" is A, as in the authors' code, and "out" is B. init="random" is the ablation: A and
B are random instead, fixed by W₀ as well.
"""

import zlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from bert import UserError

SIGMA, INIT = ("in", "out"), ("svd", "random")


def singular_factors(weight, rank, sigma="in"):
    """→ A [rank, in], B [out, rank] with B·A the closest matrix of this rank to weight [out, in].
    Singular vectors have no sign of their own: the largest entry of each column of U is made
    positive. In float64 and on the CPU, so that other threads and machines find the same floats."""
    exact = weight.detach() if weight.is_meta else weight.detach().cpu()
    u, s, vh = torch.linalg.svd(exact.double(), full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    signs = u.gather(0, u.abs().argmax(dim=0, keepdim=True)).sign()      # [1, rank]
    a, b = signs.T * vh, u * signs
    a, b = (s[:, None] * a, b) if sigma == "in" else (a, b * s)
    return a.to(weight), b.to(weight)


def random_factors(weight, rank):
    """→ A and B of the same shapes with entries like those of new linear layers (He et al. 2015).
    W₀'s checksum is the seed: the same matrix gives the same factors."""
    content = weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(content))
    out, width = weight.shape
    a = torch.randn(rank, width, generator=generator) * (2 / width) ** 0.5
    b = torch.randn(out, rank, generator=generator) * (2 / rank) ** 0.5
    return a.to(weight), b.to(weight)


class XS(nn.Module):
    """y + s·((x·Aᵀ)·Rᵀ)·Bᵀ, of which only R trains."""

    def __init__(self, weight, rank, alpha, dropout=0.0, sigma="in", init="svd"):
        super().__init__()
        if rank > min(weight.shape):
            raise UserError(f"rank {rank} is more than a matrix of {list(weight.shape)} has")
        if sigma not in SIGMA or init not in INIT:
            raise UserError(f"sigma {sigma!r}, init {init!r}: sigma is one of {', '.join(SIGMA)}, "
                            f"init one of {', '.join(INIT)}")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.sigma, self.init = sigma, init
        a, b = (singular_factors(weight, rank, sigma) if init == "svd"
                else random_factors(weight, rank))
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b, persistent=False)
        self.R = nn.Parameter(weight.new_empty(rank, rank).normal_(std=1e-5))

    def forward(self, rows, out):
        """rows [n, in] and what the layer made of them [n, out] → [n, out]"""
        low = F.linear(F.dropout(rows, self.dropout, self.training), self.A)       # [n, rank]
        return torch.addmm(out, F.linear(low, self.R), self.B.T, alpha=self.alpha / self.rank)

    def delta(self):
        """ΔW [out, in]"""
        return self.alpha / self.rank * self.B @ self.R @ self.A

    def merge_into(self, base):
        base.weight += self.delta()


RandomXS = partial(XS, init="random")                        # the ablation
