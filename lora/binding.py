"""What binds LoRA to runs: its flags, and which adapter serves which task.

    run.json      among its edits {"method": "lora", "adapters": {"sst": "a", "para": "b", …}}
    adapters/b/   adapter_config.json, adapter_model.safetensors (peft's layout, the LayerNorms in
                  it), heads.safetensors: the heads of the tasks that b serves
"""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import cat

import lora
from bert import Layout, UserError
from bert.checkpoint import check_names_and_shapes
from bert.errors import check_known
from bert.files import read_tensors, write_tensors
from common.flags import command, setting
from lora import KINDS, TARGETS, accounting
from lora.adapters import detached as encoder_alone  # noqa: F401  part of the binding
from lora.files import base_checksum
from lora.layers import AdaptedLayerNorm
from lora.targets import adapter_layers
from multitask.data import Batch
from multitask.settings import SHARED

HEADS = "heads.safetensors"
GROUP = "LoRA: adapters on a frozen encoder"


@dataclass
class Flags:
    lora: int = setting(0, "train adapters of this rank (LoRA) on a frozen encoder (0: train the "
                           "encoder itself)", min=0, group=GROUP)
    adapters: str = setting("separate", "with --lora: an adapter for each task, one that all share "
                                        "(shared), or groups, as in sst=a,para=b,sts=b",
                            group=GROUP)
    lora_targets: str = setting("query,key,value,attention_output", "matrices that are adapted, of "
                                + ", ".join(TARGETS), group=GROUP)
    lora_kind: str = setting("lora", "LoRA, or LoRA-XS with Σ in A (xs) or in B (xs-out); the "
                                     "kinds of lora/kinds.py", KINDS, group=GROUP)
    lora_alpha: float = setting(0, "the adapter is scaled by alpha/rank (0: by 1)", min=0,
                                group=GROUP)
    lora_dropout: float = setting(0, "dropout of what goes into an adapter", min=0, max=1,
                                  group=GROUP)
    lora_norms: bool = setting(False, "train LayerNorms too; each adapter has its own",
                               group=GROUP)
    lora_top: int = setting(0, "rank in the third of the layers whose heads matter most (0: --lora "
                               "in all)", min=0, group=GROUP)

    @property
    def adapter_by_task(self):
        """{task: the adapter that serves it}"""
        if not self.lora:
            return {}
        tasks = self.task_names
        if self.adapters in ("separate", "shared"):
            return {task: task if self.adapters == "separate" else SHARED for task in tasks}
        serves = dict(part.strip().split("=", 1) for part in self.adapters.split(",")
                      if "=" in part)
        if set(serves) != set(tasks) or len(serves) < len(self.adapters.split(",")):
            raise UserError(f"--adapters {self.adapters!r} is not understood; write separate, "
                            f"shared, or task=adapter for each task ({', '.join(tasks)})")
        return {task: serves[task] for task in tasks}

    @property
    def lr_factor(self):
        return KINDS[self.lora_kind].lr_factor if self.lora else 1.0

    @property
    def adapters_decay(self):
        return not self.lora or KINDS[self.lora_kind].decays


NEEDS = {name: ("--lora", lambda s: bool(s.lora)) for name in Flags.__dataclass_fields__
         if name != "lora"}


def in_use(settings):
    return bool(settings.lora)


def check(settings):
    if not settings.lora:
        return
    if settings.encoders == "separate" or settings.freeze:
        raise UserError("--lora trains adapters of one encoder that stays as it is: leave out "
                        "--encoders separate and --freeze")
    for target in settings.lora_targets.split(","):
        check_known(target, TARGETS, "matrix", where="--lora-targets")


