"""Word embeddings whose gradient takes no new memory in every step.

A batch uses some hundred rows of a table of 30,522, but an optimizer with momentum or weight decay
moves all of them, so their gradient is a whole table, mostly zeros. torch gets new memory for it in
each step, 47 MB for MiniLM, and the system clears it page by page when it is first touched. Here
the memory of the last step's gradient is used again."""

import torch
import torch.nn.functional as F
from torch import nn

MOST = 4                                                     # tables that are kept
use_count = getattr(torch._C, "_storage_Use_Count", lambda storage: 2)


class TableMemory:
    """Memory for gradients, which later gradients take over: of one, or of a few with gradient
    surgery, which keeps each task's. A copy starts without any."""

    def __init__(self):
        self.storages = []

    def __reduce__(self):
        return TableMemory, ()

    def zeros_like(self, weight):
        """→ a tensor of zeros, in memory that no tensor uses any more, or in new one."""
        self.storages = [s for s in self.storages if s.nbytes() == weight.nbytes][-MOST:]
        for storage in self.storages:
            if use_count(storage._cdata) == 1:
                return torch.empty(0, dtype=weight.dtype).set_(storage, 0, weight.shape).zero_()
        table = torch.zeros_like(weight)
        self.storages.append(table.untyped_storage())
        return table


class LookUp(torch.autograd.Function):
    """weight[ids] with a gradient in a TableMemory: ids [N], weight [V, H] → [N, H]"""

    @staticmethod
    def forward(ctx, ids, weight, memory):
        ctx.save_for_backward(ids, weight)
        ctx.memory = memory
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient):
        ids, weight = ctx.saved_tensors
        return None, ctx.memory.zeros_like(weight).index_add_(0, ids, gradient), None


class WordEmbedding(nn.Embedding):
    """nn.Embedding; for a vector of ids on a CPU with the gradient above."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.memory = TableMemory()

    def forward(self, ids):
        weight, trains = self.weight, torch.is_grad_enabled() and self.weight.requires_grad
        if (trains and isinstance(weight, nn.Parameter) and ids.dim() == 1
                and ids.device.type == "cpu" and not torch.compiler.is_compiling()):
            return LookUp.apply(ids, weight, self.memory)
        return super().forward(ids)
