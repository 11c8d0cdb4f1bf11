"""The multiply-adds of an encoder, counted from its present modules."""

import torch

from pruning.gates import feed_forward


def matrix_cost(module, adapter=None):
    """Multiply-adds for one row: the number of entries in the module's matrices. A module that
    replaces a matrix may define multiply_adds(adapter), which returns its own count."""
    if hasattr(module, "multiply_adds"):
        return module.multiply_adds(adapter)
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)


def multiply_adds(bert, lengths, output_rows=None, adapter=None):
    """Multiply-adds of one pass, without the pooler, over sequences of `lengths` [B] real tokens. A
    row costs each matrix its size; QKᵀ and the sum over V cost queries · tokens · heads · d each.
    output_rows [B]: how many rows of each sequence the last layer computes (None: all). All
    sequences use `adapter` (None: the active one). UserError if another module replaces a
    feed-forward network and has no multiply_adds(adapter)."""
    lengths = torch.as_tensor(lengths)
    return sum(int(layer_cost(bert, number, lengths, lengths if rows is None
                              else torch.as_tensor(rows), adapter).sum())
               for number, _, rows in bert.walk(output_rows))


def layer_cost(bert, number, lengths, queries, adapter=None):
    """Multiply-adds of one layer for each sequence, of the shape of `lengths`: so many of its rows
    as `queries` says are computed, from keys and values of all (which bert/single_query.py on a CPU
    does without)."""
    attention, ffn = bert.layers[number].attention, bert.layers[number].ffn
    per_query = [attention.query, attention.output]
    per_query += [ffn] if hasattr(ffn, "multiply_adds") else [
        feed_forward(bert, number).fc_in, ffn.fc_out]
    per_row = matrix_cost(attention.key, adapter) + matrix_cost(attention.value, adapter)
    return (queries * sum(matrix_cost(module, adapter) for module in per_query) + lengths * per_row
            + 2 * queries * lengths * attention.num_heads * attention.head_size)
