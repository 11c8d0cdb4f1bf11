"""Matrices in stored form: made from a model, written beside its other weights, decoded when the
run is opened.

In a saved run model/model.safetensors lacks these matrices, and model/compressed.safetensors holds
their stored tensors, named {matrix}.{layer}.{tensor}, or {matrix}.{tensor} where one decoder serves
all layers.
"""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from bert import UserError
from bert.files import read_tensors
from compression.autoencoder import TRAINED
from compression.codecs import CLOSED_FORM, FLOAT, bytes_of
from laser.edit import with_weight
from laser.interventions import MATRICES, get_linear, is_empty, parent_module

CODECS = CLOSED_FORM | TRAINED
EMBEDDINGS = "embeddings"
FILE = Path("model", "compressed.safetensors")               # in a run's folder


def parent_module_of(bert, place):
    """→ the module that holds this matrix's module, and its attribute's name."""
    return (bert, "word_embeddings") if place[1] == EMBEDDINGS else parent_module(bert, *place)


def get_weight(bert, place):
    if place[1] == EMBEDDINGS:
        return bert.word_embeddings.weight
    return get_linear(bert, *place)[2].weight


def matrix_places(bert, matrices):
    """All (layer, matrix) of these matrices that are not empty."""
    return [(layer, matrix) for matrix in matrices
            for layer in range(1 if matrix == EMBEDDINGS else len(bert.layers))
            if matrix == EMBEDDINGS or not is_empty(bert, layer, matrix)]


class Compressed:
    """`stored` {name: tensor} and how to read it: `shapes` {(layer, matrix): [n, m]}."""

    def __init__(self, method, ratio, shapes, stored):
        self.method, self.ratio, self.shapes, self.stored = method, ratio, shapes, stored

    @classmethod
    def fit(cls, bert, matrices, method, ratio, importance=None):
        """`importance` {(layer, matrix): [n]}, of rows, is for the method `weighted`."""
        weights = {p: get_weight(bert, p).detach().cpu() for p in matrix_places(bert, matrices)}
        stored, importance = {}, importance or {}
        for prefix, group in groups({p: w.shape for p, w in weights.items()}, method):
            whole = torch.cat([weights[p] for p in group])
            rows = torch.cat([importance[p] for p in group]) if importance else None
            found = CODECS[method].fit(whole, whole.numel() * FLOAT / ratio, rows)
            assert bytes_of(found) <= whole.numel() * FLOAT / ratio
            stored |= {f"{prefix}.{name}": tensor for name, tensor in found.items()}
        return cls(method, ratio, {p: w.shape for p, w in weights.items()}, stored)

    @property
    def bytes(self):
        return bytes_of(self.stored)

    def decode(self):
        """→ {(layer, matrix): [n, m]}"""
        weights = {}
        for prefix, group in groups(self.shapes, self.method):
            sizes = [self.shapes[p][0] for p in group]
            own = {name.removeprefix(prefix + "."): tensor.clone()       # aligned alike, whether
                   for name, tensor in self.stored.items()               # fitted or read: the
                   if name.startswith(prefix + ".")}                     # same bits come out
            whole = CODECS[self.method].decode(own, (sum(sizes), self.shapes[group[0]][1]))
            weights |= {p: part.clone() for p, part in zip(group, whole.split(sizes))}
        return weights


def groups(shapes, method):
    """{(layer, matrix): [n, m]} → (prefix of the stored names, places that are stored together):
    rows of one length m, in which unevenly pruned layers differ."""
    if not CODECS[method].shared:
        return [(f"{matrix}.{layer}", [(layer, matrix)]) for layer, matrix in shapes]
    kinds = dict.fromkeys((matrix, shape[1]) for (_, matrix), shape in shapes.items())
    alone = Counter(matrix for matrix, _ in kinds)
    return [(matrix if alone[matrix] == 1 else f"{matrix}.{m}",
             [p for p, shape in shapes.items() if (p[1], shape[1]) == (matrix, m)])
            for matrix, m in kinds]


class Placeholder(nn.Module):
    """Stands for a module whose weight is stored elsewhere; its bias is here."""

    def __init__(self, old):
        super().__init__()
        self.weight = old.weight.detach().to("meta")         # its shape: no parameter, not saved
        self.bias = getattr(old, "bias", None)


def take_out(bert, matrices):
    """Leave these matrices out of the model → {(layer, matrix): the module that was there}."""
    taken = {}
    for place in matrix_places(bert, matrices):
        parent, name = parent_module_of(bert, place)
        taken[place] = getattr(parent, name)
        setattr(parent, name, Placeholder(taken[place]))
    return taken


@contextmanager
def left_out(bert):
    """Within this context the matrices that bert.edits says are compressed are left out of the
    model, as in its files."""
    taken = take_out(bert, [matrix for edit in bert.edits if edit["method"] == "compression"
                            for matrix in edit["matrices"]])
    try:
        yield
    finally:
        for place, module in taken.items():
            parent, name = parent_module_of(bert, place)
            setattr(parent, name, module)


def rebuild(bert, edit):
    """Before a saved run's weights are loaded."""
    if edit["codec"] not in CODECS or set(edit["matrices"]) - {*MATRICES, EMBEDDINGS}:
        raise UserError(f"run.json: {edit} is of another version")
    take_out(bert, edit["matrices"])


def restore(bert, edit, folder):
    """After: decode the stored matrices and put them in."""
    spots = {p: parent_module_of(bert, p) for p in matrix_places(bert, edit["matrices"])}
    shapes = {p: getattr(parent, name).weight.shape for p, (parent, name) in spots.items()}
    path = Path(folder) / FILE
    try:
        decoded = Compressed(edit["codec"], edit["ratio"], shapes, read_tensors(path)).decode()
    except (KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not fit run.json ({error!r}); compress the run again"
                        ) from error
    for p, (parent, name) in spots.items():
        new = (nn.Embedding.from_pretrained(decoded[p], freeze=False) if p[1] == EMBEDDINGS
               else with_weight(getattr(parent, name), decoded[p]))
        setattr(parent, name, new)
