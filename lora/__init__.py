"""LoRA: one frozen BERT serves many tasks, each with a small adapter beside its matrices
(Hu et al. 2021, arXiv 2106.09685).

    y = W₀x + b + s·B(Ax)        W₀ [out, in] frozen, A [rank, in], B [out, rank], s = alpha/rank

    attach(bert, ("query", "value"), rank=8, adapters=("a", "b"))
    layout = Layout(attention_mask).with_adapters([("a", 5), ("b", 3)])    # 5 sequences, then 3

LoRA-XS (lora/xs.py) trains only an r × r matrix between the factors of W₀'s SVD. Each kind of
adapter is a row of lora/kinds.py. Adapters are saved in peft's layout (lora/files.py).

Left out: adapters on embeddings and the pooler, DoRA, biases, quantized weights, 8-bit optimizers.
"""

from lora.adapters import (
    activate,
    adapter_names,
    adapter_parameters,
    attach,
    detach,
    detached,
    matrices,
    merge,
    train_only,
    unmerge,
)
from lora.files import load, save
from lora.kinds import KINDS, Kind
from lora.layers import LoRA, LoRALinear
from lora.xs import LoRAXS

__all__ = ["KINDS", "Kind", "LoRA", "LoRALinear", "LoRAXS", "activate", "adapter_names",
           "adapter_parameters", "attach", "detach", "detached", "load", "matrices", "merge",
           "save", "train_only", "unmerge"]
