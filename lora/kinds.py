"""The kinds of adapters, one row each. To add one, write its nn.Module as in lora/layers.py and
add its row: training, saving, opening, merging and `--lora-kind` read this table.

    KINDS["scaled"] = Kind(Scaled, "SCALED", {"v": "scaled_v"}, lr_factor=10, decays=False)
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bert.errors import UserError, check_known
from lora.layers import LoRA, LoRAXS


class Kind(NamedTuple):
    """make(weight [out, in], rank, alpha, dropout) returns one matrix's adapter module, with the
    attributes rank, alpha and dropout. Its forward(rows [n, in], out [n, out]) returns the
    layer's new output [n, out], and its merge_into(base) changes the frozen layer likewise."""

    make: Callable
    peft_type: str                                       # in adapter_config.json
    tensors: dict                                        # {parameter: its name in the file}
    fields: dict = {}                                    # further fields of adapter_config.json
    lr_factor: float = 20                                # default learning rate / the encoder's
    decays: bool = True                                  # whether weight decay acts on its matrices


KINDS = {
    "lora": Kind(LoRA, "LORA", {"A": "lora_A.weight", "B": "lora_B.weight"}),
    "xs": Kind(LoRAXS, "LORA_XS", {"R": "lora_R.weight"}, {"sigma": "in", "init": "svd"},
               lr_factor=40, decays=False),              # R starts near 0 and stays small
    "xs-out": Kind(partial(LoRAXS, sigma="out"), "LORA_XS", {"R": "lora_R.weight"},
                   {"sigma": "out", "init": "svd"}, lr_factor=40, decays=False),
}


def make_adapter(kind, weight, rank, alpha, dropout):
    """A new adapter of this kind for one matrix. Its attribute `kind` is the row's name."""
    check_known(kind, KINDS, "kind of adapter")
    module = KINDS[kind].make(weight, rank=rank, alpha=alpha, dropout=dropout)
    trained, stored = dict(module.named_parameters()), KINDS[kind].tensors
    if trained.keys() != stored.keys():
        raise UserError(f"adapters of kind {kind!r} train {', '.join(trained)}, and the row in "
                        f"lora/kinds.py stores {', '.join(stored)}; name all in its `tensors`")
    module.kind = kind
    return module
