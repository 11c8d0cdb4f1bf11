"""The matrices of a model in stored form. In a saved run model/compressed.safetensors holds the
tensors: {matrix}.{layer}.{tensor}, or for a decoder of all layers' rows [m] {matrix}.{m}.{tensor}.
"""

from collections import namedtuple
from dataclasses import dataclass

import torch

from bert.matrices import get_linear, is_empty
from compression import autoencoder, codecs

Codec = namedtuple("Codec", "fit decode shared", defaults=[False])   # shared: by all layers
CODECS = {
    "svd": Codec(codecs.fit_svd, codecs.decode_product),
    "centered": Codec(codecs.fit_centered, codecs.decode_product),
    "weighted": Codec(codecs.fit_weighted, codecs.decode_product),
    "kronecker": Codec(codecs.fit_kronecker, codecs.decode_kronecker),
    "prune": Codec(codecs.fit_prune, codecs.decode_prune),
    "bits": Codec(codecs.fit_bits, codecs.decode_bits),
    "autoencoder": Codec(autoencoder.fit_autoencoder, autoencoder.decode_autoencoder),
    "shared": Codec(autoencoder.fit_autoencoder, autoencoder.decode_autoencoder, shared=True),
    "direction": Codec(autoencoder.fit_direction, codecs.decode_product),
}
EMBEDDINGS = "embeddings"                # a matrix besides bert.matrices.MATRICES


def find_modules(bert, matrices):
    """{(layer, matrix): its module} of all layers, without matrices that pruning has emptied."""
    embeddings = {(0, EMBEDDINGS): bert.word_embeddings} if EMBEDDINGS in matrices else {}
    return embeddings | {
        (layer, matrix): get_linear(bert, layer, matrix) for matrix in matrices
        if matrix != EMBEDDINGS for layer in range(len(bert.layers))
        if not is_empty(bert, layer, matrix)}


@dataclass
class Compressed:
    """Matrices stored by one codec: shapes {(layer, matrix): [n, m]}, stored {name: tensor}."""

    codec: str
    shapes: dict
    stored: dict

    @classmethod
    def fit(cls, bert, matrices, codec, ratio, importance=None):
        """Store these matrices of bert in 1/ratio of their bytes; importance {target: [n]}"""
        weights = {target: module.weight.detach().cpu()
                   for target, module in find_modules(bert, matrices).items()}
        found = cls(codec, {target: weight.shape for target, weight in weights.items()}, {})
        for prefix, targets in groups(found.shapes, codec).items():
            stacked = torch.cat([weights[target] for target in targets])
            byte_budget = stacked.nbytes / ratio
            rows = torch.cat([importance[target] for target in targets]) if importance else None
            tensors = CODECS[codec].fit(stacked, byte_budget, rows)
            assert codecs.bytes_of(tensors) <= byte_budget
            found.stored |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
        return found

    @property
    def bytes(self):
        return codecs.bytes_of(self.stored)

    def decode(self):
        """→ {(layer, matrix): [n, m]}"""
        weights = {}
        for prefix, targets in groups(self.shapes, self.codec).items():
            sizes = [self.shapes[target][0] for target in targets]
            # clone: fitted and loaded tensors get the same alignment, so both give the same bits
            own = {name.removeprefix(prefix + "."): tensor.clone()
                   for name, tensor in self.stored.items() if name.startswith(prefix + ".")}
            stacked = CODECS[self.codec].decode(own, (sum(sizes), self.shapes[targets[0]][1]))
            weights |= {t: part.clone() for t, part in zip(targets, stacked.split(sizes))}
        return weights


def groups(shapes, codec):
    """{(layer, matrix): [n, m]} → {prefix of the stored names: [target, …]}: the matrices
    stored together. A shared decoder serves all layers' rows of the same length m."""
    found = {}
    for (layer, matrix), (_, m) in shapes.items():
        prefix = f"{matrix}.{m}" if CODECS[codec].shared else f"{matrix}.{layer}"
        found.setdefault(prefix, []).append((layer, matrix))
    return found
