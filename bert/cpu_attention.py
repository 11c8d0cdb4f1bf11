"""Attention on a CPU, where torch's fused kernel has no dropout and is slow in short sequences: the
equation of eager_attention and its gradient by hand, in fp32, in few passes and few copies.

    S = QKᵀ/√d + bias    P = softmax(S)    D = P·mask/(1 - p)    O = DV
    dV = Dᵀ dO    dD = dO Vᵀ    dP = dD·mask/(1 - p)    dS = P·(dP - Σ P·dP)    dQ = dS K/√d"""

import torch

from bert.dropout import keep_mask, rounded

REGISTER = 16                                    # numbers of 32 bits in a register of AVX-512


def attend(query, key, value, bias, p, out=None):
    """query [n, Tq, d], key and value [n, Tk, d], n = batch · heads, bias [n, 1, Tk] or None, p the
    probability to drop → contexts [n, Tq, d], in `out` if given, and what attend_backward needs."""
    scale, scores = query.size(-1) ** -0.5, torch.bmm(query, key.mT)         # [n, Tq, Tk]
    if bias is None:
        scores.mul_(scale)
    else:
        torch.add(bias, scores, alpha=scale, out=scores)
    probabilities = softmax(scores)
    if not p:
        return torch.bmm(probabilities, value, out=out), (query, key, value, probabilities, None)
    mask = keep_mask(scores.shape, p, scores.dtype)
    torch.mul(probabilities, mask, out=scores)
    context = torch.bmm(scores, value, out=out).mul_(1 / (1 - p))
    return context, (query, key, value, probabilities, mask)


def softmax(scores):
    """[n, Tq, Tk] → the softmax over Tk. torch's is slow over less than a register of numbers."""
    if scores.size(-1) >= REGISTER:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores.mT.contiguous(), dim=1).mT.contiguous()


def attend_backward(gradient, saved, p, out=(None, None, None)):
    """The gradient of the contexts [n, Tq, d] → those of query, key and value, in `out`"""
    query, key, value, probabilities, mask = saved
    dropped = probabilities if mask is None else probabilities * mask
    gradient = gradient * (1 / (1 - p)) if p else gradient
    of_value = torch.bmm(dropped.mT, gradient, out=out[2])
    of_scores = torch.bmm(gradient, value.mT)
    of_scores = of_scores if mask is None else of_scores.mul_(mask)
    of_scores = torch._softmax_backward_data(of_scores, probabilities, -1, torch.float32)
    of_scores.mul_(query.size(-1) ** -0.5)
    return (torch.bmm(of_scores, key, out=out[0]), torch.bmm(of_scores.mT, query, out=out[1]),
            of_value)


class GridAttention(torch.autograd.Function):
    """`attend` on one grid"""

    @staticmethod
    def forward(ctx, query, key, value, bias, p):
        context, saved = attend(query, key, value, bias, p)
        ctx.save_for_backward(*saved)
        ctx.p = p
        return context

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with torch.autocast("cpu", enabled=False):
            return *attend_backward(gradient, ctx.saved_tensors, ctx.p), None, None


def cpu_attention(query, key, value, mask, dropout):
    """sdpa_attention; `mask` as for of_heads."""
    batch_and_heads = query.shape[:2]
    with torch.autocast("cpu", enabled=False):
        parts = (part.flatten(0, 1).float() for part in (query, key, value))
        context = GridAttention.apply(*parts, of_heads(mask, *batch_and_heads), rounded(dropout))
        return context.unflatten(0, batch_and_heads)


def of_heads(mask, batch, heads):
    """A mask that broadcasts to [batch, heads, Tq, Tk], False at keys to ignore, or a number to add
    to the scores → what is added to the scores, [batch·heads, Tq or 1, Tk]. None → None"""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(
            ~mask, torch.finfo(torch.float32).min)
    return mask.expand(batch, heads, -1, -1).flatten(0, 1).float()


# ------------------------------------------------------------- all length buckets of packed rows

