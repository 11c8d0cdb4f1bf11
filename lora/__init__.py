"""LoRA (Hu et al. 2021, arXiv 2106.09685): one frozen BERT serves many tasks by small adapters.

    y = W₀x + b + s·B(Ax)        W₀ [out, in] frozen, A [rank, in], B [out, rank], s = alpha/rank

    attach(bert, ("query", "value"), rank=8, adapters=("a", "b"))
    layout = Layout(attention_mask).with_adapters([("a", 5), ("b", 3)])    # 5 sequences, then 3

LoRA-XS (lora/layers.py) trains only an r × r matrix between the factors of W₀'s SVD. Each kind of
adapter is a row of lora/kinds.py. Adapters are saved in peft's layout (lora/files.py). Left out:
adapters on embeddings and the pooler, DoRA, biases, quantized weights, 8-bit optimizers."""

from lora.adapters import adapter_names, adapter_parameters, attach, detach, merge, unmerge
from lora.files import load, save
from lora.kinds import KINDS, Kind
from lora.layers import LoRA, LoRAXS
from lora.linear import LoRALinear
