"""Attention with dropout on a CPU, where torch's fused kernel has none: the equation of
eager_attention and its gradient by hand, in fp32 and in few passes over the scores.

    S = QKᵀ/√d + bias    P = softmax(S)    D = P·mask/(1 - p)    O = DV
    dV = Dᵀ dO    dD = dO Vᵀ    dP = dD·mask/(1 - p)    dS = P·(dP - Σ P·dP)    dQ = dS K/√d"""

import torch

from bert.dropout import keep_mask, rounded


class CpuAttention(torch.autograd.Function):
    """query [n, Tq, d], key and value [n, Tk, d], n = batch · heads, bias [n, 1, Tk] or None, p the
    probability to drop → contexts [n, Tq, d]"""

    @staticmethod
    def forward(ctx, query, key, value, bias, p):
        ctx.scale, ctx.keep = query.size(-1) ** -0.5, 1 / (1 - p)
        scores = torch.bmm(query, key.mT)                    # [n, Tq, Tk]
        if bias is None:
            scores.mul_(ctx.scale)
        else:
            torch.add(bias, scores, alpha=ctx.scale, out=scores)
        probabilities = torch.softmax(scores, dim=-1)
        mask = keep_mask(scores.shape, p, scores.dtype)
        torch.mul(probabilities, mask, out=scores)
        ctx.save_for_backward(query, key, value, probabilities, mask)
        return torch.bmm(scores, value).mul_(ctx.keep)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        query, key, value, probabilities, mask = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            gradient = gradient * ctx.keep
            of_value = torch.bmm((probabilities * mask).mT, gradient)
            of_scores = torch.bmm(gradient, value.mT).mul_(mask)
            of_scores = torch._softmax_backward_data(of_scores, probabilities, -1, torch.float32)
            of_scores.mul_(ctx.scale)
            return (torch.bmm(of_scores, key), torch.bmm(of_scores.mT, query), of_value, None, None)


def cpu_attention(query, key, value, key_bias, dropout):
    """sdpa_attention, but `key_bias`, which is added to the scores, is 0, or the least number at
    keys to ignore; or None."""
    heads, p = query.size(1), rounded(dropout)
    bias = key_bias if key_bias is None else (
        key_bias.expand(-1, heads, -1, -1).flatten(0, 1).float())
    with torch.autocast("cpu", enabled=False):
        query, key, value = (part.flatten(0, 1).float() for part in (query, key, value))
        return CpuAttention.apply(query, key, value, bias, p).unflatten(0, (-1, heads))
