"""Which adapter (lora/) serves which task of a run: one for each, one for all, or groups.

    run.json      among its edits {"kind": "lora", "adapters": {"sst": "a", "para": "b", …}}
    adapters/b/   adapter_config.json, adapter_model.safetensors (peft's layout, the LayerNorms in
                  it), heads.safetensors: the heads of the tasks that b serves
"""

from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import cat

import lora
from bert import Layout, UserError
from bert.checkpoint import check_names_and_shapes
from bert.files import read_tensors, write_tensors
from lora.files import base_checksum
from lora.places import adapted
from multitask.data import Batch

SHARED = "shared"                # the name of the one encoder, or adapter, that all tasks share
HEADS = "heads.safetensors"


KINDS = {"lora": lora.LoRA, "xs": lora.XS, "xs-out": partial(lora.XS, sigma="out"),
         "xs-random": lora.RandomXS}


def serving(bert):
    """{task: adapter} by the model's edits."""
    return {task: name for edit in bert.edits if edit["kind"] == "lora"
            for task, name in edit["adapters"].items()}


def attach(model, settings, ranks=None):
    """Give the encoder the adapters that the settings name, and freeze all else in it. Those that
    it has already, of a run that this one starts from, go on as they are. ranks {(layer, matrix):
    rank}: where they differ."""
    bert, serves = model.bert, settings.adapters_of_tasks
    wanted = dict.fromkeys(serves.values())
    for name in lora.names(bert):
        if name not in wanted:
            lora.detach(bert, name)
            continue
        if name in settings.units:
            check_goes_on(bert, name, settings)
        print(f"{name}: its adapter in the run")
    new = [name for name in wanted if name not in lora.names(bert)]
    if new:
        lora.attach(bert, settings.lora_targets.split(","), ranks or settings.lora, new,
                    settings.lora_alpha or None, settings.lora_dropout, settings.lora_norms,
                    KINDS[settings.lora_kind])
    lora.train_only(bert, settings.units)
    bert.edits = [edit for edit in bert.edits if edit["kind"] != "lora"]
    edit = {"kind": "lora", "adapters": serves}
    if ranks:
        edit["ranks"] = [[*place, rank] for place, rank in ranks.items()]
    bert.edits.append(edit)
    model.adapters = serves


def check_goes_on(bert, name, settings):
    """A run's adapter that is trained on is of the kind, rank and matrices that the flags say:
    learning rate and weight decay follow them."""
    adapters = {place: module.adapters[name] for place, module in adapted(bert).items()
                if isinstance(module, lora.LoRALinear) and module.adapters[name] is not None}
    first = next(iter(adapters.values()))
    kind = "xs" if isinstance(first, lora.XS) else "lora"
    ranks = sorted({adapter.rank for adapter in adapters.values()})
    targets = [target for target, inner in lora.TARGETS.items()
               if any(place.endswith(inner) for place in adapters)]
    if (settings.lora_kind.split("-")[0] != kind or settings.lora not in ranks or
            set(settings.lora_targets.split(",")) != set(targets)):
        raise UserError(f"the run's adapter {name} is of kind {kind} and rank "
                        f"{' and '.join(map(str, ranks))}, on {','.join(targets)}, and --lora-kind "
                        f"{settings.lora_kind} --lora {settings.lora} --lora-targets "
                        f"{settings.lora_targets} describe another; give it its own flags, or name "
                        f"a new one with --adapters")
    if settings.lora_top:
        raise UserError(f"--lora-top chooses the ranks of new adapters, and the run's {name} goes "
                        f"on as it is; leave it out, or merge the run first (python -m lora merge)")


def refuse_left_over(model):
    """A run's adapters are not dropped, nor the encoder below them trained, without a word."""
    for bert in model.encoders.values():
        if lora.names(bert):
            raise UserError(f"the run has adapters ({', '.join(lora.names(bert))}), which only "
                            f"--lora goes on with; add it")


def save(model, tasks, folder):
    """Write the adapters of these tasks, each with the heads of all tasks it serves."""
    base = base_checksum(model.bert) if model.adapters else None
    for name in dict.fromkeys(model.adapters[task] for task in tasks if task in model.adapters):
        to = folder / "adapters" / name
        lora.save(model.bert, name, to, base)
        write_tensors(to / HEADS, {key: tensor for key, tensor in model.heads.state_dict().items()
                                   if model.adapters.get(key.partition(".")[0]) == name})


def weight_files(folder):
    return sorted((folder / "adapters").glob("*/adapter_model.safetensors"))


def restore(bert, edit, folder):
    """Attach a saved run's adapters again."""
    for name in dict.fromkeys(edit["adapters"].values()):
        lora.load(bert, folder / "adapters" / name, name)


def swap(model, task, folder):
    """Serve a task by the adapter in another folder, and by that folder's head for the task if it
    has one → whether it has. Nothing of the other tasks is touched."""
    path = Path(folder) / HEADS
    heads = read_tensors(path) if path.is_file() else {}
    head = {key.removeprefix(f"{task}."): tensor for key, tensor in heads.items()
            if key.startswith(f"{task}.")}
    if heads and not head:
        raise UserError(f"{path} has no head for {task}; it has one for "
                        f"{', '.join(dict.fromkeys(key.partition('.')[0] for key in heads))}")
    if head:
        check_names_and_shapes(path, model.heads[task].state_dict(), head)
    model.adapters[task] = lora.load(model.bert, folder, f"{task}-swapped")
    if head:
        model.heads[task].load_state_dict(head)
    return bool(head)


def mixed(model, batches, device):
    """{task: Batch} → {task: outputs}: one encoder pass for all tasks, in which each sequence is
    served by its own task's adapter."""
    layouts = [batch.layout for batch in batches.values()]
    width = max(layout.tokens for layout in layouts)

    def stack(grids):
        return cat([F.pad(grid, (0, width - grid.size(1))) for grid in grids])

    layout = Layout(stack(layout.mask for layout in layouts)).served_by(
        [(model.adapters.get(task), batch.layout.batch) for task, batch in batches.items()])
    together = Batch(stack(batch.input_ids for batch in batches.values()),
                     stack(batch.token_type_ids for batch in batches.values()),
                     layout, layout.first(), None).to(device)
    vectors = model.vectors(SHARED, together).split([layout.batch for layout in layouts])
    return {task: model.answer(task, own) for task, own in zip(batches, vectors)}
