"""Matrices stored as short codes of their rows and a decoder ("Revisiting Offline Compression",
arXiv 2302.04045), and token embeddings the same way with a loss of direction ("Direction is what
you need", arXiv 2106.08181).

For each row w [m] a code of x numbers and the norm are stored; the encoder is discarded:

    encoder   m → 8x → 4x → x          LeakyReLU between
    decoder   x → 2x → 4x → m          LeakyReLU between, tanh at the end
    ŵ = ‖w‖ · y/‖y‖                    the decoder determines only the direction
    loss      10/11 · (1 − cos(ŵ, w)) + 1/11 · RMSE

x is the largest whole number for which  10x² + x·(n + 6 + 4m) + m + n  numbers fit the budget.
`shared` stacks the matrices of all layers and gives them one decoder.

Embeddings:  z = We + b,  ê = Vz + c,  loss  0.1995 · (1 − cos) + 0.0025 · mean|ê − e|^α,  α falling
from 1 to 0.1. Training starts at the centered SVD, the best such pair in squared error.

Left out: early stopping. Different: encoder inputs are rows with a mean square of 1, and small
matrices get more epochs than the paper's 30.
"""

import math
import sys

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from bert import UserError
from compression.codecs import FLOAT, fit_centered

EPOCHS, STEPS = 30, 30_000           # at least so many passes over the rows, and steps


def width(n, m, numbers):
    """The largest x with which codes, decoder and norms are at most `numbers` numbers."""
    b, c = n + 6 + 4 * m, m + n - numbers
    x = math.floor((-b + math.sqrt(max(b * b - 40 * c, 0))) / 20)
    if c >= 0 or x < 1:
        raise UserError(f"{int(numbers):,} numbers are too few for an autoencoder of {n} rows of "
                        f"{m}, whose norms and last bias alone take {m + n:,}; lower --ratios, or "
                        f"leave the method out")
    return x


def decoder(m, x):
    return nn.Sequential(nn.Linear(x, 2 * x), nn.LeakyReLU(), nn.Linear(2 * x, 4 * x),
                         nn.LeakyReLU(), nn.Linear(4 * x, m), nn.Tanh())


def with_norms(directions, norms):
    """directions [n, m] → rows with the same directions and these norms [n]"""
    return F.normalize(directions, dim=1) * norms[:, None]


def row_loss(directions, target):
    """10/11 · (1 − cos) + 1/11 · RMSE, of rows with a mean square of 1"""
    rows = with_norms(directions, target.norm(dim=1))
    cosine = F.cosine_similarity(directions, target).mean()
    return (10 * (1 - cosine) + (rows - target).square().mean().add(1e-12).sqrt()) / 11


def train(modules, n, batch_size, decays, factor, title):
    """Train with Adam on n rows in random order: yields (fraction of the epochs done, indices of a
    batch); the caller runs backward. The learning rate is multiplied by `factor` `decays` times."""
    epochs = max(EPOCHS, math.ceil(STEPS * batch_size / n))
    optimizer = torch.optim.Adam(nn.ModuleList(modules).parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, epochs // (decays + 1)), factor)
    generator = torch.Generator().manual_seed(0)
    for epoch in tqdm(range(epochs), title, unit="epoch", leave=False,
                      mininterval=0.5 if sys.stderr.isatty() else 30):
        for batch in torch.randperm(n, generator=generator).split(batch_size):
            yield epoch / epochs, batch
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()


def fit_autoencoder(weight, byte_budget, importance=None):
    (n, m), norms = weight.shape, weight.norm(dim=1)
    x = width(n, m, byte_budget // FLOAT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encode = nn.Sequential(nn.Linear(m, 8 * x), nn.LeakyReLU(), nn.Linear(8 * x, 4 * x),
                               nn.LeakyReLU(), nn.Linear(4 * x, x))
        decode = decoder(m, x)
    rows = F.normalize(weight, dim=1) * math.sqrt(m)                     # [n, m]
    for _, batch in train([encode, decode], n, 16, 14, 0.8, "autoencoder"):
        row_loss(decode(encode(rows[batch])), rows[batch]).backward()
    with torch.no_grad():
        return {"codes": encode(rows), "norms": norms, **decode.state_dict()}


def decode_autoencoder(stored, shape):
    codes = stored["codes"]
    decode = decoder(shape[1], codes.size(1))
    decode.load_state_dict({k: t for k, t in stored.items() if k not in ("codes", "norms")})
    with torch.no_grad():
        return with_norms(decode(codes), stored["norms"])


def fit_direction(weight, byte_budget, importance=None):
    start = fit_centered(weight, byte_budget)
    rank, mean = len(start["right"]), start["mean"]
    encode, decode = nn.Linear(weight.size(1), rank), nn.Linear(rank, weight.size(1))
    with torch.no_grad():
        decode.weight.copy_(start["right"].T)
        decode.bias.copy_(mean)
        encode.weight.copy_(torch.linalg.pinv(start["right"].double()).T)
        encode.bias.copy_(-encode.weight @ mean)
    for done, batch in train([encode, decode], len(weight), 32, 7, 0.5, "direction"):
        target, power = weight[batch], 1 - 0.9 * min(1.5 * done, 1)                # α
        decoded = decode(encode(target))
        cosine = F.cosine_similarity(decoded, target).mean()
        error = ((decoded - target).abs() + 1e-10).pow(power).mean()
        (0.1995 * (1 - cosine) + 0.0025 * error).backward()
    with torch.no_grad():
        return {"left": encode(weight), "right": decode.weight.T.contiguous(),
                "mean": decode.bias.detach()}
