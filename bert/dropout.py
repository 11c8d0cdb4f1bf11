"""Dropout (Srivastava et al. 2014) with cheap random numbers on a CPU.

torch draws a 53-bit number for every entry, which on a CPU takes longer than most layers around it.
Here four entries share one draw of 64 bits, 16 bits each. So a probability is rounded to the next
multiple of 1/65,536, and the numbers that stay are scaled by exactly that one: the mean is kept."""

import torch
import torch.nn.functional as F
from torch import nn

STEPS = 2 ** 16


def is_traced():
    """Whether torch.compile, torch.export or a transform of torch.func (vmap, grad) reads the code
    that runs; none can follow the gradients and random numbers made by hand."""
    return (torch.compiler.is_compiling()
            or torch._C._functorch.peek_interpreter_stack() is not None)


def rounded(probability):
    """→ the multiple of 1/65,536 that is nearest to the probability"""
    return round(probability * STEPS) / STEPS


def keep_mask(shape, probability, dtype):
    """→ a tensor of this shape on the CPU, 0 with this probability (a multiple of 1/65,536), else
    1, drawn from torch's generator. The number of threads does not change it."""
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-2 ** 63, None)
    threshold = round(probability * STEPS) - STEPS // 2      # int16 runs from -32,768 to 32,767
    mask = torch.empty(shape, dtype=dtype)
    return torch.ge(bits.view(torch.int16)[:count].view(shape), threshold, out=mask)


def dropout(values, probability, training=True):
    """→ `values`, each zero with this probability, else divided by 1 - probability. Outside
    training: `values` as they are."""
    if not training or values.device.type != "cpu" or is_traced():
        return F.dropout(values, probability, training)
    probability = rounded(probability)
    if probability in (0, 1):
        return values * (1 - probability)
    mask = keep_mask(values.shape, probability, values.dtype)
    if values.dtype == torch.bfloat16:                       # rounded, the factor would be another
        return (values * mask).mul_(1 / (1 - probability))
    return values * mask.mul_(1 / (1 - probability))


class Dropout(nn.Dropout):
    """nn.Dropout by the function above."""

    def forward(self, values):
        return dropout(values, self.p, self.training)
