"""Self-attention over a batch without padding (Vaswani et al. 2017, arXiv 1706.03762).

Shapes: B batch, T tokens of the longest sequence, N real tokens of the whole batch, M selected ones
of the N, H hidden size, d head size. Queries may be those of fewer rows than keys and values. Read
bert/layout.py first: it tells which row is which token, and what selections and buckets are."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from bert import single_query
from bert.cpu_attention import cpu_attention, packed_cpu_attention
from bert.dropout import is_traced, rounded
from bert.linear import PackedLinear, one_product
from bert.packed_attention import packed_attention
from bert.r_softmax import RSoftmaxAttention

SHORT = 48               # tokens; in longer sequences without dropout torch's kernel is faster


def eager_attention(query, key, value, key_mask=None, dropout=0.0, layouts=None,
                    probabilities=torch.softmax):
    """softmax(QKᵀ/√d) V  (Vaswani et al. 2017, eq. 1).

    query is [B, heads, Tq, d], key and value are [B, heads, Tk, d] → [B, heads, Tq, d]. `key_mask`,
    bool, broadcast to [B, heads, Tq, Tk], is False at keys that a query must not attend to; a query
    without any key gets the mean of all values. `dropout` is the probability to drop a number of
    the softmax, 0 outside training. `probabilities`, called with (scores, dim=-1), takes softmax's
    place. `layouts` = (layout of the queries, layout of the keys) is for functions that need
    positions: layout.pad(layout.positions) is [B, T]."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1))   # [B, heads, Tq, Tk]
    if key_mask is not None:                  # not -inf: no NaN where it hides every key
        scores = scores.masked_fill(~key_mask, torch.finfo(scores.dtype).min)
    return F.dropout(probabilities(scores, dim=-1), dropout) @ value


def sdpa_attention(query, key, value, key_mask=None, dropout=0.0, layouts=None):
    """The same in torch's fused kernel, the default, which need not store the [Tq, Tk] scores. On a
    CPU that kernel has no dropout."""
    if layouts is not None:                   # computed once a batch, and not in each layer
        key_mask = layouts[1].key_bias(query.dtype)
    if by_hand(dropout, query) and (key_mask is None or not key_mask.requires_grad):
        return cpu_attention(query, key, value, key_mask, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask, dropout_p=dropout)


