"""Where a script computes and in which precision, and how much memory it took."""

import sys
from contextlib import suppress
from functools import partial

import torch

from bert.errors import UserError

MIN_WIDTH = 256          # hidden size from which --precision auto takes bf16 on a CPU with AMX


def pick_device(name):
    """--device → torch.device"""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(name, device, width):
    """--precision and a model's hidden size → "fp32" or "bf16", and a function that makes the
    autocast context. auto: bf16 where products in bf16 are much faster (docs/speed.md)."""
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    elif name == "auto":                                     # AMX: Intel's units for bf16 products
        name = "bf16" if width >= MIN_WIDTH and torch.cpu._is_amx_tile_supported() else "fp32"
    return name, partial(torch.autocast, device.type, torch.bfloat16, name == "bf16")


def peak_memory(device):
    """The most bytes this process has held, on the GPU or else in the machine; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):                              # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return None
