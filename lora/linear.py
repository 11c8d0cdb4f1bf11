"""A pretrained matrix with its adapters. LoRALinear.forward is the plain way; where several LoRAs
serve one batch, Bert.encode has lora/together.py's products made, which take its place."""

from functools import cache, partial

import torch

from bert.dense_layout import DenseLayout
from bert.linear import is_plain, join_together
from lora.layers import AdapterLayer, LoRA
from lora.together import adapted_product, columns, row_scales, side_by_side


class LoRALinear(AdapterLayer):
    """W₀x + b, plus ΔWx of each sequence's own adapter, of whichever kind (lora/kinds.py)."""

    def forward(self, rows, layout=None):
        """rows [N, in] → [N, out]"""
        if layout is not None and (self,) in layout.products:
            return layout.products[(self,)](rows, layout)
        out = self.base(rows, layout)
        modules, sizes = self.adapters_for(rows, layout)
        if len(modules) == 1:
            return out if modules[0] is None else modules[0](rows, out)
        groups = zip(modules, rows.split(sizes), out.split(sizes))
        return torch.cat([y if module is None else module(x, y) for module, x, y in groups])

    @staticmethod
    def joins(group, layout, dtype):
        """Whether `products` has a product of these modules: for several adapters, all LoRAs
        without dropout in effect, of the same ranks in each module that has any."""
        if len(layout.adapter_rows or ()) < 2 or isinstance(layout, DenseLayout):
            return False
        adapters = [own for own in (own_adapters(module, layout) for module in group) if own]
        loras = [lora for own in adapters for lora in own.values()]
        frozen = [tensor for module in group for tensor in base_of(module).parameters()]
        return (len({columns(own) for own in adapters}) == 1
                and all(is_plain(lora, LoRA) and not (lora.dropout and lora.training)
                        for lora in loras)
                and all(is_plain(base_of(module)) and is_plain(module, type(module))
                        for module in group)
                and not any(tensor.requires_grad for tensor in frozen)
                and len({tensor.dtype for tensor in (*frozen, *(lora.A for lora in loras))}) == 1
                and (dtype is None or frozen[0].dtype == torch.float32))

    @staticmethod
    @torch.no_grad()
    def products(groups, layout, dtype, memory):
        """→ for each group of modules its function of (rows, layout)"""
        adapters = [[own_adapters(module, layout) for module in group] for group in groups]
        loras = [[lora for own in modules for lora in own.values()] for modules in adapters]
        widths = [sum(lora.rank for lora in each) for each in loras]             # M·R
        zeros = loras[0][0].A.new_zeros(max(widths))
        joined = join_together(
            [[*(base_of(module).weight for module in group), *(lora.A for lora in each)]
             for group, each in zip(groups, loras)]
            + [[*(base_of(module).bias for module in group), zeros[:width]]
               for group, width in zip(groups, widths)], dtype, memory)
        ups = side_by_side([[lora.B for lora in each] for each in loras], dtype)
        scales = cache(partial(row_scales, zeros))
        return [partial(adapted_product, *parts, scales)
                for parts in zip(adapters, joined, joined[len(groups):], ups)]


def base_of(module):
    return module.base if isinstance(module, LoRALinear) else module


def own_adapters(module, layout):
    """→ {name: adapter module} of the batch's adapters that modify this module"""
    names = dict.fromkeys(name for name, _ in layout.adapter_rows)
    own = {name: module.adapter_module(name) for name in names} if isinstance(
        module, LoRALinear) else {}
    return {name: adapter for name, adapter in own.items() if adapter is not None}
