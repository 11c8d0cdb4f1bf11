"""What an attack maximizes: the classifier's error, similarity to the original, fluency.

    score = -[Z_y - max_{j≠y} Z_j + κ]₊ + λ·Σᵢ idfᵢ·maxⱼ cos(hᵢ, h'ⱼ) / Σᵢ idfᵢ + μ·Σᵢ Pᵢ·log p(·|…)

h and h' are the hidden states of the original and of the attacked text, p is of a masked language
model. A model that sees a word finds it likely, so every sixth position is masked, others in each
step; log p is read there only. One pass of that model gives similarity and fluency.
"""

import torch
import torch.nn.functional as F

ROTATION = 6                                                 # one position of so many is masked


class Victim:
    """A MultitaskModel's classifier of one task, with frozen weights."""

    def __init__(self, model, task, autocast):
        self.model, self.task, self.autocast = model.eval().requires_grad_(False), task, autocast
        self.bert = model.encoder(task)
        self.embeddings = self.bert.word_embeddings.weight

    def __call__(self, batch, embeds):
        """embeds [S, T, H] → logits [b, classes], and the hidden states half way up [N, H]."""
        states = []
        middle = self.bert.layers[len(self.bert.layers) // 2]
        hook = middle.register_forward_pre_hook(lambda layer, inputs: states.append(inputs[0]))
        try:
            with self.autocast():
                outputs = self.model(self.task, batch, inputs_embeds=embeds)
        finally:
            hook.remove()
        if outputs.size(1) == 1:                             # a single logit: yes or no
            outputs = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
        return outputs, states[0].float()


def margin(logits, labels):
    """Z_y - max_{j≠y} Z_j [b]: below 0 the classifier errs."""
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return right - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


class Objective:
    """`problem` is the whole batch. lm: a MaskedLM with the victim's vocabulary, or None: then the
    victim's own states give the similarity and there is no fluency; has_head: it has an MLM head.
    idf [V]. `passes` [b, 2] counts the forward and backward passes of each example."""

    def __init__(self, victim, problem, idf, similarity, fluency, kappa=5.0, lm=None,
                 has_head=False, mask_id=None):
        self.victim, self.idf, self.kappa, self.lm = victim, idf, kappa, lm
        self.similarity_weight, self.fluency_weight = similarity, fluency if has_head else 0.0
        self.mask_id = mask_id
        self.whole, self.references = problem, {}
        self.passes = torch.zeros(len(problem.labels), 2, dtype=torch.long,
                                  device=problem.labels.device)

    def margins(self, problem, probabilities):
        """→ the margins [b], and the victim's states [N, H]"""
        logits, states = self.victim(problem.batch, problem.embed(self.victim.embeddings,
                                                                  probabilities))
        self.passes[problem.numbers, 0] += 1
        return margin(logits, problem.labels), states

    @torch.no_grad()
    def hard_margins(self, problem, chosen):
        """The margins [b] of the texts with these candidates [M]."""
        return self.margins(problem, problem.one_hot(chosen))[0]

    def __call__(self, problem, probabilities, step=0):
        """probabilities [M, K] → score [b], margin [b]"""
        margins, states = self.margins(problem, probabilities)
        score = -F.relu(margins + self.kappa)
        if not self.similarity_weight:
            return score, margins
        offset = step % ROTATION if self.fluency_weight else None
        if self.lm is None:
            grid = problem.batch.layout.pad(states)
        else:
            grid, masked = self.lm_states(problem, probabilities, offset)
            self.passes[problem.numbers, 0] += 1
        score = score + self.similarity_weight * self.similarity(problem, grid, offset)
        if self.fluency_weight:
            words = masked[problem.row, problem.column]
            hidden = grid[problem.row[words], problem.column[words]]
            vectors = self.lm.bert.word_embeddings.weight
            log_p = self.lm.head(hidden, vectors).float().log_softmax(dim=1)           # [m, V]
            likely = (probabilities[words] * log_p.gather(1, problem.candidates[words])).sum(dim=1)
            values = torch.zeros_like(probabilities[:, 0]).index_put((words,), ROTATION * likely)
            score = score + self.fluency_weight * problem.total(values)
        return score, margins

    def gradient(self, problem, probabilities, step=0):
        """→ score [b], margin [b], ∇_P of the score [M, K]"""
        probabilities = probabilities.detach().requires_grad_()
        with torch.enable_grad():
            score, margins = self(problem, probabilities, step)
            gradient, = torch.autograd.grad(score.sum(), probabilities)
        self.passes[problem.numbers, 1] += 1
        return score.detach(), margins.detach(), gradient

    def lm_states(self, problem, probabilities, offset):
        """→ the language model's hidden states [S, T, H], and where [MASK] stood [S, T]."""
        layout, vectors = problem.batch.layout, self.lm.bert.word_embeddings.weight
        embeds = problem.embed(vectors, probabilities)
        masked = torch.zeros_like(layout.mask)
        if offset is not None:
            inside = problem.column % ROTATION == offset
            masked[problem.row[inside], problem.column[inside]] = True
            embeds = torch.where(masked[..., None], vectors[self.mask_id], embeds)
        with self.victim.autocast():
            hidden, _ = self.lm.bert.embed(None, layout, problem.batch.token_type_ids, embeds)
            hidden = self.lm.bert.encode(hidden, layout)
        return layout.pad(hidden.float()), masked

    @torch.no_grad()
    def reference(self, offset):
        """The unit states [S, T, H] of the whole batch as it was, and where [MASK] stood."""
        if offset not in self.references:
            whole = self.whole
            original = whole.one_hot(torch.zeros_like(whole.positions))
            if self.lm is None:
                states = whole.batch.layout.pad(self.margins(whole, original)[1])
                masked = torch.zeros_like(whole.batch.layout.mask)
            else:
                states, masked = self.lm_states(whole, original, offset)
                self.passes[:, 0] += 1
            self.references[offset] = F.normalize(states, dim=-1), masked
        return self.references[offset]

    def similarity(self, problem, grid, offset):
        """→ [b]: the idf-weighted mean over the original's words of the largest cosine with a word
        of the attacked text (recall of BERTScore, Zhang et al. 2020)."""
        tokens = grid.size(1)
        reference, masked = (part[problem.sequences, :tokens] for part in self.reference(offset))
        cosines = reference @ F.normalize(grid, dim=-1).transpose(1, 2)  # [S, T original, T new]
        cosines = cosines.masked_fill(~problem.batch.layout.mask[:, None], -1.0)
        original = self.whole.batch.input_ids[problem.sequences, :tokens]
        weight = self.idf[original] * problem.batch.layout.mask * ~masked
        mean = (weight * cosines.amax(dim=2)).sum(1) / weight.sum(1).clamp_min(1e-9)     # [S]
        return mean.unflatten(0, (-1, len(problem.labels))).mean(dim=0)
