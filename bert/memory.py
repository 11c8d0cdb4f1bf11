"""Memory that large tensors of one step take over from those of the last.

Gradients are freed after each step, and the C library gives large blocks back to the system, which
clears them again page by page when they are next touched: 47 MB for MiniLM's word table, 340 MB for
bert-base's matrices. A kept block costs nothing."""

import math
from threading import Lock

import torch

KEPT_FROM = 2 ** 20                      # bytes; the C library itself keeps smaller blocks
MOST, AGE = 128, 5000                    # blocks of a size; tensors until an unused size is dropped
use_count = getattr(torch._C, "_storage_Use_Count", None)


class KeptMemory:
    """Blocks of memory on the CPU, each for a new tensor once no other uses it. A copy has none."""

    def __init__(self):
        self.blocks, self.lock = {}, Lock()      # {bytes: [storage, …]}, oldest use first
        self.count, self.used = 0, {}            # tensors made so far; then, for each size

    def __reduce__(self):
        return KeptMemory, ()

    def keeps(self, shape, dtype, device):
        """Whether `empty` keeps the memory of such a tensor: not of a small one, nor on a GPU."""
        large = math.prod(shape) * dtype.itemsize >= KEPT_FROM
        return large and device.type == "cpu" and use_count is not None

    def empty(self, shape, dtype, device):
        """→ a tensor whose numbers are not set"""
        if not self.keeps(shape, dtype, device) or type(torch.empty(0)) is not torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)        # the last: a fake one
        size = block_size(math.prod(shape) * dtype.itemsize)
        with self.lock:                              # of threads that share an encoder
            blocks = self.blocks[size] = [                   # another process may read the others
                block for block in self.blocks.pop(size, []) if not block.is_shared()]
            self.count += 1
            self.used[size] = self.count
            oldest = next(iter(self.blocks))
            if self.count - self.used[oldest] > AGE:
                del self.blocks[oldest]
            block = next((block for block in blocks if use_count(block._cdata) == 1), None)
            if block is None:
                block = torch.UntypedStorage(size)
                if len(blocks) < MOST:
                    blocks.append(block)
            return torch.empty(0, dtype=dtype, device="cpu").set_(block, 0, shape)


def block_size(count):
    """→ the bytes of a block for so many: up to a quarter more, so that few sizes serve many."""
    unit = 2 ** max(0, count.bit_length() - 3)
    return count + -count % unit
