"""Several LoRA adapters of one batch in three operations on all rows, with the gradients by hand:

    [out | low] = x·[W; A₁; A₂; …]ᵀ + [b; 0]        y = out + (low ⊙ scales)·[B₁ B₂ …]ᵀ

scales [N, R] holds alpha/rank in the columns of each row's own adapter and 0 in the others; R is
the sum of the adapters' ranks. Of k modules that read the same rows, M have adapters."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from bert.linear import ROUNDED_TO, needs_rounding


class AdaptedProduct(torch.autograd.Function):
    """The equations above. `weight` [k·out + M·R, in] is [W; A₁; …] of all modules, `bias`
    [k·out + M·R], `up` [M, out, R] is [B₁ B₂ …]; all are copies, and gradients go to `parameters`:
    each module's A [rank, in] of each adapter, then each module's B [out, rank]."""

    @staticmethod
    def forward(ctx, rows, scales, weight, bias, up, adapted, *parameters):
        """rows [N, in] → [N, k·out]. `adapted`: the slice of the k modules that have adapters."""
        modules, size, width = up.shape
        both = F.linear(rows, weight, bias)
        out, low = both.split([len(weight) - modules * width, modules * width], dim=1)
        low = torch.mul(by_module(low, width), scales,                       # [M, N, R]
                        out=both.new_empty(modules, len(rows), width))
        own = by_module(out, size)[adapted]
        if needs_rounding(weight):                           # oneDNN refuses these strides
            own.copy_(torch.baddbmm(own, low, up.mT))
        else:
            own.baddbmm_(low, up.mT)
        ctx.save_for_backward(rows, scales, weight, up, low)
        ctx.adapted, ctx.dtype = adapted, parameters[0].dtype
        ctx.ranks = [len(a) for a in parameters[:len(parameters) // 2 // modules]]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, scales, weight, up, low = ctx.saved_tensors
        modules, size, width = up.shape
        own = by_module(gradient, size)[ctx.adapted]                         # [M, N, out]
        to_low = torch.bmm(own, up).mul_(scales).transpose(0, 1).flatten(1)  # [N, M·R]
        to_rows, to_down, to_up = None, [None] * len(ctx.ranks) * modules, []
        if ctx.needs_input_grad[0]:
            base, down = weight.split([gradient.size(1), modules * width])
            to_rows = torch.addmm(gradient @ base, to_low, down)
        if any(ctx.needs_input_grad[6:]):
            to_down = (to_low.T @ rows).to(ctx.dtype).split(ctx.ranks * modules)
            parts = torch.bmm(own.mT, low).to(ctx.dtype).split(ctx.ranks, dim=2)
            to_up = [b for each in zip(*(part.contiguous() for part in parts)) for b in each]
        return to_rows, None, None, None, None, None, *to_down, *(to_up or to_down)


def adapted_product(adapters, weight, bias, up, scales, rows, layout):
    """rows [N, in] → [N, k·out]. `adapters`: {name: LoRA} of each of the k modules; `scales`: the
    function of (adapter_rows, columns) that all products of a pass share."""
    present = [number for number, own in enumerate(adapters) if own]
    step = present[1] - present[0] if len(present) > 1 else 1      # query and value: 0 and 2 of 3
    adapted = slice(present[0], present[-1] + 1, step)
    loras = [lora for own in adapters for lora in own.values()]
    further = -len(rows) % ROUNDED_TO if needs_rounding(weight) else 0
    padded = F.pad(rows.to(weight.dtype), (0, 0, 0, further)) if further else rows.to(weight.dtype)
    out = AdaptedProduct.apply(
        padded, scales((*layout.adapter_rows, (None, further)), columns(adapters[present[0]])),
        weight, bias, up.unflatten(1, (len(present), -1)).movedim(1, 0), adapted,
        *(lora.A for lora in loras), *(lora.B for lora in loras))
    return out[:len(rows)] if further else out


def by_module(rows, size):
    """[N, modules·size] → [modules, N, size]"""
    return rows.unflatten(1, (-1, size)).transpose(0, 1)


def row_scales(like, adapter_rows, columns):
    """→ scales [N, R], on the device of `like` and in its dtype"""
    scales = like.new_zeros(sum(count for _, count in adapter_rows),
                            sum(rank for _, rank, _ in columns))
    before = 0
    for adapter, count in adapter_rows:
        rows, left = scales[before:before + count], 0
        for name, rank, scale in columns:
            if name == adapter:
                rows[:, left:left + rank].fill_(scale)
            left += rank
        before += count
    return scales


def side_by_side(groups, dtype):
    """groups of B [out, rank] → for each group [out, sum of ranks], in `dtype` (None: their own).
    All groups of one `out` are one copy."""
    joined = {}
    for size in dict.fromkeys(len(group[0]) for group in groups):
        same = [group for group in groups if len(group[0]) == size]
        wide = torch.cat([b for group in same for b in group], dim=1)
        widths = [sum(b.size(1) for b in group) for group in same]
        joined[size] = iter(wide.to(dtype or wide.dtype).split(widths, dim=1))
    return [next(joined[len(group[0])]) for group in groups]


def columns(adapters):
    """{name: LoRA} → ((name, rank, alpha/rank), …): the blocks of columns of `scales`"""
    return tuple((name, lora.rank, lora.alpha / lora.rank) for name, lora in adapters.items())
