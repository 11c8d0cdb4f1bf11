"""W·x + b on packed rows: one matrix, or several that read the same rows, in one product; and, in
mixed precision, copies of all weights in bfloat16, made together once a pass."""

import torch
import torch.nn.functional as F
from torch import nn


class PackedLinear(nn.Linear):
    """W·x + b on each of N rows. `layout` may hold a copy of W and b in lower precision; an adapter
    in this place reads more of it."""

    def reset_parameters(self):
        if self.weight.numel():                              # empty in a layer without heads
            super().reset_parameters()

    def forward(self, rows, layout=None):
        return product(rows, *weights_of((self,), layout))   # [N, in] → [N, out]


class RoundedProduct(torch.autograd.Function):
    """rows·Wᵀ + b in bfloat16 on a CPU, with zero rows up to a multiple of 32. There torch compiles
    a kernel for each new number of rows, which takes longer than the product; batches of any N need
    few kernels like this. The rows are copied anyway, to change their type."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        rounded = round_up(rows, weight.dtype)
        ctx.save_for_backward(rounded, weight)
        ctx.dtype = rows.dtype
        return F.linear(rounded, weight, bias)[:len(rows)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        rounded = round_up(gradient, weight.dtype)
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return ((rounded @ weight)[:len(gradient)].to(ctx.dtype) if of_rows else None,
                rounded.T @ rows if of_weight else None, gradient.sum(dim=0) if of_bias else None)


def round_up(rows, dtype, step=32):
    """[N, …] → a copy in dtype with zeros below, N rounded up to a multiple of `step`"""
    copy = rows.new_empty(-(-len(rows) // step) * step, rows.size(1), dtype=dtype)
    copy[:len(rows)] = rows
    copy[len(rows):] = 0
    return copy


def product(rows, weight, bias):
    """rows [N, in] → rows·Wᵀ + b, [N, out]"""
    if (weight.dtype == torch.bfloat16 and rows.device.type == "cpu"
            and not torch.compiler.is_compiling()):
        return RoundedProduct.apply(rows, weight, bias)
    return F.linear(rows, weight, bias)


def weights_of(modules, layout):
    """→ W [sum of out, in] and b of these modules, one below the other."""
    copies = layout.weights.get(modules) if layout is not None else None
    if copies is not None:
        return copies
    if len(modules) == 1:
        return modules[0].weight, modules[0].bias
    return torch.cat([m.weight for m in modules]), torch.cat([m.bias for m in modules])


def one_product(modules, rows, layout):
    """rows [N, in] → the modules' outputs side by side, [N, sum of out]: as one product, where all
    are plain matrices and joining their weights costs less than joining their outputs."""
    if all(map(is_plain, modules)) and (
            modules in layout.weights or torch.is_grad_enabled() or torch.compiler.is_compiling()
            or len(rows) > rows.size(1)):
        return product(rows, *weights_of(modules, layout))
    return torch.cat([module(rows, layout) for module in modules], dim=1)


def is_plain(module):
    """Whether a call of the module is W·x + b and nothing else: no adapter, no hook, no patch."""
    return type(module) is PackedLinear and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or "forward" in vars(module))


class JoinAndCast(torch.autograd.Function):
    """Groups of tensors → for each group one tensor in `dtype`, its members one below the other.
    All copies are one operation on a GPU, and so are the gradients' copies back."""

    @staticmethod
    def forward(ctx, dtype, sizes, *tensors):
        """`sizes`: for each group the lengths of its members."""
        ctx.sizes, ctx.dtype, rest = sizes, tensors[0].dtype, iter(tensors)
        first = [[next(rest) for _ in lengths][0] for lengths in sizes]
        joined = [tensor.new_empty(sum(lengths), *tensor.shape[1:], dtype=dtype)
                  for tensor, lengths in zip(first, sizes)]
        parts = [part for whole, lengths in zip(joined, sizes) for part in whole.split(lengths)]
        torch._foreach_copy_(parts, tensors)
        return tuple(joined)

    @staticmethod
    def backward(ctx, *gradients):
        parts = [part for whole, lengths in zip(gradients, ctx.sizes)
                 for part in (whole.split(lengths) if whole is not None else [None] * len(lengths))]
        present = [part for part in parts if part is not None]
        copies = [torch.empty_like(part, dtype=ctx.dtype) for part in present]
        if copies:
            torch._foreach_copy_(copies, present)
        copies = iter(copies)
        return None, None, *(None if part is None else next(copies) for part in parts)


def cast_together(groups, dtype):
    """groups of PackedLinears → {group: (W, b) in dtype}: what Layout.weights holds"""
    tensors = [[getattr(module, name) for module in group]
               for group in groups for name in ("weight", "bias")]
    joined = JoinAndCast.apply(dtype, [[len(tensor) for tensor in group] for group in tensors],
                               *(tensor for group in tensors for tensor in group))
    return dict(zip(groups, zip(joined[::2], joined[1::2])))


def weights_for(layers, dtype):
    """layers: [(BertLayer, whether it computes few rows only), …] → their weights for one pass in
    mixed precision, {group: (W, b) in dtype}"""
    groups = []
    for layer, few_rows in layers:
        attention = layer.attention
        joined = (((attention.query,), (attention.key, attention.value)) if few_rows else
                  ((attention.query, attention.key, attention.value),))
        joined = [group for group in joined if all(map(is_plain, group))]
        single = [(module,) for module in layer.modules() if isinstance(module, PackedLinear)
                  and not any(module in group for group in joined)]
        groups += [group for group in (*joined, *single)
                   if all(m.weight.numel() and m.weight.dtype == torch.float32 for m in group)]
    return cast_together(groups, dtype) if groups else {}
