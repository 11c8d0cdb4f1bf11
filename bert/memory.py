"""Memory that large tensors of one step take over from those of the last.

Gradients are freed after each step, and the C library gives large blocks back to the system, which
clears them again page by page when they are next touched: 47 MB for MiniLM's word table, 340 MB for
bert-base's matrices. A kept block costs nothing."""

import math
from threading import Lock

import torch

KEPT_FROM = 2 ** 20                      # bytes; the C library itself keeps smaller blocks
MOST, SHAPES = 128, 16                   # blocks of each shape; shapes
use_count = getattr(torch._C, "_storage_Use_Count", None)


class KeptMemory:
    """Blocks of memory on the CPU, each for a new tensor once no other uses it. A copy has none."""

    def __init__(self):
        self.blocks, self.lock = {}, Lock()      # {(shape, dtype): [storage, …]}, oldest use first

    def __reduce__(self):
        return KeptMemory, ()

    def keeps(self, shape, dtype, device):
        """Whether `empty` keeps the memory of such a tensor: not of a small one, nor on a GPU."""
        large = math.prod(shape) * dtype.itemsize >= KEPT_FROM
        return large and device.type == "cpu" and use_count is not None

    def empty(self, shape, dtype, device):
        """→ a tensor whose numbers are not set"""
        if not self.keeps(shape, dtype, device):
            return torch.empty(shape, dtype=dtype, device=device)
        with self.lock:                              # of threads that share an encoder
            blocks = self.blocks[shape, dtype] = self.blocks.pop((shape, dtype), [])
            for block in blocks:
                if use_count(block._cdata) == 1:
                    return torch.empty(0, dtype=dtype).set_(block, 0, shape)
            tensor = torch.empty(shape, dtype=dtype)
            if len(blocks) < MOST:
                blocks.append(tensor.untyped_storage())
            if len(self.blocks) > SHAPES:
                del self.blocks[next(iter(self.blocks))]
            return tensor
