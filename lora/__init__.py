"""LoRA: many tasks, one frozen BERT, and small adapters that come and go
(Hu et al. 2021, arXiv 2106.09685).

    y = W₀x + b + s·B(Ax)        W₀ [out, in] frozen, A [rank, in], B [out, rank], s = alpha/rank

    attach(bert, ("query", "value"), rank=8, adapters=("a", "b"))
    layout = Layout(attention_mask).served_by([("a", 5), ("b", 3)])   # 5 sequences, then 3 others

LoRA-XS (lora/xs.py) trains only an r × r matrix between the factors of W₀'s SVD. Files are peft's
(lora/files.py).

Left out: adapters on embeddings and the pooler, DoRA, biases, quantised weights, 8-bit optimizers.
"""

from lora.adapters import (
    activate,
    attach,
    by_adapter,
    detach,
    detached,
    merge,
    train_only,
    unmerge,
)
from lora.files import load, save
from lora.layers import LoRA, LoRALinear
from lora.places import TARGETS, names, parameters
from lora.xs import XS, RandomXS

__all__ = ["LoRA", "LoRALinear", "RandomXS", "TARGETS", "XS", "activate", "attach", "by_adapter",
           "detach", "detached", "load", "merge", "names", "parameters", "save", "train_only",
           "unmerge"]
