"""The matrices of a model in stored form. In a saved run model/compressed.safetensors holds the
tensors: {matrix}.{layer}.{tensor}, or for a decoder of all layers' rows [m] {matrix}.{m}.{tensor}.
"""

from dataclasses import dataclass

import torch

from bert.matrices import get_linear, is_empty
from compression.autoencoder import TRAINED
from compression.codecs import CLOSED_FORM, FLOAT, bytes_of

CODECS = CLOSED_FORM | TRAINED
EMBEDDINGS = "embeddings"                # a matrix besides bert.matrices.MATRICES


def find_modules(bert, matrices):
    """{(layer, matrix): its module} of all layers; matrices that pruning has emptied are left out.
    UserError if another module has replaced one."""
    embeddings = {(0, EMBEDDINGS): bert.word_embeddings} if EMBEDDINGS in matrices else {}
    return embeddings | {
        (layer, matrix): get_linear(bert, layer, matrix) for matrix in matrices
        if matrix != EMBEDDINGS for layer in range(len(bert.layers))
        if not is_empty(bert, layer, matrix)}


@dataclass
class Compressed:
    """Matrices stored by one codec: shapes {(layer, matrix): [n, m]}, stored {name: tensor}."""

    codec: str
    ratio: float
    shapes: dict
    stored: dict

    @classmethod
    def fit(cls, bert, matrices, codec, ratio, importance=None):
        """Store these matrices of bert in 1/ratio of their bytes. importance {(layer, matrix):
        [n]}, one number for each row, is used by the codec `weighted`."""
        weights = {target: module.weight.detach().cpu()
                   for target, module in find_modules(bert, matrices).items()}
        shapes, stored = {target: weight.shape for target, weight in weights.items()}, {}
        for prefix, group in groups(shapes, codec).items():
            stacked = torch.cat([weights[target] for target in group])
            byte_budget = stacked.numel() * FLOAT / ratio
            rows = torch.cat([importance[target] for target in group]) if importance else None
            found = CODECS[codec].fit(stacked, byte_budget, rows)
            assert bytes_of(found) <= byte_budget
            stored |= {f"{prefix}.{name}": tensor for name, tensor in found.items()}
        return cls(codec, ratio, shapes, stored)

    @property
    def bytes(self):
        return bytes_of(self.stored)

    def decode(self):
        """→ {(layer, matrix): [n, m]}"""
        weights = {}
        for prefix, group in groups(self.shapes, self.codec).items():
            sizes = [self.shapes[target][0] for target in group]
            # clone: fitted and loaded tensors get the same alignment, so both give the same bits
            own = {name.removeprefix(prefix + "."): tensor.clone()
                   for name, tensor in self.stored.items() if name.startswith(prefix + ".")}
            stacked = CODECS[self.codec].decode(own, (sum(sizes), self.shapes[group[0]][1]))
            weights |= {t: part.clone() for t, part in zip(group, stacked.split(sizes))}
        return weights


def groups(shapes, codec):
    """{(layer, matrix): [n, m]} → {prefix of the stored names: [target, …]}: the matrices
    stored together. A shared decoder serves all layers' rows of the same length m."""
    found = {}
    for (layer, matrix), (_, m) in shapes.items():
        prefix = f"{matrix}.{m}" if CODECS[codec].shared else f"{matrix}.{layer}"
        found.setdefault(prefix, []).append((layer, matrix))
    return found
