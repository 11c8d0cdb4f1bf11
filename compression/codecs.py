"""Ways to store a matrix in fewer bytes, each two functions on tensors.

    fit(weight [n, m], byte_budget, importance) → {name: tensor}, at most `byte_budget` bytes
    decode(stored, shape) → [n, m]

Rows are output neurons (of embeddings: tokens); importance [n], how much each row matters, is used
by `weighted` only. Everything that is stored counts: factors, decoders, norms, scales, positions.

    svd         U_k Σ_k · V_kᵀ, the closest matrix of rank k
    centered    the same of W − mean row, and the mean row
    weighted    D⁻¹ U_k Σ_k · V_kᵀ of D·W: important rows are approximated more closely
    kronecker   Σᵢ Aᵢ ⊗ Bᵢ, the closest such sum (Van Loan & Pitsianis 1993)
    prune       the largest entries, and one bit for each entry saying whether it is one of them
    bits        each entry as one of 2ⁿ steps between its row's smallest and largest entry
"""

import itertools
import math

import numpy as np
import torch

from bert import UserError

FLOAT = 4                                                    # bytes


def bytes_of(stored):
    return sum(tensor.nbytes for tensor in stored.values())


def max_count(byte_budget, each, what):
    """How many of a thing of `each` bytes fit the budget. UserError if not one does."""
    count = int(byte_budget // each)
    if count < 1:
        raise UserError(f"{int(byte_budget):,} bytes for a matrix hold not even one {what} of "
                        f"{int(each):,} bytes; lower --ratios, or leave the method out")
    return count


def truncated_svd(weight, rank):
    """→ U_k √Σ_k [n, rank], √Σ_k V_kᵀ [rank, m], computed in float64"""
    u, values, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values[:rank].sqrt().clamp_min(torch.finfo(torch.float32).tiny).float()
    return (u * values).float()[:, :rank] / root, vh.float()[:rank] * root[:, None]


def decode_product(stored, shape):
    return stored["left"] @ stored["right"] + stored.get("mean", 0.0)


def fit_svd(weight, byte_budget, importance=None):
    rank = max_count(byte_budget, FLOAT * sum(weight.shape), "rank")
    left, right = truncated_svd(weight, min(rank, *weight.shape))
    return {"left": left, "right": right}


def fit_centered(weight, byte_budget, importance=None):
    mean = weight.mean(dim=0)                                # [m]
    return fit_svd(weight - mean, byte_budget - mean.nbytes) | {"mean": mean}


def fit_weighted(weight, byte_budget, importance=None):
    if importance is None:
        return fit_svd(weight, byte_budget)
    scale = (importance / importance.mean() + 0.01).sqrt()[:, None]              # D [n, 1]
    stored = fit_svd(scale * weight, byte_budget)
    return stored | {"left": stored["left"] / scale}


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def fit_kronecker(weight, byte_budget, importance=None):
    """A [a, b] and B [c, d] have the fewest entries; of equals, A is nearest W in aspect ratio."""
    n, m = weight.shape
    a, b = min(itertools.product(divisors(n), divisors(m)),
               key=lambda s: (s[0] * s[1] + n * m // (s[0] * s[1]),
                              abs(math.log(s[0] * m / (s[1] * n)))))
    c, d = n // a, m // b
    terms = max_count(byte_budget, FLOAT * (a * b + c * d), "Kronecker term")
    blocks = weight.reshape(a, c, b, d).transpose(1, 2).reshape(a * b, c * d)    # rank 1 = one term
    left, right = truncated_svd(blocks, min(terms, *blocks.shape))
    return {"a": left.T.reshape(-1, a, b), "b": right.reshape(-1, c, d)}         # [r, …]


def decode_kronecker(stored, shape):
    return torch.einsum("rab,rcd->acbd", stored["a"], stored["b"]).reshape(shape)


def fit_prune(weight, byte_budget, importance=None):
    position_bytes = math.ceil(weight.numel() / 8)
    count = min(max_count(byte_budget - position_bytes, FLOAT, "entry beside the positions' bits"),
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


def fit_bits(weight, byte_budget, importance=None):
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
