"""What an encoder costs: multiply-adds, counted from the modules as they are."""

import torch

from lora.layers import Adapted


def matrix(module, adapter=None):
    """Numbers in a module's matrices, and in those of the adapter that serves: each is a
    multiply-add a row."""
    if isinstance(module, Adapted):
        serving = module.adapter(adapter or module.active)
        return matrix(module.base) + (0 if serving is None else matrix(serving))
    tensors = [*module.parameters(), *module.buffers()]      # of LoRA-XS, A and B are buffers
    return sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)


def multiply_adds(bert, lengths, read="cls", adapter=None):
    """Multiply-adds of one pass over sequences of these `lengths` [B] (real tokens, padding is
    not computed). A row costs each matrix its size; the scores QKᵀ and the sum over V cost
    asking · tokens · heads · d each. `read`: "cls" or "pooler", where the last layer asks at
    [CLS] only, or "mean" of all tokens. `adapter` serves the sequences (None: the active one)."""
    lengths = torch.as_tensor(lengths)
    tokens, total = int(lengths.sum()), 0
    for layer in bert.layers:
        attention = layer.attention
        cls_only = layer is bert.layers[-1] and read != "mean"
        asking = torch.ones_like(lengths) if cls_only else lengths       # [B] rows that ask
        meetings = int((asking * lengths).sum())
        asked = (attention.query, attention.output, layer.fc_in, layer.fc_out)
        total += int(asking.sum()) * sum(matrix(module, adapter) for module in asked)
        total += tokens * (matrix(attention.key, adapter) + matrix(attention.value, adapter))
        total += 2 * meetings * attention.heads * attention.head_size
    return total + (len(lengths) * matrix(bert.pooler) if read == "pooler" else 0)
