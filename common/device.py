"""Where a script computes and in which precision, and how much memory it took."""

import sys
from contextlib import suppress
from functools import partial

import torch

from bert.errors import UserError


def pick_device(name, precision="fp32"):
    """--device and --precision → torch.device, and a function that makes the autocast context."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return device, partial(torch.autocast, device.type, torch.bfloat16, precision == "bf16")


def peak_memory(device):
    """The most bytes this process has held, on the GPU or else in the machine; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):                              # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return None