def prepare(model, tokenizer, settings, device, edits=()):
    """Attach the adapters. UserError where the run has adapters and --lora does not go on with
    them: they are not dropped, nor is the encoder below them trained."""
    left = [name for bert in model.encoders.values() for name in lora.adapter_names(bert)]
    if not settings.lora:
        raise UserError(f"the run has adapters ({', '.join(left)}), which only --lora goes on "
                        f"with; add it")
    ranks = None
    if settings.lora_top:
        from pruning.before_training import lora_ranks

        ranks = lora_ranks(model, tokenizer, settings, device, edits)
    attach(model, settings, ranks)
    print(accounting.table(accounting.count(model.bert, model.heads)) + "\n")


def attach(model, settings, ranks=None):
    """Give the encoder the adapters that the settings name, and freeze all else in it. Those that
    it has already, of a run that this one starts from, go on as they are. ranks {(layer, matrix):
    rank}: where they differ."""
    bert, serves = model.bert, settings.adapter_by_task
    wanted = dict.fromkeys(serves.values())
    for name in lora.adapter_names(bert):
        if name not in wanted:
            print(f"{name}: the run's adapter, which serves no task now, is left out")
            lora.detach(bert, name)
            continue
        if name in settings.training_groups:
            check_goes_on(bert, name, settings)
        print(f"{name}: its adapter in the run")
    new = [name for name in wanted if name not in lora.adapter_names(bert)]
    if new:
        lora.attach(bert, settings.lora_targets.split(","), ranks or settings.lora, new,
                    settings.lora_alpha or None, settings.lora_dropout, settings.lora_norms,
                    settings.lora_kind)
    lora.train_only(bert, settings.training_groups)
    bert.edits = [edit for edit in bert.edits if edit["method"] != "lora"]
    edit = {"method": "lora", "kind": "adapters", "adapters": serves}
    if ranks:
        edit["ranks"] = [[*place, rank] for place, rank in ranks.items()]
    bert.edits.append(edit)
    model.adapters = serves


def check_goes_on(bert, name, settings):
    """UserError where flags describe another adapter than this one of the run, which trains on."""
    has = description(bert, name, settings)
    given = {field: getattr(settings, field) for field in has}
    if has != given:
        own, other = (command(type(settings)(**flags)) for flags in (has, given))
        raise UserError(f"the run's adapter {name} goes on as it is, which is {own}, and the flags "
                        f"say {other}; give it its own, or name a new adapter with --adapters")


def description(bert, name, settings):
    """{field of Settings: value} that describes an adapter. Of several ways to write the same, such
    as the targets in another order, the one in `settings`."""
    places = lora.matrices(bert, name)
    modules, first = places.values(), next(iter(places.values()))
    ranks = sorted({module.rank for module in modules})
    if {settings.lora, settings.lora_top or settings.lora} == set(ranks):
        ranks = [settings.lora, settings.lora_top]
    targets = [target for target in lora.TARGETS if target in {target for _, target in places}]
    if set(targets) == set(settings.lora_targets.split(",")):
        targets = settings.lora_targets.split(",")
    return {
        "lora": ranks[0], "lora_top": ranks[-1] if len(ranks) > 1 else 0,
        "lora_targets": ",".join(targets), "lora_kind": first.kind,
        "lora_alpha": next((alpha for alpha in (settings.lora_alpha, 0)
                            if all(module.alpha == (alpha or module.rank) for module in modules)),
                           first.alpha),
        "lora_dropout": first.dropout,
        "lora_norms": any(isinstance(module, AdaptedLayerNorm) and module.adapters[name] is not None
                          for module in adapter_layers(bert).values())}


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
    model.adapters[task] = lora.load(model.bert, folder, f"{task}-swapped",
                                     pooler_read=model.read == "pooler")
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

    layout = Layout(stack(layout.mask for layout in layouts)).with_adapters(
        [(model.adapters.get(task), batch.layout.batch) for task, batch in batches.items()])
    together = Batch(stack(batch.input_ids for batch in batches.values()),
                     stack(batch.token_type_ids for batch in batches.values()),
                     layout, layout.cls_rows(), None).to(device)
    vectors = model.vectors(SHARED, together).split([layout.batch for layout in layouts])
    return {task: model.apply_head(task, own) for task, own in zip(batches, vectors)}
