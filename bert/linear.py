"""W·x + b on packed rows: one matrix, or several that read the same rows, in one product; and the
products of one pass, whose matrices are joined, and cast in mixed precision, all together."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from bert.dropout import is_traced
from bert.errors import UserError

FUSED = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if getattr(     # oneDNN's, if any
    torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)() else None
ROUNDED_TO = 32                    # the rows of products in bfloat16 on a CPU: round_up


class PackedLinear(nn.Linear):
    """W·x + b on each of N rows. `layout` may hold a product made for this pass (products_for); an
    adapter in this place reads more of it."""

    def reset_parameters(self):
        if self.weight.numel():                              # empty in a layer without heads
            super().reset_parameters()

    def forward(self, rows, layout=None):
        """rows [N, in] → [N, out]"""
        if layout is not None and (self,) in layout.products:
            return layout.products[(self,)](rows, layout)
        memory = None if layout is None else layout.memory
        return product(rows, self.weight, self.bias, memory)

    @staticmethod
    def joins(group, layout, dtype):
        """Whether `products` has a product of these modules: of plain ones, several or cast."""
        return (dtype is not None or len(group) > 1) and all(
            is_plain(module) and module.weight.numel() and module.weight.dtype == torch.float32
            for module in group)

    @staticmethod
    def products(groups, layout, dtype, memory):
        """→ for each group the product of its matrices in `dtype`"""
        joined = join_together([[module.weight for module in group] for group in groups]
                               + [[module.bias for module in group] for group in groups], dtype,
                               memory)
        return [lambda rows, layout, pair=pair: product(rows, *pair, layout.memory)
                for pair in zip(joined[:len(groups)], joined[len(groups):])]


class Product(torch.autograd.Function):
    """rows·Wᵀ + b on a CPU, with the gradient of W in a KeptMemory; in bfloat16 of rounded rows."""

    @staticmethod
    def forward(ctx, rows, weight, bias, memory):
        rounded = round_up(rows, weight.dtype, extend=not any(ctx.needs_input_grad))
        ctx.save_for_backward(rounded, weight)
        ctx.dtype, ctx.memory, ctx.copied = rows.dtype, memory, rounded is not rows
        fused = FUSED is not None and weight.dtype == torch.bfloat16 and weight.numel()
        out = (FUSED(rounded, weight, bias, "none", [], "") if fused else       # with the bias
               F.linear(rounded, weight, bias))
        return out[:len(rows)]

    @staticmethod
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        if ctx.copied and torch.is_grad_enabled():
            raise UserError("a second derivative (create_graph) through products in bfloat16 is "
                            "not computed on a CPU; use float32, without autocast")
        rounded = round_up(gradient, weight.dtype)
        of_rows, of_weight, of_bias, _ = ctx.needs_input_grad
        kept = of_weight and ctx.memory is not None and not torch.is_grad_enabled()
        out = ctx.memory.empty(weight.shape, weight.dtype, weight.device) if kept else None
        return ((rounded @ weight)[:len(gradient)].to(ctx.dtype) if of_rows else None,
                torch.mm(rounded.T, rows, out=out) if of_weight else None,
                gradient.sum(dim=0) if of_bias else None, None)


def round_up(rows, dtype, extend=False):
    """[N, …] → in bfloat16 a copy in which zeros round N up to a multiple of ROUNDED_TO, because
    torch compiles a kernel for each new N, which takes longer than the product; else the rows.
    `extend`: rows that begin a longer matrix are not copied; what follows them is any number."""
    if dtype != torch.bfloat16 or (rows.dtype == dtype and len(rows) % ROUNDED_TO == 0):
        return rows
    shape = len(rows) + -len(rows) % ROUNDED_TO, rows.size(1)
    if (extend and rows.dtype == dtype and rows.is_contiguous() and rows.storage_offset() == 0
            and rows.untyped_storage().nbytes() >= math.prod(shape) * dtype.itemsize):
        return rows.as_strided(shape, rows.stride())
    copy = rows.new_empty(shape, dtype=dtype)
    copy[:len(rows)] = rows
    copy[len(rows):] = 0
    return copy


def needs_rounding(weight):
    """Whether the number of rows to multiply with this weight is to be a multiple of ROUNDED_TO."""
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not is_traced()


def product(rows, weight, bias, memory=None):
    """rows [N, in] → rows·Wᵀ + b, [N, out]"""
    trains = memory is not None and weight.requires_grad and torch.is_grad_enabled()
    plain = weight.dtype == torch.float32 and not (is_traced() or torch.is_autocast_enabled("cpu"))
    if needs_rounding(weight) or (
            trains and plain and memory.keeps(weight.shape, weight.dtype, weight.device)):
        return Product.apply(rows, weight, bias, memory)
    if plain and not torch.is_grad_enabled() and memory is not None and not rows.is_cuda:
        out = memory.empty((len(rows), len(weight)), weight.dtype, weight.device)
        return torch.addmm(bias, rows, weight.T, out=out)
    return F.linear(rows, weight, bias)


def one_product(modules, rows, layout):
    """rows [N, in] → the modules' outputs side by side, [N, sum of out]: as one product, where the
    layout has one, or where all are plain matrices and joining their weights costs less than
    joining their outputs."""
    if modules in layout.products and all(is_plain(module, type(module)) for module in modules):
        return layout.products[modules](rows, layout)
    if all(map(is_plain, modules)) and (torch.is_grad_enabled() or torch.compiler.is_compiling()
                                        or len(rows) > rows.size(1)):
        return product(rows, torch.cat([module.weight for module in modules]),
                       torch.cat([module.bias for module in modules]), layout.memory)
    return torch.cat([module(rows, layout) for module in modules], dim=1)


def is_plain(module, kind=PackedLinear):
    """Whether a call of the module is kind.forward and nothing else: no hook, no patch, and by
    default no adapter."""
    return type(module) is kind and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or "forward" in vars(module) or _has_any_global_hook())


class JoinAndCast(torch.autograd.Function):
    """Groups of tensors → for each group one tensor in `dtype`, its members one below the other.
    All copies are one operation on a GPU, and so are the gradients' copies back."""

    @staticmethod
    def forward(ctx, dtype, memory, sizes, *tensors):
        """`sizes`: for each group the lengths of its members."""
        ctx.sizes, ctx.memory, rest = sizes, memory, iter(tensors)
        ctx.dtype = tensors[0].dtype
        first = [[next(rest) for _ in lengths][0] for lengths in sizes]
        joined = [memory.empty((sum(lengths), *tensor.shape[1:]), dtype or tensor.dtype,
                               tensor.device) for tensor, lengths in zip(first, sizes)]
        parts = [part for whole, lengths in zip(joined, sizes) for part in whole.split(lengths)]
        torch._foreach_copy_(parts, tensors)
        return tuple(joined)

    @staticmethod
    def backward(ctx, *gradients):
        parts = [part for whole, lengths in zip(gradients, ctx.sizes)
                 for part in (whole.split(lengths) if whole is not None else [None] * len(lengths))]
        present = [part for part in parts if part is not None]
        twice = torch.is_grad_enabled()                      # for a second derivative
        copies = [part.to(ctx.dtype) if twice else
                  ctx.memory.empty(part.shape, ctx.dtype, part.device) for part in present]
        if copies and not twice:
            torch._foreach_copy_(copies, present)
        copies = iter(copies)
        return None, None, None, *(None if part is None else next(copies) for part in parts)


