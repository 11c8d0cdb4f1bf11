"""Mask some of a batch's tokens, which the model learns to predict.

    the cat sat on the mat  →  the [MASK] sat on the mat  →  which token was at position 2?

Devlin et al. 2019 (arXiv 1810.04805), appendix A.1; whole-word masking is from their repository's
later models. Left out: next sentence prediction, which did not help (RoBERTa, arXiv 1907.11692).
B = lines of the batch, N = their tokens, M = masked ones, V = vocabulary."""

from typing import NamedTuple

import torch

from bert.layout import Layout
from bert.tokenizer import SPECIAL

MASK_PROB = 0.15                     # fraction of the tokens to predict
MASKED, RANDOM = 0.8, 0.1            # of these become [MASK], a random token; the others stay


class Masking:
    """Mask 15 % of the tokens, newly drawn at each call. Text in later use has no [MASK], so 10 %
    of these become a random token and 10 % stay: the model learns states for real tokens too."""

    def __init__(self, tokenizer, whole_word=False):
        self.mask_id = tokenizer.mask_token_id
        vocabulary = tokenizer.backend.get_vocab()                       # {token: id}
        self.special = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)       # [V]
        self.is_continuation = torch.zeros_like(self.special)            # [V] masked with its word
        for token, number in vocabulary.items():
            self.special[number] = token in SPECIAL
            self.is_continuation[number] = whole_word and token.startswith("##")
        self.ordinary_ids = (~self.special).nonzero().squeeze(1)

    def choose(self, ids, generator=None):
        """[N] ids → [N] bool: 15 % of the tokens, at least one, never a special token. Each word
        draws a number, the lowest are chosen; without whole_word every token is its own word."""
        word = (~self.is_continuation[ids]).cumsum(0) - 1                # [N] 0, 1, 1, 2, …
        draw = torch.rand(len(ids), dtype=torch.float64, generator=generator)[word]
        draw[self.special[ids]] = 2.0                                    # above all others
        count = max(1, round(MASK_PROB * int((draw < 2.0).sum())))
        return (draw <= draw.sort().values[count - 1]) & (draw < 2.0)    # all pieces of a word

    def __call__(self, ids, generator=None):
        """[N] ids → ids [N], the chosen ones masked 80 : 10 : 10, and which are chosen [N]."""
        chosen = self.choose(ids, generator)
        draw = torch.rand(len(ids), generator=generator)
        choice = torch.randint(len(self.ordinary_ids), ids.shape, generator=generator)
        replacement = torch.where(draw < MASKED, self.mask_id, torch.where(
            draw < MASKED + RANDOM, self.ordinary_ids[choice], ids))
        return torch.where(chosen, replacement, ids), chosen


class Batch(NamedTuple):
    """A masked batch."""
    line_ids: torch.Tensor           # [B] line numbers, always on the CPU
    ids: torch.Tensor                # [N] token ids, some masked
    types: torch.Tensor              # [N] token types
    layout: Layout                   # of the N rows
    output_rows: Layout              # of the M chosen rows (Layout.select)
    labels: torch.Tensor             # [M] token ids before masking

    def to(self, device):
        return Batch(self.line_ids, *(field.to(device, non_blocking=True) for field in self[1:]))


def masked_batch(corpus, line_ids, masking, generator=None):
    """[B] line numbers → their Batch, newly masked."""
    ids, types, layout = corpus.collate(line_ids)
    masked_ids, chosen = masking(ids, generator)
    rows = layout.select(layout.pad(chosen))
    return Batch(line_ids, masked_ids, types, layout, rows, ids[chosen])