class Blocks:
    """Where the heads of packed rows are in blocks [batch, heads, tokens, d], one for each length
    bucket, which follow each other in one matrix [count, d].

    shapes                  (batch, tokens) of each block
    biases                  for each block [batch·heads, 1, tokens] or None
    sources [3·count]       for the blocks of query, then key, then value: each cell's row of the
                            matrix [N·3·heads, d]; padding has any row of its sequence
    cells [N·heads]         the other way: each row's cell of one part
    of_parts [N·3·heads]    and of all three"""

    def __init__(self, layout, heads):
        grids, self.heads = layout.length_buckets or [layout], heads
        self.shapes = [(grid.batch, grid.tokens) for grid in grids]
        self.biases = [of_heads(grid.key_bias(torch.float32), grid.batch, heads) for grid in grids]
        head, sources, self.cells, before = torch.arange(heads), [], None, 0
        cells = torch.empty(len(layout), heads, dtype=torch.int64)
        for grid in grids:
            rows = grid.cells if grid is layout else grid.rows[grid.cells]
            rows = rows.view(grid.batch, 1, grid.tokens) * 3 * heads + head[:, None]
            sources.append(rows.flatten())                   # [batch, heads, tokens] of queries
            sequence, token = grid.flat_index // grid.tokens, grid.flat_index % grid.tokens
            places = (sequence[:, None] * heads + head) * grid.tokens + token[:, None] + before
            cells[slice(None) if grid is layout else grid.rows] = places
            before += len(sources[-1])
        queries = torch.cat(sources)
        self.sources = torch.cat([queries, queries + heads, queries + 2 * heads])
        self.cells, self.count = cells.flatten(), before
        self.of_parts = (cells[:, None] + before * torch.arange(3)[:, None]).flatten()

    def parts(self, rows, memory):
        """rows [N·3·heads, d] → [3·count, d] in fp32, in this KeptMemory, if one is given"""
        if memory is None:
            return rows.index_select(0, self.sources).float()
        out = memory.empty((len(self.sources), rows.size(1)), torch.float32, rows.device)
        if rows.dtype == torch.float32:
            return torch.index_select(rows, 0, self.sources, out=out)
        return out.copy_(rows.index_select(0, self.sources))

    def split(self, matrix):
        """[cells, d] → for each block [batch·heads, tokens, d]"""
        sizes = [self.heads * batch * tokens for batch, tokens in self.shapes]
        return [part.view(self.heads * batch, tokens, -1)
                for part, (batch, tokens) in zip(matrix.split(sizes), self.shapes)]


class PackedAttention(torch.autograd.Function):
    """The products of query, key and value side by side, [N, 3·heads·d] → contexts [N, heads·d]:
    `attend` on each block, with one copy into all blocks and one out of them."""

    @staticmethod
    def forward(ctx, rows, blocks, p, memory):
        heads_of = rows.reshape(len(rows) * 3 * blocks.heads, -1)
        parts = blocks.parts(heads_of, None if any(ctx.needs_input_grad) else memory).chunk(3)
        contexts = torch.empty_like(parts[0])
        saved = [attend(*block, bias, p, out)[1] for *block, bias, out in zip(
            *map(blocks.split, parts), blocks.biases, blocks.split(contexts))]
        ctx.save_for_backward(*(tensor for each in saved for tensor in each))
        ctx.blocks, ctx.p, ctx.dtype = blocks, p, rows.dtype
        return contexts.index_select(0, blocks.cells).view(len(rows), -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        blocks, saved = ctx.blocks, iter(ctx.saved_tensors)
        of_contexts = torch.zeros(blocks.count, gradient.size(1) // blocks.heads).index_copy_(
            0, blocks.cells, gradient.reshape(len(blocks.cells), -1))        # 0 at padding
        found = torch.empty(3, *of_contexts.shape)
        with torch.autocast("cpu", enabled=False):
            for of_context, *out in zip(blocks.split(of_contexts), *map(blocks.split, found)):
                attend_backward(of_context, [next(saved) for _ in range(5)], ctx.p, out)
        rows = found.flatten(0, 1).index_select(0, blocks.of_parts)
        return rows.view(len(gradient), -1).to(ctx.dtype), None, None, None


def packed_cpu_attention(rows, layout, heads, dropout):
    """rows [N, 3·heads·d] of query, key and value side by side → contexts [N, heads·d]"""
    if heads not in layout.blocks:                           # once a batch for all layers
        layout.blocks[heads] = Blocks(layout, heads)
    with torch.autocast("cpu", enabled=False):
        return PackedAttention.apply(rows, layout.blocks[heads], rounded(dropout), layout.memory)
