"""BERT's encoder by hand (Devlin et al. 2019, arXiv 1810.04805).

    bert = Bert.from_pretrained("bert-base-uncased")
    out = bert(**tokenizer(["a sentence", "another"]))       # .last_hidden_state  .pooler_output

Read bert/layout.py and bert/attention.py first. Hidden states are one matrix [N, H] without
padding. Left out: decoders, relative positions, gradient checkpointing.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._pytree import _register_namedtuple

from bert.attention import ATTENTIONS, SelfAttention
from bert.checkpoint import load_bert, save_bert
from bert.config import ACTIVATIONS, IN_PLACE
from bert.dropout import Dropout, is_traced
from bert.embedding import WordEmbedding
from bert.errors import UserError, check_known
from bert.inputs import check_head_mask, input_layout, unpad_ids
from bert.linear import PackedLinear, is_plain, products_for
from bert.memory import KeptMemory


class PackedLayerNorm(nn.LayerNorm):
    """LayerNorm of each of N rows. `layout` is unused, as in PackedLinear."""

    def forward(self, rows, layout=None):
        return super().forward(rows)


class FeedForward(nn.Module):
    """W₂·GELU(W₁x + b₁) + b₂ on each row. A module with the same `forward` can take its place."""

    def __init__(self, config, number):
        super().__init__()
        size = config.ffn_size(number)
        self.fc_in = PackedLinear(config.hidden_size, size)
        self.fc_out = PackedLinear(size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden, layout):
        """hidden [N, H] → [N, H]"""
        return self.project(self.activate(hidden, layout), layout)

    def activate(self, hidden, layout):
        """GELU(W₁x + b₁): [N, H] → [N, intermediate]"""
        rows = self.fc_in(hidden, layout)
        if torch.is_grad_enabled() or not is_plain(self.fc_in):      # a hook may keep these rows
            return self.activation(rows)
        return IN_PLACE.get(self.activation, self.activation)(rows)

    def project(self, activations, layout):
        """W₂·activations + b₂: [N, intermediate] → [N, H]"""
        return self.fc_out(activations, layout)


class BertLayer(nn.Module):
    """Attention, then the feed-forward network; after each, residual and LayerNorm (post-norm)."""

    def __init__(self, config, number):
        super().__init__()
        self.attention = SelfAttention(config, number)
        self.attention_norm = PackedLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config, number)
        self.output_norm = PackedLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, layout, head_mask=None, output_rows=None):
        """hidden [N, H] → [N, H], or [M, H] if `output_rows` selects M rows of `layout`."""
        hidden = self.attention_block(hidden, layout, head_mask, output_rows)
        layout = layout if output_rows is None else output_rows
        return self.add_and_norm(hidden, self.ffn(hidden, layout), layout)

    def attention_block(self, hidden, layout, head_mask=None, output_rows=None):
        """Attention, residual, LayerNorm: [N, H] → [N, H] or [M, H]. The arguments are those of
        SelfAttention.forward."""
        attended = self.attention(hidden, layout, head_mask, output_rows)
        if output_rows is not None:
            hidden, layout = hidden.index_select(0, output_rows.rows), output_rows
        return self.attention_norm(hidden + self.dropout(attended), layout)

    def add_and_norm(self, hidden, ffn_output, layout):
        """The residual and LayerNorm after the feed-forward network, both [N, H] → [N, H]."""
        return self.output_norm(hidden + self.dropout(ffn_output), layout)


class BertOutput(NamedTuple):
    last_hidden_state: torch.Tensor                      # [B, T, H], zeros at padding
    pooler_output: torch.Tensor | None                   # [B, H]; None if the checkpoint had none
    hidden_states: tuple | None = None                   # of embeddings and layers: [B, T, H] each


_register_namedtuple(BertOutput, serialized_type_name="bert.BertOutput")     # for torch.export.save


class Bert(nn.Module):
    """Word, position and token-type embeddings, a stack of layers, a pooler on [CLS]. `edits` lists
    what was done to the model since: [{"method": name, …}] of JSON values."""

    def __init__(self, config, attention="sdpa"):
        super().__init__()
        self.config, self.edits, self.memory = config, [], KeptMemory()
        self.prepared = None                                 # {}: see fixed_weights
        self.word_embeddings = WordEmbedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = PackedLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            BertLayer(config, number) for number in range(config.num_hidden_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.pooler_is_new = False                           # True: the checkpoint held none
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.apply(self._init_weights)
        self.use_attention(attention)

    def _init_weights(self, module):
        if self.word_embeddings.weight.is_meta:              # weights are loaded later
            return
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    from_pretrained = classmethod(load_bert)                 # Bert.from_pretrained(name)

    def save_pretrained(self, folder):
        """Write config.json and model.safetensors, which transformers opens too (save_bert)."""
        save_bert(self, folder)

    def use_attention(self, name):
        check_known(name, ATTENTIONS, "attention")
        self.attention_name = name
        for layer in self.layers:
            layer.attention.set_attention(ATTENTIONS[name], self.config)

    def embed(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None,
              dense=False):
        """→ hidden [N, H], layout.  input_ids, attention_mask (1 keeps a token; or a Layout) and
        token_type_ids are [B, T]; inputs_embeds [B, T, H] replaces input_ids."""
        layout = input_layout(self.config, input_ids, attention_mask, inputs_embeds, dense)
        words = (layout.unpad(inputs_embeds) if input_ids is None else              # [N, H]
                 self.word_embeddings(unpad_ids("input_ids", input_ids, layout,
                                                self.config.vocab_size), self.memory))
        types = (torch.zeros_like(layout.flat_index) if token_type_ids is None else
                 unpad_ids("token_type_ids", token_type_ids, layout, self.config.type_vocab_size))
        positions = self.position_embeddings(layout.positions)                           # [N, H]
        hidden = words + self.token_type_embeddings(types) + positions
        return self.dropout(self.embedding_norm(hidden, layout)), layout

    def encode(self, hidden, layout, head_mask=None, output_rows=None, states=None, start=0):
        """Run the layers from number `start` on: hidden [N, H] → [N, H], or [M, H] if `output_rows`
        is a selection of `layout`: the last layer computes only these. head_mask is [layers, heads]
        or [batch, layers, heads], of all before pruning. `states` receives each layer's output."""
        if output_rows is not None and output_rows.batch != layout.batch:
            raise UserError(f"output_rows is of {output_rows.batch} sequences, layout of "
                            f"{layout.batch}; select the rows from this layout")
        if head_mask is not None:
            head_mask = check_head_mask(head_mask, len(self.layers),
                                        self.config.num_attention_heads, layout, hidden)
        layout, output_rows = self.with_products(layout, output_rows, start)
        for number, layer, rows in self.walk(output_rows, start):
            hidden = layer(hidden, layout, output_rows=rows,
                           head_mask=None if head_mask is None else head_mask[..., number, :])
            if states is not None:
                states.append(hidden)
        return hidden

    def with_products(self, layout, output_rows, start):
        """→ layout and output_rows with the memory and the products of one pass: of weights in
        autocast's precision, if it is on; of several adapters in one batch, except in inference on
        a CPU; and of fixed_weights, whose passes share them."""
        if is_traced():
            return layout, output_rows
        device, trains = layout.flat_index.device.type, torch.is_grad_enabled()
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        several, products = len(layout.adapter_rows or ()) > 1, {}
        shares = self.prepared is not None and not several and not trains
        if shares or dtype or several and (trains or device != "cpu"):
            made = self.prepared if shares else {}
            kind = dtype, output_rows is not None, start
            if kind not in made:
                layers = [(layer, rows is not None) for _, layer, rows in
                          self.walk(output_rows, start)]
                made[kind] = products_for(layers, layout, dtype, self.memory)
            products = made[kind]
        return [None if part is None else part.with_products(products, self.memory)
                for part in (layout, output_rows)]

    @contextmanager
    def fixed_weights(self):
        """A context in which no weight changes: passes without gradients share what the first
        prepares of the weights, matrices joined, and cast in mixed precision."""
        before = self.prepared
        self.prepared = {} if before is None else before
        try:
            yield
        finally:
            self.prepared = before

    def __getstate__(self):                                  # a copy's weights may change
        return {**vars(self), "prepared": None}

    def walk(self, output_rows=None, start=0):
        """Yield (number, layer, `output_rows` for the last layer, else None) from layer `start` on.
        Use it wherever hidden states are computed; `output_rows` is only passed on."""
        for number, layer in enumerate(self.layers[start:], start):
            yield number, layer, output_rows if number == len(self.layers) - 1 else None

    def check_pooler(self):
        if self.pooler_is_new:
            raise UserError("the checkpoint holds no pooler, so this one is random; use --pooling "
                            "cls or mean, or set bert.pooler_is_new = False to train it")

    def pool(self, first):
        """tanh(W·h + b) of [CLS]: [B, H] → [B, H], the input of BERT's next-sentence task."""
        self.check_pooler()
        return torch.tanh(self.pooler(first))

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None,
                head_mask=None, output_hidden_states=False, dense=False):
        """→ BertOutput, padded. For fewer rows call embed and encode. `dense` computes padding too,
        so that no shape depends on a value, for export and compilation (docs/export.md)."""
        hidden, layout = self.embed(input_ids, attention_mask, token_type_ids, inputs_embeds, dense)
        states = [hidden] if output_hidden_states else None
        hidden = self.encode(hidden, layout, head_mask, states=states)
        first = hidden.index_select(0, layout.first_rows())
        return BertOutput(layout.pad(hidden), None if self.pooler_is_new else self.pool(first),
                          tuple(map(layout.pad, states)) if output_hidden_states else None)
