"""Pruning before training: --mask-heads and --keep-heads, and the ranks of --lora-top. The last two
together are Pruning-Adapter (Wang, Yang & Sun 2023, arXiv 2303.14704). Importance is measured
through the tasks' output heads, which are random at first: start from a trained run (--from)."""

from dataclasses import dataclass
from math import ceil

from bert import UserError
from common.flags import setting
from multitask import distributed
from pruning.measure import measure, of_all_tasks, training_sample
from pruning.removal import mask_heads, remove_heads
from pruning.selection import choose, parse_budget, parse_heads, ranks_by_importance


@dataclass
class Flags:
    mask_heads: str = setting("", "heads to switch off, as in '0:3,7 5:0': heads 3 and 7 of layer "
                                  "0 and head 0 of layer 5", group="pruning")
    keep_heads: str = setting("", "before training, remove the least important heads and keep "
                                  "this number (100) or fraction (0.7)", group="pruning")

EDIT = {"kind": str, "heads?": dict[int, list[int]], "neurons?": dict[int, int],    # in run.json
        "layers?": list[int], "netcut?": dict}


def in_use(settings):
    return bool(settings.mask_heads or settings.keep_heads)


def check(settings):
    if settings.keep_heads and settings.encoders == "separate":
        raise UserError("--keep-heads removes heads of one encoder; leave out --encoders separate")


def prepare(model, tokenizer, settings, device, edits=()):
    """Mask heads in every encoder; then remove the heads that matter least to all tasks together.
    When resuming, `edits` supplies the recorded choice, so nothing is measured again. Settings of a
    run that used neither flag lack these fields, hence getattr."""
    masked = getattr(settings, "mask_heads", "")
    heads, layers = parse_heads(masked.split(), "mask-heads")
    if layers:
        raise UserError(f"--mask-heads {masked!r} names a whole layer; write layer:head,head as in "
                        f"0:3,7")
    for bert in model.encoders.values() if masked else ():
        mask_heads(bert, heads)
    if not getattr(settings, "keep_heads", ""):
        return
    bert, recorded = model.bert, [edit for edit in edits if edit.get("kind") == "remove_heads"]
    if recorded:
        remove_heads(bert, {int(layer): heads for layer, heads in recorded[-1]["heads"].items()})
        return
    keep = parse_budget(settings.keep_heads, len(bert.layers) * bert.config.num_attention_heads,
                        "keep-heads")
    raw = measure_before_training(model, tokenizer, settings, device)
    remove_heads(bert, distributed.broadcast(choose(of_all_tasks(raw), keep)))
    print(f"{keep} heads stay, by layer: {[layer.attention.num_heads for layer in bert.layers]}")


def measure_before_training(model, tokenizer, settings, device):
    """→ {task: raw importance of heads}; the model is on the CPU before and after."""
    splits = training_sample(tokenizer, settings, settings.task_names)
    raw = measure(model.to(device), splits, settings, device)
    model.cpu()
    return raw


def ranks_before_training(model, tokenizer, settings, device, edits=()):
    """→ {(layer, matrix): rank} of the adapters: settings.lora_top in the third of the layers whose
    heads matter most, settings.lora in the others. An adapter that is there keeps its ranks; when
    resuming, `edits` supplies the recorded ones."""
    import lora  # not needed without adapters

    kept = [name for name in settings.training_groups if name in lora.adapter_names(model.bert)]
    if kept:
        modules = lora.adapters.matrices(model.bert, kept[0])
        return {target: module.rank for target, module in modules.items()}
    recorded = [edit for edit in edits if edit["method"] == "lora"]
    if recorded:
        return {(layer, matrix): rank for layer, matrix, rank in recorded[-1]["ranks"]}
    raw = measure_before_training(model, tokenizer, settings, device)
    of_all = sum(values / values.nan_to_num().sum() for values in raw.values())
    return distributed.broadcast(
        ranks_by_importance(of_all, settings.lora_top, settings.lora,
                            ceil(len(model.bert.layers) / 3), settings.lora_targets.split(",")))
