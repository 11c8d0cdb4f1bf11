"""BERT's encoder by hand (Devlin et al. 2019, arXiv 1810.04805).

    bert = Bert.from_pretrained("bert-base-uncased")
    out = bert(**tokenizer(["a sentence", "another"]))       # .last_hidden_state  .pooler_output

Read from the top: attention, one layer, the whole. Names: batch (B), tokens (T) = tokens of the
longest sequence, N = real tokens of the whole batch, hidden (H) = hidden_size, d = head size.
Hidden states live as one matrix [N, H] without padding (bert/layout.py); `forward` returns them
padded.

Left out: decoders, relative positions, cross attention, gradient checkpointing.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import _register_namedtuple

from bert.checkpoint import load_bert, save_bert
from bert.config import ACTIVATIONS
from bert.errors import UserError
from bert.inputs import input_layout, unpad_ids


def attention(query, key, value, key_mask=None, dropout=0.0, probabilities=torch.softmax):
    """softmax(QKᵀ/√d) V  (Vaswani et al. 2017, eq. 1). Every argument is [batch, heads, tokens, d];
    `visible` [batch, 1, 1, tokens] is False where there is no token to attend to."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1))   # [B, heads, T, T]
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask, -math.inf)
    return F.dropout(probabilities(scores, dim=-1), dropout) @ value