def join_together(groups, dtype, memory):
    """groups of tensors → for each group one tensor, its members one below the other, in `dtype`
    (None: their own)"""
    return JoinAndCast.apply(dtype, memory, [[len(tensor) for tensor in group] for group in groups],
                             *(tensor for group in groups for tensor in group))


def products_for(layers, layout, dtype, memory):
    """layers: [(BertLayer, whether it computes few rows only), …] → {modules that read the same
    rows: a function of (rows [N, in], layout) that returns their outputs side by side}, made anew
    for each pass, with matrices in `dtype` (None: their own), in a KeptMemory.

    Types of modules contribute: type.joins(modules, layout, dtype) tells whether
    type.products(groups, layout, dtype, memory) has a product for each of these groups of them."""
    chosen = {}                                              # {type: its groups}
    for layer, few_rows in layers:
        attention, covered = layer.attention, set()
        joined = (((attention.query,), (attention.key, attention.value)) if few_rows else
                  ((attention.query, attention.key, attention.value),))
        for group in (*joined, *((module,) for module in layer.modules())):
            kinds = [kind for kind in map(type, group) if hasattr(kind, "joins")]
            if covered.isdisjoint(group) and (kind := next(
                    (kind for kind in kinds if kind.joins(group, layout, dtype)), None)):
                chosen.setdefault(kind, []).append(group)
                covered.update(part for module in group for part in module.modules())
    return {group: product for kind, groups in chosen.items()
            for group, product in zip(groups, kind.products(groups, layout, dtype, memory))}
