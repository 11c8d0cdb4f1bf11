"""What an encoder costs: multiply-adds and parameters, counted from the modules as they are."""

import torch
from torch import nn


def _matrix(module):
    """Numbers in a module's matrices: each is a multiply-add a row."""
    return sum(p.numel() for p in module.parameters() if p.dim() == 2)


def multiply_adds(bert, lengths, read="cls"):
    """Multiply-adds of one pass over sequences of these `lengths` [B] (real tokens, padding is
    not computed). A row costs each matrix its size; the scores QKᵀ and the sum over V cost
    asking · tokens · heads · d each. `read`: "cls" or "pooler", where the last layer asks at
    [CLS] only, or "mean" of all tokens."""
    lengths = torch.as_tensor(lengths)
    tokens, total = int(lengths.sum()), 0
    for layer in bert.layers:
        attention = layer.attention
        cls_only = layer is bert.layers[-1] and read != "mean"
        asking = torch.ones_like(lengths) if cls_only else lengths       # [B] rows that ask
        meetings = int((asking * lengths).sum())
        total += int(asking.sum()) * sum(map(_matrix, (
            attention.query, attention.output, layer.fc_in, layer.fc_out)))
        total += tokens * (_matrix(attention.key) + _matrix(attention.value))
        total += 2 * meetings * attention.heads * attention.head_size
    return total + (len(lengths) * _matrix(bert.pooler) if read == "pooler" else 0)


def layer_norm_parameters(model):
    """How many numbers the LayerNorms hold, which train beside adapters."""
    return sum(p.numel() for module in model.modules() if isinstance(module, nn.LayerNorm)
               for p in module.parameters())
