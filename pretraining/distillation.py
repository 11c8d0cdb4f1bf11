"""A teacher for a small BERT: a larger one, whose sentence vectors are to be met.

    goal = ask_teacher(tokenizer, bert, lines, cache, device)      # once, before training
    loss = teacher_loss(student, sentence_vectors(hidden, layout), goal.of(lines, device))

B = lines of a batch, N = their tokens, H = the student's hidden size, D = the teacher's.
"""

import hashlib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bert.files import read_metadata, read_tensors, write_tensors
from common.log import progress_bar
from pretraining.corpus import Corpus, split_by_tokens

READ_TOKENS = 8192                   # of a batch that is only read


def sentence_vectors(hidden, layout):
    """hidden [N, H] → the mean over each line's tokens [B, H], and its [CLS] [B, H]."""
    mean = layout.pad(hidden).sum(dim=1) / layout.mask.sum(dim=1, keepdim=True)
    return mean, hidden.index_select(0, layout.cls_rows().rows)


class DistillationHead(nn.Module):
    """Maps the student's two sentence vectors into the teacher's space, and a pair's [CLS] to how
    alike its texts are. Thrown away in the end."""

    def __init__(self, width, teacher_width):
        super().__init__()
        self.mean, self.cls = nn.Linear(width, teacher_width), nn.Linear(width, teacher_width)
        self.pair_similarity = nn.Linear(width, 1)

    def forward(self, vectors):
        """(mean, cls), each [B, H] → two guesses at the teacher's vectors, each [B, D], and one at
        its cosine of the two texts, [B]."""
        mean, cls = vectors
        return (self.mean(mean), self.cls(cls)), self.pair_similarity(cls).squeeze(1)


class TeacherTargets(NamedTuple):
    """What the teacher says of each line: the vector of its (first) text [lines, D] float16, and
    for a pair the cosine of its two texts [lines]; no number for a line that is no pair."""

    vectors: torch.Tensor
    pair_similarity: torch.Tensor

    def of(self, lines, device):
        """The goals of a batch, [B] line numbers → vectors [B, D], alike [B] in float32."""
        return TeacherTargets(*(part[lines].to(device).float() for part in self))


def cosines(vectors):
    """[B, H] → [B, B], the cosine of every line's vector with every other's."""
    unit = F.normalize(vectors, dim=1)
    return unit @ unit.T


def teacher_loss(student, vectors, goal):
    """mean (1 − cos(sᵢ, tᵢ))  +  mean (cos(vᵢ, vⱼ) − cos(tᵢ, tⱼ))²  +  mean (aₖ − cos(tₖ, t'ₖ))²

    tᵢ [D] is the teacher's vector of line i, vᵢ [H] the student's, sᵢ [D] its projection. The first
    term says where each line lies. The second compares the batch's lines with each other, without a
    projection, so it shapes the vectors that remain. Both for the mean and for [CLS], and for lines
    of one text. The third is for pairs: aₖ, read off the [CLS] of both texts in one sequence, says
    how alike the teacher finds them."""
    guesses, pair_similarity = student(vectors)
    pair = ~goal.pair_similarity.isnan()                                               # [B]
    loss = F.mse_loss(pair_similarity[pair], goal.pair_similarity[pair], reduction="sum") / max(1, int(pair.sum()))
    if pair.all():
        return loss
    targets = goal.vectors[~pair]
    for guess, vector in zip(guesses, vectors):
        place = 1 - F.cosine_similarity(guess[~pair], targets)
        loss = loss + (place.mean() + F.mse_loss(cosines(vector[~pair]), cosines(targets))) / 2
    return loss


def compute_targets(tokenizer, bert, lines, path, device):
    """The teacher's Goal for every line. Its vector of a text is the mean of its last hidden states
    over its own tokens. Computed once and kept in `path`, with a fingerprint of text and
    weights."""
    digest = hashlib.sha256("\n".join(lines).encode())
    for tensor in bert.state_dict().values():
        digest.update(tensor.contiguous().numpy())
    if path.is_file() and read_metadata(path).get("of") == digest.hexdigest():
        return TeacherTargets(**read_tensors(path))
    first, _, second = zip(*(line.partition("\t") for line in lines))
    texts = {text: number for number, text in enumerate(dict.fromkeys(first + second))}
    vectors = text_vectors(tokenizer, bert, list(texts), device)         # of each text once
    goal = TeacherTargets(vectors[[texts[text] for text in first]], torch.full((len(lines),), math.nan))
    pair = [number for number, text in enumerate(second) if text]
    other = vectors[[texts[second[number]] for number in pair]]
    goal.pair_similarity[pair] = F.cosine_similarity(goal.vectors[pair].float(), other.float())
    write_tensors(path, goal._asdict(), of=digest.hexdigest())
    return goal


def text_vectors(tokenizer, bert, texts, device):
    """[texts, D] float16"""
    text = Corpus(tokenizer, texts)
    vectors = torch.empty(len(texts), bert.config.hidden_size, dtype=torch.float16)
    bert.to(device)
    with torch.inference_mode(), progress_bar("teacher", len(texts), "text") as bar:
        longest_first = text.length.argsort(descending=True, stable=True)
        for batch in split_by_tokens(longest_first, text.length, READ_TOKENS):
            ids, _, layout = text.collate(batch)
            ids, layout = ids.to(device), layout.to(device)
            hidden = bert.encode(bert.embed(layout.pad(ids), layout)[0], layout)
            vectors[batch] = sentence_vectors(hidden, layout)[0].cpu().half()
            bar.update(len(batch))
    return vectors
