"""Matrices stored as short codes of their rows and a decoder ("Revisiting Offline Compression",
arXiv 2302.04045), and token embeddings the same way with a loss of direction ("Direction is what
you need", arXiv 2106.08181).

A row w [m] goes through an encoder to x numbers and back; the encoder is thrown away, the codes
[n, x], the decoder and the rows' norms [n] are stored:

    encoder   m → 8x → 4x → x          LeakyReLU between
    decoder   x → 2x → 4x → m          LeakyReLU between, tanh at the end
    ŵ = ‖w‖ · y/‖y‖                    the decoder gives the direction only
    loss      10/11 · (1 − cos(ŵ, w)) + 1/11 · RMSE

x is the largest whole number with  10x² + x·(n + 6 + 4m) + m + n  numbers within the room.
`shared` stacks the matrices of all layers and gives them one decoder, whose cost they share; where
layers differ in m (uneven pruning), those of equal m have one.

Of embeddings:  z = We + b,  ê = Vz + c,  loss  0.1995 · (1 − cos) + 0.0025 · mean|ê − e|^α,  α from
1 down to 0.1. It starts at the centered SVD, which is the best such pair for the squared error.

Left out: early stopping by masked-LM loss. Different: rows go into the encoder with a mean square
of 1, and small matrices get more passes than the paper's 30.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from bert import UserError
from common.log import progress_bar
from compression.codecs import FLOAT, Codec, fit_centered, product

EPOCHS, STEPS = 30, 30_000           # passes over the rows, and more of them if steps were too few


def width(n, m, numbers):
    """The largest x whose codes, decoder and norms are at most `numbers`."""
    b, c = n + 6 + 4 * m, m + n - numbers
    x = math.floor((-b + math.sqrt(max(b * b - 40 * c, 0))) / 20)
    if c >= 0 or x < 1:
        raise UserError(f"{int(numbers):,} numbers are too few for an autoencoder of {n} rows of "
                        f"{m}, whose norms and last bias alone take {m + n:,}; lower --ratios, or "
                        f"leave the method out")
    return x


def encoder(m, x):
    return nn.Sequential(nn.Linear(m, 8 * x), nn.LeakyReLU(), nn.Linear(8 * x, 4 * x),
                         nn.LeakyReLU(), nn.Linear(4 * x, x))


def decoder(m, x):
    return nn.Sequential(nn.Linear(x, 2 * x), nn.LeakyReLU(), nn.Linear(2 * x, 4 * x),
                         nn.LeakyReLU(), nn.Linear(4 * x, m), nn.Tanh())


def with_norms(directions, norms):
    """[n, m] → rows of these norms [n]."""
    return F.normalize(directions, dim=1) * norms[:, None]


def row_loss(directions, target):
    """10/11 · (1 − cos) + 1/11 · RMSE, both of rows with a mean square of 1."""
    rows = with_norms(directions, target.norm(dim=1))
    cosine = F.cosine_similarity(directions, target).mean()
    return (10 * (1 - cosine) + (rows - target).square().mean().add(1e-12).sqrt()) / 11


def passes(parameters, n, batch, decays, factor, title):
    """Adam over n rows in random order: yields (the part of the passes that is done, rows), and
    steps after each use of them. The learning rate falls by `factor`, `decays` times."""
    count = max(EPOCHS, math.ceil(STEPS * batch / n))
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, count // (decays + 1)), factor)
    order = torch.Generator().manual_seed(0)
    with progress_bar(title, count, "pass", leave=False) as bar:
        for number in range(count):
            for rows in torch.randperm(n, generator=order).split(batch):
                yield number / count, rows
                optimizer.step()
                optimizer.zero_grad()
            schedule.step()
            bar.update()


def fit_autoencoder(weight, byte_budget, rows=None):
    (n, m), norms = weight.shape, weight.norm(dim=1)
    x = width(n, m, byte_budget // FLOAT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        down, up = encoder(m, x), decoder(m, x)
    unit = F.normalize(weight, dim=1) * math.sqrt(m)                     # [n, m]
    parameters = [*down.parameters(), *up.parameters()]
    for _, chosen in passes(parameters, n, 16, 14, 0.8, "autoencoder"):
        row_loss(up(down(unit[chosen])), unit[chosen]).backward()
    with torch.no_grad():
        codes = down(unit)
    return {"codes": codes, "norms": norms, **up.state_dict()}


def decode_autoencoder(stored, shape):
    codes = stored["codes"]
    up = decoder(shape[1], codes.size(1))
    up.load_state_dict({name: t for name, t in stored.items() if name not in ("codes", "norms")})
    with torch.no_grad():
        return with_norms(up(codes), stored["norms"])


def direction_loss(found, target, power):
    """0.1995 · (1 − cos) + 0.0025 · mean(|ê − e| + 1e-10)^α"""
    cosine = F.cosine_similarity(found, target).mean()
    return 0.1995 * (1 - cosine) + 0.0025 * ((found - target).abs() + 1e-10).pow(power).mean()


def fit_direction(weight, byte_budget, rows=None):
    start = fit_centered(weight, byte_budget)
    rank, mean = len(start["right"]), start["mean"]
    down, up = nn.Linear(weight.size(1), rank), nn.Linear(rank, weight.size(1))
    with torch.no_grad():
        up.weight.copy_(start["right"].T)
        up.bias.copy_(mean)
        down.weight.copy_(torch.linalg.pinv(start["right"].double()).T)
        down.bias.copy_(-down.weight @ mean)
    parameters = [*down.parameters(), *up.parameters()]
    for done, chosen in passes(parameters, len(weight), 32, 7, 0.5, "direction"):
        power = 1 - 0.9 * min(1.5 * done, 1)
        direction_loss(up(down(weight[chosen])), weight[chosen], power).backward()
    with torch.no_grad():
        return {"left": down(weight), "right": up.weight.T.contiguous(), "mean": up.bias.detach()}


TRAINED = {
    "autoencoder": Codec(fit_autoencoder, decode_autoencoder),
    "shared": Codec(fit_autoencoder, decode_autoencoder, shared=True),
    "direction": Codec(fit_direction, product),
}
