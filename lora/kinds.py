"""The kinds of adapters, one row each. To add one: write its module, as in lora/layers.py, and add
its row; training, saving, opening, merging and `--lora-kind` take the rest from here.

    KINDS["scaled"] = Kind(Scaled, "SCALED", {"v": "scaled_v"}, lr_factor=10, decays=False)
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bert import UserError
from bert.errors import did_you_mean
from lora.layers import LoRA
from lora.xs import LoRAXS


class Kind(NamedTuple):
    """make(weight [out, in], rank, alpha, dropout) returns the adapter of one matrix: a module that
    keeps rank, alpha and dropout, computes the layer's new output in forward(rows [n, in],
    out [n, out]) → [n, out], and writes itself into the frozen layer in merge_into(base)."""

    make: Callable
    peft_type: str                                       # in adapter_config.json
    tensors: dict                                        # {parameter: its name in the file}
    fields: dict = {}                                    # of adapter_config.json, this kind's alone
    lr_factor: float = 20                                # default learning rate, × the encoder's
    decays: bool = True                                  # weight decay acts on its matrices


KINDS = {
    "lora": Kind(LoRA, "LORA", {"A": "lora_A.weight", "B": "lora_B.weight"}),
    "xs": Kind(LoRAXS, "LORA_XS", {"R": "lora_R.weight"}, {"sigma": "in", "init": "svd"},
               lr_factor=40, decays=False),              # R is next to 0 and small for its purpose
    "xs-out": Kind(partial(LoRAXS, sigma="out"), "LORA_XS", {"R": "lora_R.weight"},
                   {"sigma": "out", "init": "svd"}, lr_factor=40, decays=False),
}


def make_adapter(kind, weight, rank, alpha, dropout):
    """A new adapter of this kind for one matrix; its attribute `kind` is the row's name."""
    if kind not in KINDS:
        raise UserError(f"there is no kind of adapter {kind!r}{did_you_mean(str(kind), KINDS)}; "
                        f"there are {', '.join(KINDS)}")
    adapter = KINDS[kind].make(weight, rank=rank, alpha=alpha, dropout=dropout)
    trained = [name for name, _ in adapter.named_parameters()]
    if set(trained) != set(KINDS[kind].tensors):
        raise UserError(f"adapters of kind {kind!r} train {', '.join(trained)}, and the row in "
                        f"lora/kinds.py stores {', '.join(KINDS[kind].tensors)}; name each "
                        f"parameter in its `tensors`")
    adapter.kind = kind
    return adapter
