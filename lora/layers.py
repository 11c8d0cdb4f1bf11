"""What stands in the place of a pretrained layer once adapters are attached: a module that holds
it, frozen, and the adapters by name.

Which adapter acts on which row is said by the layout (bert/layout.py, `served_by`), sequence by
sequence; a layout that says nothing leaves it to the one that was activated, or to none.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bert import UserError
from bert.errors import did_you_mean


class LoRA(nn.Module):
    """y + s·(x·Aᵀ)·Bᵀ, which is ΔW = s·B·A with s = alpha/rank  (Hu et al. 2021, arXiv 2106.09685,
    section 4.1). A [rank, in] is Gaussian and B [out, rank] is zero, so that ΔW starts as 0."""

    def __init__(self, weight, rank, alpha, dropout=0.0):
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        out, width = weight.shape
        self.A = nn.Parameter(weight.new_empty(rank, width).normal_(std=width ** -0.5))
        self.B = nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, rows, out):
        """rows [n, in] and what the layer made of them [n, out] → [n, out]"""
        low = F.linear(F.dropout(rows, self.dropout, self.training), self.A)       # [n, rank]
        return torch.addmm(out, low, self.B.T, alpha=self.alpha / self.rank)

    def delta(self):
        """ΔW [out, in]"""
        return self.alpha / self.rank * self.B @ self.A

    def merge_into(self, base):
        base.weight += self.delta()


class LayerNormCopy(nn.LayerNorm):
    """An adapter's own copy of a LayerNorm, which starts as the pretrained one."""

    def __init__(self, norm):
        super().__init__(norm.normalized_shape, eps=norm.eps, device=norm.weight.device,
                         dtype=norm.weight.dtype)
        self.load_state_dict(norm.state_dict())

    def merge_into(self, base):
        base.load_state_dict(self.state_dict())


def unknown(name, known):
    """The error that a wrong adapter name is."""
    known = [str(k) for k in known]
    return UserError(f"there is no adapter {name!r}{did_you_mean(str(name), known)}; attached "
                     f"are: {', '.join(known) or 'none'}")


class AdapterLayer(nn.Module):
    """A pretrained module `base`, frozen, and {name: adapter}. The entry of an adapter that leaves
    this module as it is is None: a name that is not there at all is a mistake."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.active = None                                   # the name where the layout has none
        self.merged = None                                   # the name whose ΔW is in base now
        self.original = {}                                   # base's own tensors meanwhile

    def adapter(self, name):
        """What is to be done beside `base` for this adapter: a module, or None for nothing."""
        if name is not None and name not in self.adapters:
            raise unknown(name, self.adapters)
        if self.merged is None:
            return None if name is None else self.adapters[name]
        if name != self.merged:
            raise UserError(f"adapter {self.merged!r} is merged into the weights, so {name!r} "
                            f"cannot act; unmerge first")
        return None

    def serving(self, rows, layout):
        """→ adapters (None: nothing beside the base), and how many of the rows each is for."""
        served = None if layout is None else layout.adapter_rows
        names, sizes = zip(*(served or [(self.active, rows.size(0))]))
        return [self.adapter(name) for name in names], sizes

    @torch.no_grad()
    def merge(self, name):
        """Put the adapter into the base's weights, always starting from the pretrained ones."""
        self.unmerge()
        adapter = self.adapter(name)
        if adapter is not None:
            self.original = {key: tensor.clone() for key, tensor in self.base.state_dict().items()}
            adapter.merge_into(self.base)
        self.merged = name

    @torch.no_grad()
    def unmerge(self):
        """Put back the very bits that were there."""
        if self.original:
            self.base.load_state_dict(self.original)
        self.merged, self.original = None, {}


class LoRALinear(AdapterLayer):
    """W₀x + b, and for each sequence what its adapter adds."""

    def forward(self, rows, layout=None):
        out = self.base(rows, layout)                                    # [N, out]
        adapters, sizes = self.serving(rows, layout)
        if len(adapters) == 1:
            return out if adapters[0] is None else adapters[0](rows, out)
        parts = zip(adapters, rows.split(sizes), out.split(sizes))
        return torch.cat([y if a is None else a(x, y) for a, x, y in parts])


class AdaptedLayerNorm(AdapterLayer):
    """For each sequence its adapter's own LayerNorm, or the pretrained one."""

    def forward(self, rows, layout=None):
        adapters, sizes = self.serving(rows, layout)
        norms = [self.base if adapter is None else adapter for adapter in adapters]
        return torch.cat([norm(x) for norm, x in zip(norms, rows.split(sizes))])
