"""LoRA-XS: an r × r matrix is trained for each weight (Bałazy et al. 2024, arXiv 2405.17604).

    W₀ = U Σ Vᵀ        ΔW = s · U_r R Σ_r V_rᵀ        R [r, r] ~ N(0, (1e-5)²), s = alpha/rank

    attach(bert, ("query", "value", "attention_output", "fc_out"), rank=16, kind="xs")

Only R is trained and stored: A = Σ_r V_rᵀ and B = U_r are computed from W₀. sigma="in" puts Σ into
A, as the authors' code does; sigma="out" (kind="xs-out") puts it into B.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bert import UserError


def singular_factors(weight, rank, sigma="in"):
    """→ A [rank, in], B [out, rank], whose product B·A is the closest matrix of this rank to weight
    [out, in]. The sign of each singular vector is arbitrary; here the largest entry of each column
    of U is positive. float64 on the CPU makes the result the same on every machine."""
    exact = weight.detach() if weight.is_meta else weight.detach().cpu()
    u, s, vh = torch.linalg.svd(exact.double(), full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    signs = u.gather(0, u.abs().argmax(dim=0, keepdim=True)).sign()      # [1, rank]
    a, b = signs.T * vh, u * signs
    a, b = (s[:, None] * a, b) if sigma == "in" else (a, b * s)
    return a.to(weight), b.to(weight)


class LoRAXS(nn.Module):
    """out + s·B(R(A·rows)), of which only R is trained."""

    def __init__(self, weight, rank, alpha, dropout=0.0, sigma="in"):
        super().__init__()
        if rank > min(weight.shape):
            raise UserError(f"rank {rank} is more than a matrix of {list(weight.shape)} has")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        a, b = singular_factors(weight, rank, sigma)
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b, persistent=False)
        self.R = nn.Parameter(weight.new_empty(rank, rank).normal_(std=1e-5))

    def forward(self, rows, out):
        """rows [n, in] and the frozen layer's output for them [n, out] → [n, out]"""
        low = F.linear(F.dropout(rows, self.dropout, self.training), self.A)       # [n, rank]
        return torch.addmm(out, F.linear(low, self.R), self.B.T, alpha=self.alpha / self.rank)

    def delta(self):
        """ΔW [out, in]"""
        return self.alpha / self.rank * self.B @ self.R @ self.A

    def merge_into(self, base):
        base.weight += self.delta()
