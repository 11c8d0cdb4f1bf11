"""Mask some of a batch's tokens, which the model learns to predict; scores on held-out lines.

    the cat sat on the mat  →  the [MASK] sat on the mat  →  which token was at position 2?

Devlin et al. 2019 (arXiv 1810.04805), appendix A.1; whole-word masking is from their repository's
later models. Left out: next sentence prediction, which did not help (RoBERTa, arXiv 1907.11692).
B = lines of the batch, N = their tokens, M = masked ones, V = vocabulary."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bert.errors import UserError, some
from bert.layout import Layout
from bert.tokenizer import SPECIAL
from bert.transfer import to_device
from pretraining.corpus import EVAL_TOKENS, split_by_tokens
from pretraining.distillation import sentence_vectors

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
        """[N] ids → [N] bool: which tokens are chosen, never a special one. Of n ordinary tokens
        max(1, round(0.15·n)) are chosen, none if n is 0. Each word draws a number, and the words
        with the lowest are chosen until there are so many tokens or more. Without whole_word every
        token is its own word; a piece (##b) after a special token or none begins a word."""
        word = (~self.is_continuation[ids]).cumsum(0) - 1                # [N] 0, 1, 1, 2, …
        draw = torch.rand(len(ids), dtype=torch.float64, generator=generator)[word]
        ordinary = ~self.special[ids]
        draw = draw.where(ordinary, torch.inf)
        count = max(1, round(MASK_PROB * int(ordinary.sum())))
        return (draw <= draw.sort().values[count - 1]) & ordinary        # all pieces of a word

    def __call__(self, ids, generator=None):
        """[N] ids → (new ids [N], chosen [N] bool). Of the chosen ones 80 % become [MASK], 10 % a
        random ordinary token, and 10 % stay. The given ids stay as they are."""
        chosen = self.choose(ids, generator)
        draw = torch.rand(len(ids), generator=generator)
        choice = torch.randint(len(self.ordinary_ids), ids.shape, generator=generator)
        replacement = torch.where(draw < MASKED, self.mask_id, torch.where(
            draw < MASKED + RANDOM, self.ordinary_ids[choice], ids))
        return torch.where(chosen, replacement, ids), chosen


class Batch(NamedTuple):
    line_ids: torch.Tensor           # [B] line numbers, always on the CPU
    ids: torch.Tensor                # [N] token ids, some masked
    types: torch.Tensor              # [N] token types
    layout: Layout                   # of the N rows
    output_rows: Layout              # of the M chosen rows (Layout.select)
    labels: torch.Tensor             # [M] token ids before masking

    def to(self, device):
        """The same on `device`, by one copy that waits for nothing."""
        return Batch(self.line_ids, *to_device(self[1:], device))


def masked_batch(corpus, line_ids, masking, generator=None):
    """[B] line numbers → their Batch, newly masked."""
    ids, types, layout = corpus.collate(line_ids)
    masked_ids, chosen = masking(ids, generator)
    return Batch(line_ids, masked_ids, types, layout, layout.select(layout.pad(chosen)),
                 ids[chosen])


class HeldOut:
    """Held-out lines `line_ids` [n] of a corpus, masked once, so that every evaluation predicts the
    same tokens. The baseline always predicts the most common token of the lines `training` [m]."""

    def __init__(self, corpus, line_ids, training, masking):
        generator = torch.Generator().manual_seed(0)
        order = line_ids[corpus.length[line_ids].argsort(stable=True)]
        self.corpus = corpus
        self.batches = [masked_batch(corpus, batch, masking, generator)
                        for batch in split_by_tokens(order, corpus.length, EVAL_TOKENS)]
        labels = torch.cat([batch.labels for batch in self.batches])
        self.tokens = len(labels)
        counts = torch.bincount(corpus.collate(training)[0], minlength=len(masking.special))
        commonest = counts.masked_fill(masking.special, 0).argmax()
        self.baseline = float((labels == commonest).double().mean())

    @torch.inference_mode()
    def scores(self, model, targets, device, autocast):
        """→ {name: value}: mean loss and accuracy of a MaskedLM at the masked tokens; with
        TeacherTargets also its agreement with the teacher."""
        model.eval()
        loss = correct = 0.0
        for batch in self.batches:
            batch = batch.to(device)
            with autocast():
                logits, _ = model(batch)
            total = float(F.cross_entropy(logits.float(), batch.labels, reduction="sum"))
            if not math.isfinite(total):
                lines = some([f"line {number + 1}" for number in batch.line_ids.tolist()])
                raise UserError(f"the model's outputs for {lines} are not finite (NaN or infinite),"
                                f" so its weights are of no use; train again with a lower --lr")
            loss += total
            correct += int((logits.argmax(dim=1) == batch.labels).sum())
        scores = {"masked_lm_loss": loss / self.tokens, "masked_accuracy": correct / self.tokens,
                  "commonest_token_accuracy": self.baseline}
        if targets is not None:
            scores |= self._teacher_agreement(model, targets, device, autocast)
        return scores

    def _teacher_agreement(self, model, targets, device, autocast):
        """On text without masks: the mean cosine of predicted and teacher's vectors over lines of
        one text; over pairs the correlation of predicted and teacher's similarity."""
        rows = []
        for batch in self.batches:
            batch = batch._replace(ids=self.corpus.collate(batch.line_ids)[0]).to(device)
            with autocast():
                _, hidden = model(batch, all_rows=True)
            vectors = sentence_vectors(hidden.float(), batch.layout)
            vectors, similarity = model.distillation_head(vectors)
            rows.append((*vectors, similarity, *targets.select(batch.line_ids, device)))
        mean, cls, similarity, vectors, target_similarity = map(torch.cat, zip(*rows))
        pair = ~target_similarity.isnan()
        cosines = torch.stack([F.cosine_similarity(v, vectors)[~pair] for v in (mean, cls)])
        names = "teacher_cosine_mean", "teacher_cosine_cls"
        scores = dict(zip(names, cosines.mean(dim=1).tolist()))
        if pair.sum() > 1:
            similarities = torch.stack([similarity[pair], target_similarity[pair]])
            scores["teacher_pair_correlation"] = float(torch.corrcoef(similarities)[0, 1])
        return scores
