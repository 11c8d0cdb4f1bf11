"""What binds pruning to runs: its flags, and what they do before the first training step."""

from dataclasses import dataclass

from bert import UserError
from common.flags import setting
from pruning.before_training import keep_heads, switch_off

GROUP = "pruning before training"


@dataclass
class Flags:
    mask_heads: str = setting("", "heads that are switched off, as in '0:3,7 5:0', which are heads "
                                  "3 and 7 of layer 0 and head 0 of layer 5", group=GROUP)
    keep_heads: str = setting("", "before training, remove the heads that matter least: keep so "
                                  "many (100), or a fraction (0.7)", group=GROUP)


def in_use(settings):
    return bool(settings.mask_heads or settings.keep_heads)


def check(settings):
    if settings.keep_heads and settings.encoders == "separate":
        raise UserError("--keep-heads removes heads of one encoder; leave out --encoders "
                        "separate")


def prepare(model, tokenizer, settings, device, edits=()):
    if not in_use(settings):
        return
    if settings.mask_heads:
        switch_off(model, settings)
    if settings.keep_heads:
        keep_heads(model, tokenizer, settings, device, edits)
