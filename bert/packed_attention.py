"""Attention on a GPU over packed rows, without a padded grid.

A fused kernel that takes sequences of different lengths finds each one by its offset: sequence i
has the rows offsets[i] to offsets[i + 1]. The grid of bert/attention.py needs a mask instead, which
rules out the fastest kernel, flash attention (Dao 2023, arXiv 2307.08691), and padding is computed.

    context = packed_attention(query, key, value, num_heads, query_layout, key_layout, dropout)

The result is None where no kernel fits, or where it does not give the equation's numbers, which is
tried once; attention then takes the grid. Within
`torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` none fits: a comparison needs no other switch.

The kernels are those that F.scaled_dot_product_attention runs for nested tensors, called directly:
for three nested tensors Python takes 1 ms and more (benchmarks/packed_attention.py). Left out:
second derivatives, which neither kernel has.
"""

import warnings
from functools import cache

import torch

from bert.errors import one_line

HALF = (torch.bfloat16, torch.float16)
HEAD_SIZES = range(8, 129, 8)                                # that both kernels take
LEAST_CAPABILITY = (8, 0)                                    # of the GPU: Ampere or later


def packed_attention(query, key, value, num_heads, query_layout, key_layout, dropout=0.0):
    """softmax(QKᵀ/√d) V of each sequence by itself, or None if only the grid can compute it.

    query is [M, heads·d], the rows of `query_layout`, which may be a selection of the N rows of
    `key_layout`; key and value are [N, heads·d] → [M, heads·d]. `dropout` is the probability to
    drop a number of the softmax. Nothing here waits for the GPU."""
    if query.device.type != "cuda":
        return None
    dtype, head_size = _computing_dtype(query), query.size(1) // num_heads
    kernel = choose_kernel(query.device, dtype, head_size, query_layout, key_layout)
    if kernel is None or not is_right(kernel, query.device, dtype, head_size):
        return None
    rows = (part.to(dtype).unflatten(-1, (num_heads, head_size)) for part in (query, key, value))
    return kernel(*rows, query_layout.offsets, key_layout.offsets,
                  query_layout.tokens, key_layout.tokens, dropout).flatten(1)


def _computing_dtype(rows):
    """The dtype in which autocast runs attention; float64 is left as it is."""
    kind = rows.device.type
    if torch.is_autocast_enabled(kind) and rows.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return rows.dtype


def choose_kernel(device, dtype, head_size, query_layout, key_layout):
    """→ flash_kernel, efficient_kernel, or None where the grid is needed, or as good because no
    cell is padding. A DenseLayout has no offsets. A selection may have no row of a sequence, which
    the kernels' nested form refuses."""
    if query_layout.offsets is None or key_layout.offsets is None or not query_layout.min_rows:
        return None
    if query_layout.no_padding and key_layout.no_padding:
        return None
    if head_size not in HEAD_SIZES or not torch.cuda.is_available():
        return None
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return None
    if (dtype in HALF and torch.backends.cuda.flash_sdp_enabled()
            and torch.backends.cuda.is_flash_attention_available()):
        return flash_kernel
    if dtype in (*HALF, torch.float32) and torch.backends.cuda.mem_efficient_sdp_enabled():
        return efficient_kernel
    return None


def flash_kernel(query, key, value, query_offsets, key_offsets, max_query, max_key, dropout):
    """Flash attention in half precision. query [M, heads, d], key and value [N, heads, d] →
    [M, heads, d]. The offsets are int32 [batch + 1] on the GPU, max_query and max_key (int) are the
    largest numbers of rows that a sequence may have."""
    return torch.ops.aten._flash_attention_forward(
        query, key, value, query_offsets, key_offsets, max_query, max_key, dropout,
        False, False)[0]                                     # is_causal, return_debug_mask


def efficient_kernel(query, key, value, query_offsets, key_offsets, max_query, max_key, dropout):
    """Memory-efficient attention (Rabe & Staats 2021, arXiv 2112.05682), which takes float32 too.
    The arguments are those of flash_kernel."""
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    return torch.ops.aten._efficient_attention_forward(
        *(part[None] for part in (query, key, value)), None, query_offsets, key_offsets,
        max_query, max_key, dropout, 0, learns)[0][0]        # bias None, no causal mask, logsumexp


@cache
def is_right(kernel, device, dtype, head_size):
    """Whether the kernel gives softmax(QKᵀ/√d) V and its gradient here, tried on three short
    sequences. The operations are torch's own, but not of its public interface, so another version
    may have changed them: then a warning says so."""
    counts, heads = (5, 1, 9), 2
    offsets = torch.tensor([0, 5, 6, 15], dtype=torch.int32, device=device)
    numbers = torch.arange(3 * 15 * heads * head_size, dtype=torch.float32).sin()
    rows = [part.clone().requires_grad_() for part in
            numbers.to(device, dtype).view(3, 15, heads, head_size)]
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            found = kernel(*rows, offsets, offsets, 9, 9, 0.0)
            expected = torch.cat([
                torch.softmax(q @ k.mT / head_size ** 0.5, dim=-1) @ v for q, k, v in
                zip(*([part.float().transpose(0, 1) for part in whole.split(counts)]
                      for whole in rows))], dim=1).transpose(0, 1)
            gradients = [torch.autograd.grad(out.float().square().sum(), rows)
                         for out in (found, expected)]
        wrong = max((a.float() - b.float()).abs().max().item()
                    for a, b in zip((found, *gradients[0]), (expected, *gradients[1])))
        if wrong < 0.05:
            return True
        problem = f"numbers differ by {wrong:.2g}"
    except (RuntimeError, TypeError) as error:
        problem = one_line(str(error))
    warnings.warn(f"attention on packed rows does not work with torch {torch.__version__} on this "
                  f"GPU ({problem}); attention takes the padded grid", stacklevel=2)
    return False
