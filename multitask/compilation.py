"""--compile: torch.compile for an encoder's layers, all but their attention.

What is compiled works on rows: residuals, LayerNorms, feed-forward networks. The number of rows N
differs in every batch, so the graphs are made for any N (`dynamic=True`), and layers of the same
shape share them. Attention has kernels of its own and grids that differ: it runs as it is.

    check_compilation(model, device)
    with compiled_layers():
        …                                                    # train, evaluate
"""

from contextlib import contextmanager

import torch

from bert import UserError
from bert.attention import SelfAttention
from bert.errors import one_line
from bert.model import Bert, BertLayer, FeedForward

BACKEND = "inductor"
GRAPHS = 128             # of one function, then it runs as it is; a pruned model has many shapes


def check_compilation(model, device):
    """UserError if nothing of the model can be compiled, or nothing can be compiled here. To find
    out, a small function is, which takes some seconds."""
    layers = [layer for bert in model.encoders.values() for layer in bert.layers]
    if not any(type(layer.ffn) is FeedForward for layer in layers):
        raise UserError("--compile has nothing to compile: in every layer another module, such as "
                        "experts, is in the feed-forward network's place; leave it out")
    try:
        torch.compile(lambda x: x.sin() + 1, backend=BACKEND)(torch.zeros(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        needs = "triton" if device.type == "cuda" else "a C++ compiler, such as g++,"
        cause = one_line(" ".join(str(error).split("\n\n")[0].split()))
        raise UserError(f"--compile: torch.compile does not work here ({cause}). It needs {needs} "
                        f"and a version of Python that torch supports; install that, or leave "
                        f"--compile out") from error


@contextmanager
def compiled_layers(wanted=True):
    """If `wanted`, within this context the layers of every Bert that have an ordinary feed-forward
    network run compiled. The first pass of each kind, in training, in evaluation, compiles first.
    The outputs are the same up to rounding, but dropout draws other numbers."""
    if not wanted:
        yield
        return
    from torch._dynamo import config  # only now: it takes a second

    plain, attention, products = BertLayer.forward, SelfAttention.forward, Bert.with_products
    compiled = torch.compile(plain, dynamic=True, backend=BACKEND)

    def forward(layer, *given, **options):
        run = compiled if type(layer.ffn) is FeedForward else plain
        return run(layer, *given, **options)

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    BertLayer.forward, SelfAttention.forward = forward, torch.compiler.disable(attention)
    Bert.with_products = lambda bert, layout, output_rows, start: (layout, output_rows)
    try:
        with config.patch({limit: GRAPHS, "specialize_float": True}):    # dropout's probability
            yield
    finally:
        BertLayer.forward, SelfAttention.forward, Bert.with_products = plain, attention, products
