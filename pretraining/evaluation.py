"""Scores on the held-out lines, which are never trained on."""

import torch
import torch.nn.functional as F

from pretraining.corpus import EVAL_TOKENS, split_by_tokens
from pretraining.distillation import sentence_vectors
from pretraining.masking import masked_batch


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
        TeacherTargets also its agreement with the teacher. autocast() returns a context manager."""
        model.eval()
        loss = correct = 0.0
        for batch in self.batches:
            batch = batch.to(device)
            with autocast():
                logits, _ = model(batch)
            loss += float(F.cross_entropy(logits.float(), batch.labels, reduction="sum"))
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
