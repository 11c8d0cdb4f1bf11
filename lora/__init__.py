"""LoRA: many tasks, one frozen BERT, and small adapters that come and go
(Hu et al. 2021, arXiv 2106.09685).

    y = W₀x + b + s·B(Ax)        W₀ [out, in] frozen, A [rank, in], B [out, rank], s = alpha/rank

    attach(bert, ("query", "value"), rank=8, adapters=("a", "b"))
    layout = Layout(attention_mask).served_by([("a", 5), ("b", 3)])   # 5 sequences, then 3 others

LoRA-XS (lora/xs.py) trains only an r × r matrix between the factors of W₀'s SVD; a kind of adapter
is a row in lora/kinds.py. Files are peft's (lora/files.py).

Left out: adapters on embeddings and the pooler, DoRA, biases, quantized weights, 8-bit optimizers.
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
from lora.kinds import KINDS, Kind
from lora.layers import LoRA, LoRALinear
from lora.targets import TARGETS, adapter_names, adapter_parameters, matrices
from lora.xs import LoRAXS

__all__ = ["KINDS", "Kind", "LoRA", "LoRALinear", "TARGETS", "LoRAXS", "activate", "attach",
           "by_adapter", "detach", "detached", "load", "matrices", "merge", "adapter_names", "adapter_parameters",
           "save", "train_only", "unmerge"]
