"""Outputs of many edited models in one pass over the data: shared computations run once.

A stack of interventions changes nothing below its lowest layer, so stacks share the embeddings and
all layers below their first difference. They form a tree, which branches at each difference:

    embed ─ layer 0 ─ 1 ─ 2 ─┬─ 3 ─┬─ 4 ─ 5            the model itself
                             │     └─ 4* ─ 5           4:fc_in:0.3
                             ├─ 3* ─ 4 ─ 5             3:fc_out:0.1
                             └─ 3* ─ 4 ─ 5             3:fc_out:0.5

A layer may branch at its attention, at fc_in and at fc_out. Depth-first traversal, one batch at a
time, keeps the hidden states of one path in memory."""

from functools import cache

import torch
from torch import nn

from bert import UserError
from bert.matrices import MATRICES, get_linear, module_name
from bert.model import BertLayer, FeedForward
from laser.interventions import reduced_linear, replace_modules
from laser.reduce import Decomposition, rank_of

ATTENTION = tuple(name for name, module in MATRICES.items() if module.startswith("attention."))


class TruncatedLinear(nn.Module):
    """Takes a PackedLinear's place with the Decomposition of its matrix, cut at a rank."""

    def __init__(self, decomposition, rank, bias):
        super().__init__()
        self.decomposition, self.rank, self.bias = decomposition, rank, bias

    def forward(self, rows, layout=None):
        return self.decomposition.product(rows, self.rank, self.bias)


class SharedPrefixEvaluator:
    """Evaluates a MultitaskModel under many stacks of interventions. UserError if a layer is not a
    plain BertLayer. `decomposition` of a target (layer, matrix) and `module` of an intervention
    are made once, when they are first needed."""

    def __init__(self, model):
        for _, layer, _ in model.bert.walk():
            part = layer.ffn if type(layer) is BertLayer else layer
            if type(part) is not FeedForward:
                raise UserError(f"a layer of this run is or has a {type(part).__name__}, which "
                                f"LASER cannot run in parts; take the run from which this one was "
                                f"made")
        self.model, self.bert = model.eval(), model.bert
        self.decomposition = cache(lambda target: Decomposition(self.linear(target).weight))
        self.module = cache(self.make_module)

    def linear(self, target):
        return get_linear(self.bert, *target)

    def make_module(self, intervention):
        """→ the module that takes the place of the intervention's PackedLinear"""
        linear = self.linear(intervention.target)
        if intervention.variant == "magnitude" or intervention.keep == 1:
            return reduced_linear(linear, intervention)
        return TruncatedLinear(self.decomposition(intervention.target),
                               rank_of(intervention.keep, linear.weight.shape), linear.bias)

    @torch.inference_mode()
    def outputs(self, task, batch, stacks):
        """→ [stacks, B, outputs]. A stack is a tuple of interventions; () is the unedited model."""
        batch = self.model.with_adapter(task, batch)
        hidden, layout = self.bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
        layers = list(self.bert.walk(self.model.pooled_rows(task, batch)))
        found = [None] * len(stacks)
        for places, last in self.run(layers, hidden, layout, list(enumerate(stacks))):
            outputs = self.model.apply_head(task, self.model.pool(task, last, layout))
            for place in places:
                found[place] = outputs
        return torch.stack(found)

    def run(self, layers, hidden, layout, stacks):
        """Run `layers`, the rest of bert.walk, on hidden [N, H] under `stacks` [(place, stack)],
        which agree on all layers before. Yields ([place of each stack in the group], last hidden
        states) for every group of stacks that agree on all layers."""
        if not layers:
            yield [place for place, _ in stacks], hidden
            return
        (number, layer, rows), *rest = layers
        ffn_layout = layout if rows is None else rows
        for on_attention, same_attention in group_by_edits(stacks, number, ATTENTION):
            with self.edited(on_attention):
                attended = layer.attention_block(hidden, layout, output_rows=rows)
            for on_fc_in, same_fc_in in group_by_edits(same_attention, number, ("fc_in",)):
                with self.edited(on_fc_in):
                    activations = layer.ffn.activate(attended, ffn_layout)
                for on_fc_out, same_layer in group_by_edits(same_fc_in, number, ("fc_out",)):
                    with self.edited(on_fc_out):
                        output = layer.ffn.project(activations, ffn_layout)
                        after = layer.add_and_norm(attended, output, ffn_layout)
                    yield from self.run(rest, after, layout, same_layer)

    def edited(self, interventions):
        """→ a context in which the modules of these interventions are in the model"""
        return replace_modules(self.bert, {module_name(self.bert, *i.target): self.module(i)
                                           for i in interventions})


def group_by_edits(stacks, layer, matrices):
    """[(place, stack)] → [(interventions on these matrices of a layer, members)]"""
    groups = {}
    for place, stack in stacks:
        edits = tuple(sorted(i for i in stack if i.layer == layer and i.matrix in matrices))
        groups.setdefault(edits, []).append((place, stack))
    return groups.items()
