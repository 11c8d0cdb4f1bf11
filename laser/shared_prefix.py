"""Many edited models in one pass over the data: what they have in common is computed once.

A stack of interventions changes nothing below its lowest one, so all stacks share the embeddings
and the layers up to there. Stacks are therefore laid out as a tree: it branches where the next
matrix differs, and every branch runs once.

    embed ─ layer 0 ─ 1 ─ 2 ─┬─ 3 ─┬─ 4 ─ 5            the model itself
                             │     └─ 4* ─ 5           4:fc_in:0.3
                             ├─ 3* ─ 4 ─ 5             3:fc_out:0.1
                             └─ 3* ─ 4 ─ 5             3:fc_out:0.5

A layer may branch in three places: at its attention, at fc_in and at fc_out; a branch at fc_out
starts from the activations of fc_in. The tree is walked in depth, one batch of sentences at a time,
so no more states are held than a path has.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from bert import UserError
from bert.model import BertLayer
from laser.edit import reduced_weight, with_weight
from laser.interventions import MATRICES, get_linear
from laser.reduce import Decomposition, rank_of

ATTENTION = tuple(name for name, path in MATRICES.items() if path.startswith("attention."))


class Ranks:
    """W_k x = (UΣ)[:, :k] (Vᵀx)[:k] for every k of one matrix. Vᵀx is the same for all of them, so
    it is kept for as long as the same rows come in."""

    def __init__(self, weight):
        self.parts = Decomposition(weight)
        self.rows = self.projected = None

    def product(self, rows, rank, bias):
        if rows is not self.rows:
            self.rows, self.projected = rows, F.linear(rows, self.parts.right)          # [N, r]
        return F.linear(self.projected[:, :rank], self.parts.left[:, :rank], bias)      # [N, out]


class TruncatedLinear(nn.Module):
    """The Projection at one rank, without a matrix of its own."""

    def __init__(self, ranks, rank, bias):
        super().__init__()
        self.ranks, self.rank, self.bias = ranks, rank, bias

    def forward(self, rows, layout=None):
        return self.ranks.product(rows, self.rank, self.bias)


class SharedPrefixEvaluator:
    """Outputs of a multitask model under many stacks of interventions. Every matrix is decomposed
    when it is first needed, once."""

    def __init__(self, model):
        other = next((layer for layer in model.bert.layers if type(layer) is not BertLayer), None)
        if other is not None:
            raise UserError(f"a layer of this run is a {type(other).__name__}, which cannot be run "
                            f"in halves; take the run it was made of")
        self.model, self.bert = model.eval(), model.bert
        self.ranks, self.modules = {}, {}                    # by place; by intervention

    def ranks_of(self, place):
        if place not in self.ranks:
            self.ranks[place] = Ranks(get_linear(self.bert, *place)[2].weight)
        return self.ranks[place]

    def module(self, intervention):
        """What takes the Projection's place."""
        if intervention not in self.modules:
            *_, old = get_linear(self.bert, *intervention.place)
            if intervention.keep == 1:
                new = old
            elif intervention.variant == "svd":
                rank = rank_of(intervention.keep, old.weight.shape)
                new = TruncatedLinear(self.ranks_of(intervention.place), rank, old.bias)
            else:
                new = with_weight(old, reduced_weight(old, intervention))
            self.modules[intervention] = new
        return self.modules[intervention]

    @torch.inference_mode()
    def outputs(self, task, batch, stacks):
        """→ [stacks, B, outputs]; a stack is a tuple of interventions, () is the model itself."""
        for intervention in {i for stack in stacks for i in stack}:
            self.module(intervention)                        # an unknown place is an error here
        batch = self.model.with_adapter(task, batch)
        hidden, layout = self.bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
        output_rows, found = self.model.pooled_rows(batch), [None] * len(stacks)
        for numbers, last in self.walk(0, hidden, layout, output_rows, list(enumerate(stacks))):
            answer = self.model.apply_head(task, self.model.pool(self.bert, last, layout))
            for number in numbers:
                found[number] = answer
        return torch.stack(found)

    def walk(self, number, hidden, layout, output_rows, stacks):
        """Run the layers from `number` on; `stacks` [(its number, stack)] agree on all below.
        Yields (numbers of stacks that are alike, their last hidden state)."""
        if number == len(self.bert.layers):
            yield [n for n, _ in stacks], hidden
            return
        layer, rows = self.bert.layers[number], None
        if number == len(self.bert.layers) - 1:
            rows = output_rows
        ffn_layout = layout if rows is None else rows
        for edits, those in branches(stacks, number, ATTENTION):
            with self.edited(edits):
                mixed = layer.attention_block(hidden, layout, output_rows=rows)
            for edits, these in branches(those, number, ("fc_in",)):
                with self.edited(edits):
                    inner = layer.ffn.activate(mixed, ffn_layout)
                for edits, alike in branches(these, number, ("fc_out",)):
                    with self.edited(edits):
                        output = layer.ffn.project(inner, ffn_layout)
                        after = layer.add_and_norm(mixed, output, ffn_layout)
                    yield from self.walk(number + 1, after, layout, output_rows, alike)

    @contextmanager
    def edited(self, interventions):
        places = [get_linear(self.bert, *i.place) for i in interventions]
        for (parent, name, _), intervention in zip(places, interventions):
            setattr(parent, name, self.modules[intervention])
        try:
            yield
        finally:
            for parent, name, old in places:
                setattr(parent, name, old)


def branches(stacks, layer, matrices):
    """Group [(number, stack)] by what the stacks do to these matrices of a layer."""
    groups = {}
    for number, stack in stacks:
        edits = tuple(sorted(i for i in stack if i.layer == layer and i.matrix in matrices))
        groups.setdefault(edits, []).append((number, stack))
    return groups.items()