def by_hand(dropout, query, layout=None):
    """Whether bert/cpu_attention.py takes the kernel's place, in fp32 and in mixed precision: with
    dropout, and in short sequences, for which the kernel is slower."""
    if query.device.type != "cpu" or is_traced() or not (
            query.dtype == torch.float32
            or query.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu")):
        return False
    short = layout is not None and not dropout and layout.mean_length() <= SHORT
    return short or 0 < rounded(dropout) < 1


# Name → function with these arguments, or a class of nn.Module whose forward has them: each layer
# then constructs its own from (config), and its parameters are trained, saved and loaded.
ATTENTIONS = {"sdpa": sdpa_attention, "eager": eager_attention, "r-softmax": RSoftmaxAttention}


class SelfAttention(nn.Module):
    """Each head attends on its own; `output` mixes their contexts, side by side in [N, heads·d].
    `head_indices` are the original numbers of the heads that pruning has left."""

    def __init__(self, config, number):
        super().__init__()
        self.head_indices = config.remaining_heads(number)
        self.num_heads = len(self.head_indices)
        self.head_size = config.hidden_size // config.num_attention_heads
        width = self.num_heads * self.head_size              # H before pruning
        self.query, self.key, self.value = (
            PackedLinear(config.hidden_size, width) for _ in range(3))
        self.output = PackedLinear(width, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob
        self.attention_function = sdpa_attention
        self.register_buffer("head_mask", None, persistent=False)
        self.set_masked_heads(config, config.masked_heads.get(number, ()))

    def set_attention(self, function, config):
        """Attend by `function`, a value of ATTENTIONS. A class that is in use already is kept."""
        if isinstance(function, type):
            if type(self.attention_function) is function:
                return
            weight, function = next(self.parameters()), function(config).train(self.training)
            function = function if weight.is_meta else function.to(weight)
        del self.attention_function          # nn.Module refuses a function in a module's place
        self.attention_function = function

    def set_masked_heads(self, config, heads):
        """Mask these heads in every pass: `head_mask` [num_attention_heads] is 0 for each."""
        weight = next(self.parameters())     # on meta they are loaded later; the mask is needed now
        mask = torch.ones(config.num_attention_heads, dtype=weight.dtype,
                          device="cpu" if weight.is_meta else weight.device)
        mask[list(heads)] = 0
        self.head_mask = mask if heads else None

    def forward(self, hidden, layout, head_mask=None, output_rows=None):
        """hidden [N, H] → [N, H], or [M, H] if `output_rows` selects M rows: only these get a
        query. The argument head_mask, [heads] or [batch, heads] of all heads before pruning, scales
        each head's context, and so does self.head_mask. Without heads: the bias of `output`."""
        query_hidden, query_layout = hidden, layout
        if output_rows is not None:
            query_hidden, query_layout = hidden.index_select(0, output_rows.rows), output_rows
        if not self.num_heads:
            return self.output(query_hidden[:, :0], query_layout)
        context = self.contexts(hidden, layout, query_hidden, query_layout)
        return self.output(self.scale_heads(context, query_layout, head_mask), query_layout)

    def contexts(self, hidden, layout, query_hidden, query_layout):
        """hidden [N, H] of all rows and query_hidden [M, H] of queries → contexts [M, heads·d]"""
        if query_layout is layout:
            rows = one_product((self.query, self.key, self.value), hidden, layout)
            context = self.attend_packed(layout, layout, rows)
            if context is None:
                grids = zip(layout.length_buckets or [layout], layout.to_grids(rows))
                context = layout.from_grids([self.attend(where, where, *self.split_heads(grid))
                                             for where, grid in grids])
            return context
        query = self.query(query_hidden, query_layout)
        if self.attention_function is sdpa_attention and single_query.fits(self, query_layout):
            return single_query.attend(self, query, hidden, layout)
        rows = one_product((self.key, self.value), hidden, layout)
        context = self.attend_packed(query_layout, layout, query, rows)
        if context is None:
            grids = query_layout.to_grid(query), layout.to_grid(rows)
            context = query_layout.unpad(self.attend(
                query_layout, layout, *(part for grid in grids for part in self.split_heads(grid))))
        return context

    def attend_packed(self, query_layout, layout, *products):
        """The products of query, key and value, some side by side → contexts [M, heads·d] by a
        faster way than one grid after the other; None if there is none here."""
        if self.attention_function is not sdpa_attention:
            return None
        dropout = self.dropout if self.training else 0.0
        if len(products) == 1 and by_hand(dropout, *products, layout):
            return packed_cpu_attention(*products, layout, self.num_heads, dropout)
        parts = [part for rows in products
                 for part in rows.split(self.num_heads * self.head_size, dim=1)]
        return packed_attention(*parts, self.num_heads, query_layout, layout, dropout)

    def attend(self, query_layout, layout, query, key, value):
        """query [B, heads, Tq, d], key and value [B, heads, Tk, d] → contexts [B, Tq, heads·d]"""
        context = self.attention_function(query, key, value, layout.key_mask,
                                          self.dropout if self.training else 0.0,
                                          (query_layout, layout))        # [B, heads, Tq, d]
        return context.transpose(1, 2).flatten(2)

    def split_heads(self, grid):
        """[B, T, k·heads·d] → k tensors [B, heads, T, d]; for training in one copy, which on a CPU
        is in fp32 (bert/cpu_attention.py)."""
        heads = grid.unflatten(-1, (-1, self.num_heads, self.head_size)).permute(2, 0, 3, 1, 4)
        if not self.training:
            return heads
        return heads.to(torch.float32 if by_hand(self.dropout, grid) else grid.dtype, copy=True,
                        memory_format=torch.contiguous_format)

    def scale_heads(self, context, layout, head_mask=None):
        """context [M, heads·d] → the same times head_mask and the layer's own mask."""
        if self.head_mask is not None:
            head_mask = self.head_mask if head_mask is None else head_mask * self.head_mask
        if head_mask is None:
            return context
        if self.num_heads < head_mask.size(-1):
            left = [head_mask[..., head] for head in self.head_indices]
            head_mask = torch.stack(left, dim=-1)    # indices in a list would wait for a GPU
        scale = head_mask.expand(layout.batch, self.num_heads).index_select(0, layout.sequence)
        return context * scale.repeat_interleave(self.head_size, dim=1)
