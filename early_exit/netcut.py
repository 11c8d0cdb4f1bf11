"""NetCut (Struski et al. 2020, arXiv 2004.08172): find the depth of a classifier by gradient.

A head stands after every layer k = 1 … n. The weights α of the heads are trained with everything
else; the mixture of log-probabilities is not normalized again:

    log p̂(y) = Σ_k α_k log p_k(y)        α = softmax(w)        L = -log p̂(y) + β Σ_k k·α_k

L is linear in α: L = Σ_k α_k (CE_k + β·k). So its minimum is one head alone, the one of the
smallest CE_k + β·k, and α ends there.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from early_exit.exits import log_probabilities


def netcut_loss(log_probs, labels, alpha, beta):
    """log p_k [n, B, C] of the heads, labels [B], alpha [n] → scalar. The first layer costs β, the
    last n·β."""
    mixture = (alpha[:, None, None] * log_probs).sum(dim=0)                  # [B, C]
    depths = torch.arange(1, len(alpha) + 1, device=alpha.device)
    return F.nll_loss(mixture, labels.long()) + beta * (depths * alpha).sum()


class DepthHeads(nn.Module):
    """The heads of all layers for each task of a MultitaskModel, which start as copies of its own,
    and the one w for all tasks."""

    def __init__(self, model):
        super().__init__()
        layers = len(model.bert.layers)
        self.heads = nn.ModuleDict({
            task: nn.ModuleList(copy.deepcopy(head) for _ in range(layers))
            for task, head in model.heads.items()})
        self.w = nn.Parameter(torch.zeros(layers, device=model.bert.word_embeddings.weight.device))

    @property
    def alpha(self):
        """softmax(w) [n]"""
        return self.w.softmax(dim=0)

    def forward(self, model, task, batch):
        """→ log p_k [n, B, C]: every layer's output is pooled as the last one's."""
        bert, rows, states = model.bert, model.pooled_rows(task, batch), []
        hidden, layout = bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
        bert.encode(hidden, layout, output_rows=rows, states=states)
        if rows is not None:                                 # of the last layer they are already
            states[:-1] = [state.index_select(0, rows.rows) for state in states[:-1]]
        return torch.stack([
            log_probabilities(model.apply_head(task, model.pool(task, state, layout), head))
            for state, head in zip(states, self.heads[task])])
