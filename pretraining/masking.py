"""From a line of text to a guess: what BERT learns from, and what it is to learn.

    the cat sat on the mat  →  the [MASK] sat on the mat  →  which token stood at place 2?

    masking    15 % of the tokens are chosen and hidden
    head       the encoder's vectors there → a score for every token of the vocabulary

Devlin et al. 2019 (arXiv 1810.04805), section 3.1 and appendix A.1; whole words come from their
repository's later models. Names: N = real tokens of the batch, M = chosen ones, V = vocabulary,
H = hidden size, B = lines, T = tokens of the longest. Left out: next sentence prediction, which was
later found to be of no use (RoBERTa, arXiv 1907.11692).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bert.config import ACTIVATIONS
from bert.layout import Layout
from bert.tokenizer import SPECIAL
from pretraining.distillation import DistillationHead

MASK_PROB = 0.15                        # of the tokens are to be guessed; of these
MASKED, RANDOM = 0.8, 0.1            # become [MASK], become any token; the others stay


class Masking:
    """Chooses anew each time, so no two passes over the text hide the same tokens. Later text holds
    no [MASK], so the model must also be good at places that look untouched: hence the 10 % that
    become another token and the 10 % that stay."""

    def __init__(self, tokenizer, whole_word=False):
        self.mask_id = tokenizer.mask_token_id
        vocabulary = tokenizer.backend.get_vocab()                       # {token: id}
        self.special = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)   # [V]
        self.special[[vocabulary[token] for token in SPECIAL]] = True
        self.is_continuation = torch.zeros_like(self.special)              # [V] goes on with a word
        if whole_word:
            self.is_continuation[[i for token, i in vocabulary.items() if token.startswith("##")]] = True
        self.ordinary = (~self.special).nonzero().squeeze(1)         # ids of random tokens

    def choose(self, ids, generator=None):
        """[N] ids → [N] bool: 15 % of the tokens, at least one, and never a special token. Each
        word draws a number, the lowest win; without whole_word each token is a word of its own."""
        word = (~self.is_continuation[ids]).cumsum(0) - 1                      # [N] 0, 1, 1, 2, …
        draw = torch.rand(len(ids), dtype=torch.float64, generator=generator)[word]
        draw[self.special[ids]] = 2.0                                    # above all others
        count = max(1, round(MASK_PROB * int((draw < 2.0).sum())))
        return (draw <= draw.sort().values[count - 1]) & (draw < 2.0)    # words whole

    def replace(self, ids, chosen, generator=None):
        """[N] ids → [N] ids, of which the chosen are hidden 80 : 10 : 10."""
        draw = torch.rand(len(ids), generator=generator)
        other = self.ordinary[torch.randint(len(self.ordinary), ids.shape, generator=generator)]
        instead = torch.where(draw < MASKED, self.mask_id,
                              torch.where(draw < MASKED + RANDOM, other, ids))
        return torch.where(chosen, instead, ids)

    def __call__(self, ids, generator=None):
        """→ ids [N] with some hidden, and which [N] were chosen."""
        chosen = self.choose(ids, generator)
        return self.replace(ids, chosen, generator), chosen


class MaskedLMHead(nn.Module):
    """z = E·LayerNorm(GELU(Wh + b)) + c.  E [V, H] are the word embeddings themselves (tied): the
    head compares what it expects with every word's own vector. Its parameters have the names they
    have in a checkpoint, after `cls.predictions.`"""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.transform = nn.ModuleDict({
            "dense": nn.Linear(width, width),
            "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
        })
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = ACTIVATIONS[config.hidden_act]
        nn.init.normal_(self.transform["dense"].weight, std=config.initializer_range)
        nn.init.zeros_(self.transform["dense"].bias)

    def forward(self, hidden, word_embeddings):
        """hidden [M, H], word_embeddings [V, H] → logits [M, V]"""
        expected = self.transform["LayerNorm"](self.activation(self.transform["dense"](hidden)))
        return F.linear(expected, word_embeddings, self.bias)


class MaskedLM(nn.Module):
    """The encoder and the head that guesses hidden tokens; with a teacher also a Student."""

    def __init__(self, bert, teacher_width=None):
        super().__init__()
        self.bert, self.head = bert, MaskedLMHead(bert.config)
        self.student = DistillationHead(bert.config.hidden_size, teacher_width) if teacher_width else None

    def forward(self, ids, types, layout, output_rows, every_row=False):
        """ids, types [N] → logits [M, V] of the rows that `read` (a selection of `layout`) names,
        and the last hidden states: those M rows, [M, H], or with every_row all of them, [N, H].
        Rows that no one reads are not computed in the last layer."""
        hidden, _ = self.bert.embed(layout.pad(ids), layout, layout.pad(types))          # [N, H]
        hidden = self.bert.encode(hidden, layout, output_rows=None if every_row else output_rows)
        guessing = hidden.index_select(0, output_rows.rows) if every_row else hidden            # [M, H]
        return self.head(guessing, self.bert.word_embeddings.weight), hidden


class Batch(NamedTuple):
    """lines [B] are the lines' numbers; ids and types [N] their tokens, some hidden; layout, how
    these lie; read, the selection of the M chosen ones; labels [M], what stood there."""

    lines: torch.Tensor
    ids: torch.Tensor
    types: torch.Tensor
    layout: Layout
    output_rows: Layout
    labels: torch.Tensor

    def to(self, device):
        """All but the lines' numbers on another device."""
        if device.type == "cpu":
            return self
        return Batch(self.lines, *(part.pin_memory().to(device, non_blocking=True)
                                   for part in self[1:]))


def masked_batch(text, lines, masking, generator=None):
    """[B] line numbers → their Batch, newly masked."""
    ids, types, layout = text.collate(lines)
    hidden_ids, chosen = masking(ids, generator)
    output_rows = layout.select(layout.pad(chosen))
    return Batch(lines, hidden_ids, types, layout, output_rows, ids[chosen])
