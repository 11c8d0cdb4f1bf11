"""LoRA (Hu et al. 2021, arXiv 2106.09685), LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), and the
module that holds a pretrained one together with its adapters (for matrices: lora/linear.py).

    y = W₀x + b + s·B(Ax)        W₀ [out, in] frozen, A [rank, in], B [out, rank], s = alpha/rank
    XS: ΔW = s·U_r R Σ_r V_rᵀ    W₀ = U Σ Vᵀ, R [rank, rank] ~ N(0, (1e-5)²) at first

The layout may name the adapter of each sequence (Layout.with_adapters), else the active one serves.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bert.errors import UserError, check_known


class LoRA(nn.Module):
    """ΔW = s·B·A for one matrix (section 4.1). A [rank, in] starts Gaussian and B [out, rank] at
    zero, so that ΔW starts at zero."""

    def __init__(self, weight, rank, alpha, dropout):
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        out_features, in_features = weight.shape
        self.A = nn.Parameter(weight.new_empty(rank, in_features).normal_(std=in_features ** -0.5))
        self.B = nn.Parameter(weight.new_zeros(out_features, rank))

    def forward(self, rows, out):
        """rows [n, in] and the frozen layer's output for them, out [n, out] → out + s·B(A·rows),
        [n, out]. In training self.dropout, a probability, drops numbers of `rows`, for A only.
        lora/together.py computes the same for several adapters at once."""
        low = F.linear(F.dropout(rows, self.dropout, self.training), self.A)       # [n, rank]
        return torch.addmm(out, low, self.B.T, alpha=self.alpha / self.rank)

    def delta(self):
        """→ ΔW = s·B·A [out, in], with its gradient"""
        return self.alpha / self.rank * self.B @ self.A

    def merge_into(self, base):
        """W₀ ← W₀ + ΔW, in place, in the nn.Linear `base`. Call it under torch.no_grad()."""
        base.weight += self.delta()


def singular_factors(weight, rank, sigma="in"):
    """→ A [rank, in], B [out, rank], whose product B·A is the closest matrix of this rank to weight
    [out, in]. The sign of each singular vector is arbitrary; here the largest entry of each column
    of U is positive. float64 on the CPU makes the result the same on every machine."""
    matrix = weight.detach() if weight.is_meta else weight.detach().cpu()
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    u, values, vh = u[:, :rank], values[:rank], vh[:rank]
    signs = u.gather(0, u.abs().argmax(dim=0, keepdim=True)).sign()      # [1, rank]
    a, b = signs.T * vh, u * signs
    a, b = (values[:, None] * a, b) if sigma == "in" else (a, b * values)
    return a.to(weight), b.to(weight)


class LoRAXS(nn.Module):
    """ΔW = s·B·R·A with A = Σ_r V_rᵀ and B = U_r, as in the authors' code; sigma="out" puts Σ into
    B. Only R is trained."""

    def __init__(self, weight, rank, alpha, dropout, sigma="in"):
        super().__init__()
        if rank > min(weight.shape):
            raise UserError(f"rank {rank} is more than a matrix of {list(weight.shape)} has")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        a, b = singular_factors(weight, rank, sigma)
        self.register_buffer("A", a, persistent=False)
        self.register_buffer("B", b, persistent=False)
        self.R = nn.Parameter(weight.new_empty(rank, rank).normal_(std=1e-5))

    def forward(self, rows, out):
        """rows [n, in], the frozen layer's output out [n, out] → out + s·B(R(A·rows))"""
        low = F.linear(F.dropout(rows, self.dropout, self.training), self.A)       # [n, rank]
        return torch.addmm(out, F.linear(low, self.R), self.B.T, alpha=self.alpha / self.rank)

    def delta(self):
        return self.alpha / self.rank * self.B @ self.R @ self.A

    def merge_into(self, base):
        base.weight += self.delta()


class AdapterLayer(nn.Module):
    """A frozen pretrained module `base` and `adapters` {name: module, or None: base as it is}."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.active = None                   # the adapter where the layout names none
        self.merged = None                   # the adapter whose ΔW is in base's weights
        self.pretrained = {}                 # base's state_dict before that merge

    def adapter_module(self, adapter):
        """→ the module to apply beside `base`; None: `base` alone (no adapter, or a merged one)."""
        if adapter is not None:
            check_known(adapter, self.adapters, "adapter")
        if self.merged not in (None, adapter):
            raise UserError(f"adapter {self.merged!r} is merged into the weights, so {adapter!r} "
                            f"cannot act; unmerge first")
        return None if adapter in (None, self.merged) else self.adapters[adapter]

    def adapters_for(self, rows, layout):
        """→ the adapter_module of each group of consecutive rows, and the groups' sizes."""
        served = None if layout is None else layout.adapter_rows
        adapters, sizes = zip(*(served or [(self.active, rows.size(0))]))
        return [self.adapter_module(adapter) for adapter in adapters], sizes

    def multiply_adds(self, adapter=None):
        """Multiply-adds for one row, in `base` and this adapter; None means here the active one."""
        modules = nn.ModuleList([self.base, self.adapter_module(adapter or self.active)])
        tensors = [*modules.parameters(), *modules.buffers()]    # LoRA-XS keeps A and B in buffers
        return sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)


class AdaptedLayerNorm(AdapterLayer):
    """For each sequence its adapter's own LayerNorm, at first a copy, or the pretrained one."""

    def forward(self, rows, layout=None):
        modules, sizes = self.adapters_for(rows, layout)
        norms = [self.base if module is None else module for module in modules]
        return torch.cat([norm(x) for norm, x in zip(norms, rows.split(sizes))])
