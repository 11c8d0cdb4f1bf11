"""LoRA (Hu et al. 2021, arXiv 2106.09685), and the layer that holds a pretrained module together
with its adapters.

    y = W₀x + b + s·B(Ax)        W₀ [out, in] frozen, A [rank, in], B [out, rank], s = alpha/rank

The layout names the adapter of each sequence (bert/layout.py, `with_adapters`). If it names none,
the active adapter serves every sequence.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bert import UserError
from bert.errors import check_known


class LoRA(nn.Module):
    """ΔW = s·B·A for one matrix (section 4.1). A [rank, in] starts Gaussian and B [out, rank] at
    zero, so that ΔW starts at zero."""

    def __init__(self, weight, rank, alpha, dropout=0.0):
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        out, width = weight.shape
        self.A = nn.Parameter(weight.new_empty(rank, width).normal_(std=width ** -0.5))
        self.B = nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, rows, out):
        """rows [n, in] and the frozen layer's output for them, out [n, out] → out + s·B(A·rows)."""
        low = F.linear(F.dropout(rows, self.dropout, self.training), self.A)       # [n, rank]
        return torch.addmm(out, low, self.B.T, alpha=self.alpha / self.rank)

    def delta(self):
        """ΔW [out, in]"""
        return self.alpha / self.rank * self.B @ self.A

    def merge_into(self, base):
        base.weight += self.delta()


class LayerNormCopy(nn.LayerNorm):
    """An adapter's own LayerNorm. It starts as a copy of the pretrained one."""

    def __init__(self, norm):
        super().__init__(norm.normalized_shape, eps=norm.eps, device=norm.weight.device,
                         dtype=norm.weight.dtype)
        self.load_state_dict(norm.state_dict())

    def merge_into(self, base):
        base.load_state_dict(self.state_dict())


class AdapterLayer(nn.Module):
    """A frozen pretrained module `base` and `adapters` {name: module}, where None means that this
    adapter does not modify this module."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.active = None                   # the adapter where the layout names none
        self.merged = None                   # the adapter whose ΔW is in base's weights
        self.pretrained = {}                 # base's state_dict before that merge

    def adapter_module(self, adapter):
        """The module to apply beside `base` for the adapter of this name (None: no adapter), or
        None if there is nothing to apply. UserError if the name is unknown or another adapter is
        merged."""
        if adapter is not None:
            check_known(adapter, self.adapters, "adapter")
        if self.merged is None:
            return None if adapter is None else self.adapters[adapter]
        if adapter != self.merged:
            raise UserError(f"adapter {self.merged!r} is merged into the weights, so {adapter!r} "
                            f"cannot act; unmerge first")
        return None

    def adapters_for(self, rows, layout):
        """→ the adapter_module of each group of consecutive rows [N, …], and the groups' sizes."""
        served = None if layout is None else layout.adapter_rows
        adapters, sizes = zip(*(served or [(self.active, rows.size(0))]))
        return [self.adapter_module(adapter) for adapter in adapters], sizes

    def multiply_adds(self, adapter=None):
        """Multiply-adds for one row: the numbers in the matrices of `base` and of the adapter of
        this name (None: the active one)."""
        modules = nn.ModuleList([self.base, self.adapter_module(adapter or self.active)])
        tensors = [*modules.parameters(), *modules.buffers()]    # LoRA-XS keeps A and B in buffers
        return sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)

    @torch.no_grad()
    def merge(self, adapter):
        """Add the adapter to base's weights, starting from the pretrained ones."""
        self.unmerge()
        module = self.adapter_module(adapter)
        if module is not None:
            self.pretrained = {name: tensor.clone()
                               for name, tensor in self.base.state_dict().items()}
            module.merge_into(self.base)
        self.merged = adapter

    @torch.no_grad()
    def unmerge(self):
        """Restore the pretrained weights bit for bit."""
        if self.pretrained:
            self.base.load_state_dict(self.pretrained)
        self.merged, self.pretrained = None, {}


class LoRALinear(AdapterLayer):
    """W₀x + b, plus ΔWx of each sequence's own adapter."""

    def forward(self, rows, layout=None):
        """rows [N, in] → [N, out]"""
        out = self.base(rows, layout)
        modules, sizes = self.adapters_for(rows, layout)
        if len(modules) == 1:
            return out if modules[0] is None else modules[0](rows, out)
        groups = zip(modules, rows.split(sizes), out.split(sizes))
        return torch.cat([y if module is None else module(x, y) for module, x, y in groups])


class AdaptedLayerNorm(AdapterLayer):
    """For each sequence its adapter's own LayerNorm, or the pretrained one."""

    def forward(self, rows, layout=None):
        """rows [N, hidden] → [N, hidden]"""
        modules, sizes = self.adapters_for(rows, layout)
        norms = [self.base if module is None else module for module in modules]
        return torch.cat([norm(x) for norm, x in zip(norms, rows.split(sizes))])
