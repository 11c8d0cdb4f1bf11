"""What an encoder costs: multiply-adds, counted from the modules as they are."""

import torch

from lora.layers import AdapterLayer


def matrix(module, adapter=None):
    """Numbers in a module's matrices, and in those of the adapter that serves: each is a
    multiply-add a row."""
    if isinstance(module, AdapterLayer):
        adapter_by_task = module.adapter(adapter or module.active)
        return matrix(module.base) + (0 if adapter_by_task is None else matrix(adapter_by_task))
    tensors = [*module.parameters(), *module.buffers()]      # of LoRA-XS, A and B are buffers
    return sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)


def multiply_adds(bert, lengths, pooling="cls", adapter=None):
    """Multiply-adds of one pass over sequences of these `lengths` [B] (real tokens, padding is
    not computed). A row costs each matrix its size; the scores QKᵀ and the sum over V cost
    asking · tokens · heads · d each. `read`: "cls" or "pooler", where the last layer asks at
    [CLS] only, or "mean" of all tokens. `adapter` serves the sequences (None: the active one)."""
    lengths = torch.as_tensor(lengths)
    tokens, total = int(lengths.sum()), 0
    for layer in bert.layers:
        attention = layer.attention
        cls_only = layer is bert.layers[-1] and pooling != "mean"
        query_hidden = torch.ones_like(lengths) if cls_only else lengths       # [B] rows that ask
        attention_pairs = int((query_hidden * lengths).sum())
        query_layout = (attention.query, attention.output, layer.ffn.fc_in, layer.ffn.fc_out)
        total += int(query_hidden.sum()) * sum(matrix(module, adapter) for module in query_layout)
        total += tokens * (matrix(attention.key, adapter) + matrix(attention.value, adapter))
        total += 2 * attention_pairs * attention.num_heads * attention.head_size
    return total + (len(lengths) * matrix(bert.pooler) if pooling == "pooler" else 0)