def sdpa_attention(query, key, value, key_mask=None, dropout=0.0):
    """The same in one kernel, which never stores the [tokens, tokens] scores where it need not."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask, dropout_p=dropout)


ATTENTIONS = {"sdpa": sdpa_attention, "eager": attention}


class PackedLinear(nn.Linear):
    """W·x + b on each of N rows. It is told how the rows lie because what may take its place, an
    adapter that differs from sequence to sequence, must know."""

    def reset_parameters(self):
        if self.weight.numel():                              # of a layer without heads it is empty
            super().reset_parameters()
        else:
            nn.init.zeros_(self.bias)

    def forward(self, rows, layout=None):
        return F.linear(rows, self.weight, self.bias)        # [N, in] → [N, out]


class PackedLayerNorm(nn.LayerNorm):
    """LayerNorm of each row. It too is told how the rows lie."""

    def forward(self, rows, layout=None):
        return super().forward(rows)


class SelfAttention(nn.Module):
    """Every head attends on its own; their contexts, side by side, go through `output`.
    heads · head_size is the hidden size at first, and less once heads have been removed: `kept`
    are the numbers of those that are left."""

    def __init__(self, config, number=0):
        super().__init__()
        self.head_indices = config.remaining_heads(number)
        self.num_heads = len(self.head_indices)
        self.head_size = config.hidden_size // config.num_attention_heads
        width = self.num_heads * self.head_size
        self.query = PackedLinear(config.hidden_size, width)
        self.key = PackedLinear(config.hidden_size, width)
        self.value = PackedLinear(config.hidden_size, width)
        self.output = PackedLinear(width, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob
        self.attention_function = sdpa_attention                        # or `attention`, or one of your own
        self.register_buffer("head_mask", None, persistent=False)
        self.set_masked_heads(config, config.masked_heads.get(number, ()))

    def set_masked_heads(self, config, heads):
        """Mask these heads in every pass: `head_mask` [num_attention_heads] is 0 for each of them,
        or None if there are none. It is part of the layer: every walk over the layers has it."""
        weight = next(self.parameters())                     # on meta: about to be loaded
        mask = torch.ones(config.num_attention_heads, dtype=weight.dtype,
                          device="cpu" if weight.is_meta else weight.device)
        mask[list(heads)] = 0
        self.head_mask = mask if heads else None

    def split(self, rows, layout):
        """[N, heads·d] → [batch, heads, tokens, d]"""
        return layout.pad(rows).unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)

    def forward(self, hidden, layout, head_mask=None, output_rows=None):
        """hidden [N, H] → [N, H], or [M, H] where `read` selects M rows: only these are asked for.
        head_mask [heads] or [batch, heads], of all heads the layer ever had, scales each head's
        context beside the layer's own mask; 0 removes the head. Without a head what is left is the
        output's bias."""
        query_hidden, query_layout = hidden, layout
        if output_rows is not None:
            query_hidden, query_layout = hidden.index_select(0, output_rows.rows), output_rows
        if not self.num_heads:
            return self.output(query_hidden[:, :0], query_layout)
        rows = (self.query(query_hidden, query_layout), self.key(hidden, layout), self.value(hidden, layout))
        if output_rows is None and layout.length_buckets:                   # each length on a grid of its own
            context = layout.join([self.attend(*(part.index_select(0, group.rows) for part in rows),
                                             group, group) for group in layout.length_buckets])
        else:
            context = self.attend(*rows, query_layout, layout)        # [M, heads·d]
        if self.head_mask is not None:
            head_mask = self.head_mask if head_mask is None else head_mask * self.head_mask
        if head_mask is not None:
            if self.num_heads < head_mask.size(-1):
                head_mask = head_mask[..., self.head_indices]
            scale = head_mask.expand(layout.batch, self.num_heads)[query_layout.sequence]
            context = context * scale.repeat_interleave(self.head_size, dim=1)
        return self.output(context, query_layout)

    def attend(self, query, key, value, query_layout, layout):
        """Rows of queries, keys and values → each query's context [M, heads·d]."""
        context = self.attention_function(self.split(query, query_layout), self.split(key, layout),
                              self.split(value, layout), layout.key_mask,
                              self.dropout if self.training else 0.0)    # [batch, heads, tokens, d]
        return query_layout.unpad(context.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W₂·GELU(W₁x + b₁) + b₂ on each token. Its two halves can be called one by one."""

    def __init__(self, config, number=0):
        super().__init__()
        size = config.ffn_size(number)
        self.fc_in = PackedLinear(config.hidden_size, size)
        self.fc_out = PackedLinear(size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden, layout):
        """hidden [N, H] → [N, H]"""
        return self.project(self.activate(hidden, layout), layout)

    def activate(self, hidden, layout):
        """The first half, GELU(W₁x + b₁): [N, H] → [N, intermediate]."""
        return self.activation(self.fc_in(hidden, layout))

    def project(self, activations, layout):
        """The second half, W₂·activations + b₂: [N, intermediate] → [N, H]."""
        return self.fc_out(activations, layout)


class BertLayer(nn.Module):
    """Attention, then the feed-forward network; after each, residual and LayerNorm (post-norm)."""

    def __init__(self, config, number=0):
        super().__init__()
        self.attention = SelfAttention(config, number)
        self.attention_norm = PackedLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config, number)
        self.output_norm = PackedLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, layout, head_mask=None, output_rows=None):
        """hidden [N, H] → [N, H], or [M, H] if `output_rows` selects M rows of `layout`."""
        hidden = self.attention_block(hidden, layout, head_mask, output_rows)
        layout = layout if output_rows is None else output_rows
        return self.add_and_norm(hidden, self.ffn(hidden, layout), layout)

    def attention_block(self, hidden, layout, head_mask=None, output_rows=None):
        """Attention, residual, LayerNorm: [N, H] → [N, H], or [M, H]."""
        context = self.attention(hidden, layout, head_mask, output_rows)
        if output_rows is not None:
            hidden, layout = hidden.index_select(0, output_rows.rows), output_rows
        return self.attention_norm(hidden + self.dropout(context), layout)

    def add_and_norm(self, hidden, ffn_output, layout):
        """The residual and LayerNorm after the feed-forward network, both [N, H] → [N, H]."""
        return self.output_norm(hidden + self.dropout(ffn_output), layout)


class BertOutput(NamedTuple):
    """last_hidden_state [B, T, H] (zeros where there is no token), pooler_output [B, H] (None where
    the checkpoint held no pooler), and hidden_states, on request: the embeddings and every layer's
    output, each [B, T, H]."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor | None
    hidden_states: tuple | None = None


_register_namedtuple(BertOutput, serialized_type_name="bert.BertOutput")     # for torch.export.save


class Bert(nn.Module):
    """Word, position and token-type embeddings, a stack of layers, a pooler on [CLS]."""

    def __init__(self, config, attention="sdpa"):
        super().__init__()
        self.config = config
        self.edits = []                                      # what was done to it: run.json's list
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = PackedLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config, number)
                                    for number in range(config.num_hidden_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.pooler_is_new = False                           # True: the checkpoint held none
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.apply(self._init_weights)
        self.use_attention(attention)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, name, attention="sdpa"):
        """`name`: a folder in the Hugging Face layout, or a model's name on the hub. A task's head
        is left out, with a warning. Without a pooler the model gets a new one, with a warning, and
        `pooler_is_new` is True: forward's pooler_output is then None, `pool` is an error, and
        save_pretrained leaves the pooler out. Set `pooler_is_new = False` to train it."""
        return load_bert(cls, name, attention)

    def save_pretrained(self, folder):
        """Write config.json and model.safetensors, which transformers.BertModel opens too, unless
        parts were removed; it knows nothing of heads that are switched off."""
        save_bert(self, folder)

    def use_attention(self, name):
        """"sdpa" or "eager", in every layer."""
        if name not in ATTENTIONS:
            raise UserError(f"attention {name!r} is unknown; known are {sorted(ATTENTIONS)}")
        self.attention_name = name
        for layer in self.layers:
            layer.attention.attention_function = ATTENTIONS[name]

    def embed(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None,
              dense=False):
        """→ hidden [N, H], layout.  input_ids, attention_mask (1 keeps a token) and token_type_ids
        are [B, T]; inputs_embeds [B, T, H] takes the place of input_ids. attention_mask may also be
        a Layout; `dense` makes a DenseLayout of a mask."""
        layout = input_layout(self.config, input_ids, attention_mask, inputs_embeds, dense)
        words = (layout.unpad(inputs_embeds) if input_ids is None else self.word_embeddings(
            unpad_ids("input_ids", input_ids, layout, self.config.vocab_size)))          # [N, H]
        types = (torch.zeros_like(layout.flat_index) if token_type_ids is None else
                 unpad_ids("token_type_ids", token_type_ids, layout, self.config.type_vocab_size))
        positions = self.position_embeddings(layout.position)            # [N, H]
        hidden = words + self.token_type_embeddings(types) + positions
        return self.dropout(self.embedding_norm(hidden, layout)), layout

    def encode(self, hidden, layout, head_mask=None, output_rows=None, states=None, start=0):
        """Run every layer from `start` on: hidden [N, H] → [N, H], or [M, H] where `read` (a
        selection of `layout`) says which rows anyone will look at: the last layer computes no
        others. head_mask is [layers, heads] or [batch, layers, heads], and counts the heads that
        were removed too. A list given as `states` receives every layer's output."""
        head_mask = self._check_head_mask(head_mask, layout, hidden)
        for number, layer, rows in self.walk(output_rows, start):
            hidden = layer(hidden, layout, output_rows=rows,
                           head_mask=None if head_mask is None else head_mask[..., number, :])
            if states is not None:
                states.append(hidden)
        return hidden

    def walk(self, output_rows=None, start=0):
        """Yield (number, layer, rows) of each layer from `start` on: the order in which layers run,
        and the selection of rows that each computes (None: all). Every walk over the layers uses
        this one: forward, LASER's evaluator, the count of multiply-adds."""
        for number, layer in enumerate(self.layers[start:], start):
            yield number, layer, output_rows if number == len(self.layers) - 1 else None

    def _check_head_mask(self, head_mask, layout, hidden):
        """head_mask as a tensor beside `hidden`; UserError where its shape does not fit."""
        if head_mask is None:
            return None
        try:
            head_mask = torch.as_tensor(head_mask, dtype=hidden.dtype, device=hidden.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"head_mask is {head_mask!r}; it must be a tensor of numbers, 0 for a "
                            f"head that is switched off") from error
        layers, heads = len(self.layers), self.config.num_attention_heads
        if list(head_mask.shape) not in ([layers, heads], [layout.batch, layers, heads]):
            raise UserError(f"head_mask has the shape {list(head_mask.shape)}; it must be "
                            f"[{layers} layers, {heads} heads] or [{layout.batch} in the batch, "
                            f"{layers} layers, {heads} heads]")
        return head_mask

    def check_pooler(self):
        """UserError where the pooler is new, so that what it computes is random."""
        if self.pooler_is_new:
            raise UserError("the checkpoint holds no pooler, so this model's is random and cannot "
                            "be read; read [CLS] or the mean (--pooling cls, --pooling mean), or set "
                            "bert.pooler_is_new = False to train it")

    def pool(self, first):
        """tanh(W·h + b): [B, H] at [CLS] → [B, H], what BERT's next-sentence task read."""
        self.check_pooler()
        return torch.tanh(self.pooler(first))

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None,
                head_mask=None, output_hidden_states=False, dense=False):
        """Everything of every token, padded: a BertOutput. Callers that need less use embed and
        encode, of which this is made. `dense` computes padding too, so that no shape depends on a
        value: for torch.export, ONNX, torch.func and torch.compile (docs/export.md)."""
        hidden, layout = self.embed(input_ids, attention_mask, token_type_ids, inputs_embeds, dense)
        states = [hidden] if output_hidden_states else None
        hidden = self.encode(hidden, layout, head_mask, states=states)
        first = hidden.index_select(0, layout.cls_rows().rows)
        return BertOutput(layout.pad(hidden), None if self.pooler_is_new else self.pool(first),
                          tuple(map(layout.pad, states)) if output_hidden_states else None)
