"""Word embeddings whose gradient takes no new memory in every step.

A batch uses some hundred rows of a table of 30,522, but an optimizer with momentum or weight decay
moves all of them, so their gradient is a whole table, mostly zeros."""

import torch
import torch.nn.functional as F
from torch import nn


class LookUp(torch.autograd.Function):
    """weight[ids] with a gradient in a KeptMemory: ids [N], weight [V, H] → [N, H]"""

    @staticmethod
    def forward(ctx, ids, weight, memory):
        ctx.save_for_backward(ids, weight)
        ctx.memory = memory
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient):
        ids, weight = ctx.saved_tensors
        table = ctx.memory.empty(weight.shape, weight.dtype, weight.device).zero_()
        return None, table.index_add_(0, ids, gradient), None


class WordEmbedding(nn.Embedding):
    """nn.Embedding; for a vector of ids on a CPU, given a KeptMemory, with the gradient above."""

    def forward(self, ids, memory=None):
        weight, trains = self.weight, torch.is_grad_enabled() and self.weight.requires_grad
        if (memory is not None and trains and isinstance(weight, nn.Parameter) and ids.dim() == 1
                and ids.device.type == "cpu" and not torch.compiler.is_compiling()):
            return LookUp.apply(ids, weight, memory)
        return super().forward(ids)
