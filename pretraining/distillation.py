"""Learning from a teacher: the model learns to match the sentence vectors of a larger BERT.

    targets = compute_targets(tokenizer, bert, lines, device)             # once, before training
    loss = teacher_loss(head, sentence_vectors(hidden, layout), targets.select(line_ids, device))

B = lines of a batch, N = their tokens, H = the model's hidden size, D = the teacher's."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common.log import progress_bar
from pretraining.corpus import EVAL_TOKENS, Corpus, split_by_tokens


def sentence_vectors(hidden, layout):
    """hidden [N, H] → the mean over each line's tokens [B, H], and its [CLS] [B, H]."""
    mean = layout.pad(hidden).sum(dim=1) / layout.mask.sum(dim=1, keepdim=True)
    return mean, hidden.index_select(0, layout.first_rows())


class DistillationHead(nn.Module):
    """Linear maps from the model's two sentence vectors to the teacher's vector, and from a pair's
    [CLS] to the similarity of its texts. The saved checkpoint lacks them."""

    def __init__(self, width, teacher_width):
        super().__init__()
        self.mean, self.cls = nn.Linear(width, teacher_width), nn.Linear(width, teacher_width)
        self.pair_similarity = nn.Linear(width, 1)

    def forward(self, vectors):
        """(mean, cls), each [B, H] → (two predictions of the vector [B, D], similarity [B])."""
        mean, cls = vectors
        return (self.mean(mean), self.cls(cls)), self.pair_similarity(cls).squeeze(1)


class TeacherTargets(NamedTuple):
    vectors: torch.Tensor            # [lines, D] float16, of a line's (first) text
    pair_similarity: torch.Tensor    # [lines] cosine of a pair's two texts; NaN if no pair

    def select(self, line_ids, device):
        """[B] line numbers → the targets of a batch, in float32 on `device`."""
        return TeacherTargets(*(part[line_ids].to(device).float() for part in self))


def pairwise_cosines(vectors):
    """[B, H] → [B, B], the cosine of each two vectors."""
    unit = F.normalize(vectors, dim=1)
    return unit @ unit.T


def teacher_loss(head, vectors, targets):
    """mean (1 − cos(pᵢ, tᵢ))  +  mean (cos(vᵢ, vⱼ) − cos(tᵢ, tⱼ))²  +  mean (aₖ − cos(tₖ, t'ₖ))²

    Lines i, j of one text; tᵢ [D] is the teacher's vector, vᵢ [H] the model's, pᵢ [D] the head's
    prediction. The first term fits each line's vector. The second compares lines without the head,
    so it trains the vectors that remain when the head is discarded. Both are averaged over mean
    and [CLS]. Pairs k: aₖ is the similarity predicted from [CLS] of both texts in one sequence."""
    predictions, similarity = head(vectors)
    pair = ~targets.pair_similarity.isnan()                              # [B]
    error = F.mse_loss(similarity[pair], targets.pair_similarity[pair], reduction="sum")
    loss = error / max(1, int(pair.sum()))
    if pair.all():
        return loss
    teacher = targets.vectors[~pair]
    for prediction, vector in zip(predictions, vectors):
        distance = 1 - F.cosine_similarity(prediction[~pair], teacher)
        loss = loss + (distance.mean() + F.mse_loss(pairwise_cosines(vector[~pair]),
                                                    pairwise_cosines(teacher))) / 2
    return loss


@torch.no_grad()
def compute_targets(tokenizer, bert, lines, device):
    """→ TeacherTargets of the lines. A text's vector is the mean of its last hidden states."""
    first, _, second = zip(*(line.partition("\t") for line in lines))
    index = {text: number for number, text in enumerate(dict.fromkeys(first + second))}
    corpus, bert = Corpus(tokenizer, list(index)), bert.to(device)       # each text once
    vectors = torch.empty(len(index), bert.config.hidden_size, dtype=torch.float16)
    longest_first = corpus.length.argsort(descending=True, stable=True)
    with progress_bar("teacher", len(index), "text") as bar:
        for batch in split_by_tokens(longest_first, corpus.length, EVAL_TOKENS):
            ids, _, layout = corpus.collate(batch)
            ids, layout = ids.to(device), layout.to(device)
            hidden = bert.encode(bert.embed(layout.pad(ids), layout)[0], layout)
            vectors[batch] = sentence_vectors(hidden, layout)[0].cpu().half()
            bar.update(len(batch))
    targets = TeacherTargets(vectors[[index[text] for text in first]],
                             torch.full((len(lines),), math.nan))
    pair = [number for number, text in enumerate(second) if text]
    a, b = targets.vectors[pair], vectors[[index[second[number]] for number in pair]]
    targets.pair_similarity[pair] = F.cosine_similarity(a.float(), b.float())
    return targets
