"""What --mask-heads, --keep-heads and --lora-top do to a model before its first training step; the
last two together are Pruning-Adapter (Wang, Yang & Sun 2023, arXiv 2303.14704). Importance is that
for the tasks' heads as they are, so start from a run (--from) that has learned the task: what a new
head reads by chance says nothing of what the task will need."""

from math import ceil

import lora
from bert import UserError
from multitask import distributed
from pruning.measure import across_tasks, measure, of_all_tasks
from pruning.removal import mask_heads, remove_heads
from pruning.selection import choose, parse_budget, parse_heads, ranks_by_importance


def switch_off(model, settings):
    """Heads that settings.mask_heads names do nothing from now on, but are still there."""
    heads, layers = parse_heads(settings.mask_heads.split(), "mask-heads")
    if layers:
        raise UserError(f"--mask-heads {settings.mask_heads!r} names a whole layer; write "
                        f"layer:head,head as in 0:3,7")
    for bert in model.encoders.values():
        mask_heads(bert, heads)


def keep_heads(model, tokenizer, settings, device, edits=()):
    """Remove the heads that matter least to all tasks together; settings.keep_heads says how many
    stay, as a number or as a fraction. Those of a run that goes on are in its edits."""
    bert, before = model.bert, [edit for edit in edits if edit["kind"] == "remove_heads"]
    if before:
        remove_heads(bert, {int(n): heads for n, heads in before[-1]["heads"].items()})
        return
    keep = parse_budget(settings.keep_heads, len(bert.layers) * bert.config.num_attention_heads,
                  "keep-heads")
    raw = measure(model.to(device), tokenizer, settings, settings.task_names, device)
    remove_heads(bert, distributed.broadcast(choose(of_all_tasks(raw), keep)))
    print(f"{keep} heads stay: {', '.join(str(layer.attention.num_heads) for layer in bert.layers)} "
          f"from the first layer to the last")
    model.cpu()


def lora_ranks(model, tokenizer, settings, device, edits=()):
    """→ {(layer, matrix): rank}: --lora-top in the third of the layers whose heads matter most, or
    the ranks of an adapter of the run that goes on."""
    going_on = [name for name in settings.training_groups if name in lora.adapter_names(model.bert)]
    if going_on:
        modules = lora.matrices(model.bert, going_on[0])
        return {where: module.rank for where, module in modules.items()}
    before = [edit for edit in edits if edit["method"] == "lora"]
    if before:
        return {(n, matrix): rank for n, matrix, rank in before[-1]["ranks"]}
    raw = measure(model.to(device), tokenizer, settings, settings.task_names, device)
    model.cpu()
    return distributed.broadcast(
        ranks_by_importance(across_tasks(raw), settings.lora_top, settings.lora,
                            ceil(len(model.bert.layers) / 3), settings.lora_targets.split(",")))
