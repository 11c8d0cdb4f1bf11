"""Attention of one query in each sequence, as [CLS] is in the last layer, without keys and values:

    q·(W_k x + b_k) = (W_kᵀ q)·x + q·b_k
    Σ_t p_t (W_v x_t + b_v) = W_v (Σ_t p_t x_t) + b_v Σ_t p_t

So the matrices W_k and W_v multiply one row of each sequence, and not all its rows."""

import torch

from bert.dropout import dropout, is_traced
from bert.linear import is_plain


def fits(attention, query_layout):
    """Whether `attend` gives what the SelfAttention gives: each sequence has one query, and keys
    and values come from plain matrices."""
    key, value = attention.key, attention.value
    return (not is_traced() and query_layout.tokens == 1 and query_layout.no_padding
            and is_plain(key) and is_plain(value)            # no adapter, no hook
            and key.weight.device.type == "cpu" and key.weight.dtype == torch.float32)


def attend(attention, query, hidden, layout):
    """query [B, heads·d], hidden [N, H] of all rows → contexts [B, heads·d], in fp32"""
    heads, size = attention.num_heads, attention.head_size
    with torch.autocast("cpu", enabled=False):
        (to_key, key_bias), (to_value, value_bias) = (       # [heads, d, H], [heads, 1, d]
            (matrix.weight.unflatten(0, (heads, size)), matrix.bias.view(heads, 1, size))
            for matrix in (attention.key, attention.value))
        rows = layout.to_grid(hidden.float())                                # [B, T, H]
        query = query.float().view(-1, heads, size).transpose(0, 1) * size ** -0.5   # [heads, B, d]
        biases = (query * key_bias).sum(dim=2).T[:, :, None]                 # [B, heads, 1]
        if layout.key_mask is not None:
            biases = biases + layout.key_bias(torch.float32)[:, 0]           # [B, heads, T]
        scores = torch.baddbmm(biases, torch.bmm(query, to_key).transpose(0, 1), rows.mT)
        p = dropout(scores.softmax(dim=-1), attention.dropout, attention.training)
        context = torch.bmm(torch.bmm(p, rows).transpose(0, 1), to_value.mT)         # [heads, B, d]
        context = context + value_bias * p.sum(dim=2).T[:, :, None]
        return context.transpose(0, 1).flatten(1)
