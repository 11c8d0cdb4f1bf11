"""Ways to store matrices in fewer bytes, each as two functions on tensors:

    fit(weight [n, m], room, rows) → {name: tensor}     what is stored, of at most `room` bytes
    decode(stored, shape) → [n, m]

Rows are output neurons (or tokens, of embeddings). `rows` [n] says how much each row matters; only
`weighted` asks. Sizes count everything stored: factors, decoders, norms, scales, positions. For
the autoencoders see compression/autoencoder.py.

    svd         U_k Σ_k · V_kᵀ, the closest matrix of rank k
    centered     the same of W − mean row, and the mean row
    weighted    D⁻¹ U_k Σ_k · V_kᵀ of D·W: rows that matter more are met more closely
    kronecker   Σᵢ Aᵢ ⊗ Bᵢ, the closest such sum (Van Loan & Pitsianis 1993)
    prune       the largest entries, and a bit for each entry saying which these are
    bits        each entry as one of 2ⁿ steps between its row's least and largest entry
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from bert import UserError
from laser.reduce import Decomposition

FLOAT = 4                                                    # bytes


class Codec(NamedTuple):
    fit: Callable
    decode: Callable
    shared: bool = False                                     # one fit serves all layers


def bytes_of(stored):
    return sum(tensor.nbytes for tensor in stored.values())


def max_count(byte_budget, each, what):
    """How many of a thing that takes `each` bytes fit; UserError if not one does."""
    count = int(byte_budget // each)
    if count < 1:
        raise UserError(f"{int(byte_budget):,} bytes for a matrix hold not even one {what} of "
                        f"{int(each):,} bytes; lower --ratios, or leave the method out")
    return count


def product(stored, shape):
    return stored["left"] @ stored["right"] + stored.get("mean", 0.0)


def fit_svd(weight, byte_budget, rows=None, mean=None):
    fixed = 0 if mean is None else mean.nbytes
    rank = max_count(byte_budget - fixed, FLOAT * sum(weight.shape), "rank")
    down, up = Decomposition(weight).factors(min(rank, *weight.shape))
    stored = {"left": up, "right": down}
    return stored if mean is None else stored | {"mean": mean}


def fit_centered(weight, byte_budget, rows=None):
    mean = weight.mean(dim=0)                                # [m]
    return fit_svd(weight - mean, byte_budget, mean=mean)


def fit_weighted(weight, byte_budget, rows=None):
    scale = torch.ones(len(weight)) if rows is None else (rows / rows.mean() + 0.01).sqrt()  # [n]
    stored = fit_svd(weight * scale[:, None], byte_budget)
    return stored | {"left": stored["left"] / scale[:, None]}


def kronecker_shape(n, m):
    """The shape of A, of n·m's factorisations the one in which A and B take the least room; of
    several such, the one most like W in shape."""
    divisors = [[d for d in range(1, size + 1) if size % d == 0] for size in (n, m)]
    return min(((a, b) for a in divisors[0] for b in divisors[1]),
               key=lambda s: (s[0] * s[1] + n * m // (s[0] * s[1]),
                              abs(math.log(s[0] * m / (s[1] * n)))))


def fit_kronecker(weight, byte_budget, rows=None):
    n, m = weight.shape
    a, b = kronecker_shape(n, m)
    c, d = n // a, m // b
    terms = max_count(byte_budget, FLOAT * (a * b + c * d), "Kronecker term")
    blocks = weight.reshape(a, c, b, d).transpose(1, 2).reshape(a * b, c * d)    # rank 1 = one term
    down, up = Decomposition(blocks).factors(min(terms, *blocks.shape))
    return {"a": up.T.reshape(-1, a, b), "b": down.reshape(-1, c, d)}            # [r, …]


def decode_kronecker(stored, shape):
    return torch.einsum("rab,rcd->acbd", stored["a"], stored["b"]).reshape(shape)


def fit_prune(weight, byte_budget, rows=None):
    positions = math.ceil(weight.numel() / 8)
    count = min(max_count(byte_budget - positions, FLOAT, "entry beside the positions' bits"),
                weight.numel())
    largest = weight.flatten().abs().topk(count).indices.sort().values
    kept = np.zeros(weight.numel(), bool)
    kept[largest.numpy()] = True
    return {"values": weight.flatten()[largest], "kept": torch.from_numpy(np.packbits(kept))}


def decode_prune(stored, shape):
    kept = np.unpackbits(stored["kept"].numpy(), count=math.prod(shape)).astype(bool)
    flat = torch.zeros(math.prod(shape))
    flat[torch.from_numpy(kept)] = stored["values"]
    return flat.view(shape)


def fit_bits(weight, byte_budget, rows=None):
    n, m = weight.shape
    bits = min(max_count(byte_budget - 2 * FLOAT * n, math.ceil(n * m / 8), "bit an entry"), 8)
    low, high = weight.amin(dim=1), weight.amax(dim=1)                           # [n]
    step = ((high - low) / (2 ** bits - 1)).clamp_min(1e-12)
    codes = ((weight - low[:, None]) / step[:, None]).round().to(torch.uint8).numpy()
    planes = codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8) & 1         # [n·m, bits]
    packed = np.stack([np.packbits(plane) for plane in planes.T])                # [bits, n·m/8]
    return {"codes": torch.from_numpy(packed), "low": low, "step": step}


def decode_bits(stored, shape):
    planes = np.unpackbits(stored["codes"].numpy(), axis=1, count=math.prod(shape))
    weights = (1 << np.arange(len(planes))).astype(np.float32)
    codes = torch.from_numpy(weights @ planes).view(shape)
    return codes * stored["step"][:, None] + stored["low"][:, None]


CLOSED_FORM = {
    "svd": Codec(fit_svd, product),
    "centered": Codec(fit_centered, product),
    "weighted": Codec(fit_weighted, product),
    "kronecker": Codec(fit_kronecker, decode_kronecker),
    "prune": Codec(fit_prune, decode_prune),
    "bits": Codec(fit_bits, decode_bits),
}
