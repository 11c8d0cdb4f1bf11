"""LoRA in runs: its flags, and how a run's adapters are attached, saved, opened and swapped.

    run.json      among its edits {"method": "lora", "adapters": {"sst": "a", "para": "b", …}, …}
    adapters/b/   adapter_config.json and adapter_model.safetensors (peft's layout), and
                  heads.safetensors: heads and further modules of the tasks that b serves
"""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import lora
from bert.errors import UserError, check_known
from bert.files import read_tensors, write_tensors
from bert.matrices import MATRICES
from common.flags import command, setting
from common.tables import text_table
from lora.adapters import count, detached
from lora.files import base_fingerprint, write_adapter
from lora.kinds import KINDS
from multitask.settings import SHARED

HEADS = "heads.safetensors"
flag = partial(setting, group="LoRA: adapters on a frozen encoder")
encoder_alone = detached                 # a part of the binding (docs/methods.md)

EDIT = {"adapters": dict[str, str], "flags": dict[str, str],             # in run.json
        "ranks?": list[tuple[int, str, int]]}


@dataclass
class Flags:
    lora: int = flag(0, "train adapters of this rank on a frozen encoder (0: train the encoder "
                        "itself)", min=0)
    adapters: str = flag("separate", "an adapter for each task, one that all tasks share (shared), "
                                     "or groups, as in sst=a,para=b,sts=b")
    lora_targets: str = flag("query,key,value,attention_output",
                             f"matrices to adapt, of {', '.join(MATRICES)}")
    lora_kind: str = flag("lora", "LoRA, or LoRA-XS with Σ in A (xs) or in B (xs-out); --lr is by "
                                  "default the encoder's times "
                                  + ", ".join(f"{kind.lr_factor:g}" for kind in KINDS.values()),
                          KINDS)
    lora_alpha: float = flag(0, "scale adapters by alpha/rank (0: by 1)", min=0)
    lora_dropout: float = flag(0, "dropout on the input of adapters", min=0, max=1)
    lora_norms: bool = flag(False, "give each adapter LayerNorms of its own")
    lora_top: int = flag(0, "rank in the third of the layers whose heads matter most (0: --lora in "
                            "all)", min=0)

    @property
    def adapter_by_task(self):
        """{task: name of the adapter that serves it}"""
        tasks = self.task_names if self.lora else ()
        if not tasks or self.adapters in ("separate", SHARED):
            return {task: SHARED if self.adapters == SHARED else task for task in tasks}
        parts = [part.strip().partition("=") for part in self.adapters.split(",")]
        named = {task: name for task, equals, name in parts if equals}
        if set(named) != set(tasks) or len(named) < len(parts):
            raise UserError(f"--adapters {self.adapters!r} is not understood; write separate, "
                            f"shared, or task=adapter for each task ({', '.join(tasks)})")
        return {task: named[task] for task in tasks}

    @property
    def lr_factor(self):
        return KINDS[self.lora_kind].lr_factor if self.lora else 1.0

    @property
    def adapters_decay(self):
        return not self.lora or KINDS[self.lora_kind].decays


NEEDS = {f.name: ("--lora", lambda settings: bool(settings.lora)) for f in fields(Flags)
         if f.name != "lora"}


def in_use(settings):
    return bool(settings.lora)


def check(settings):
    """UserError if the settings exclude each other or name an unknown matrix."""
    if settings.lora and (settings.encoders == "separate" or settings.freeze):
        raise UserError("--lora freezes one encoder: leave out --encoders separate and --freeze")
    for matrix in settings.lora_targets.split(","):
        check_known(matrix, MATRICES, "matrix", where="--lora-targets")


def prepare(model, tokenizer, settings, device, edits=()):
    """Attach the adapters that the settings name, and freeze the rest of the encoder. Adapters of
    the source run are kept, or removed if no task uses them now."""
    attached = lora.adapter_names(next(iter(model.encoders.values())))
    if not settings.lora:
        raise UserError(f"the run has adapters ({', '.join(attached)}), which only --lora goes on "
                        f"with; add it")
    bert, by_task, ranks = model.bert, settings.adapter_by_task, settings.lora
    if settings.lora_top:
        from pruning.binding import ranks_before_training

        ranks = ranks_before_training(model, tokenizer, settings, device, edits)
    made_by = {name: flags for edit in bert.edits if edit["method"] == "lora"
               for name, flags in edit["flags"].items()}
    asked, needed = describe(settings), list(dict.fromkeys(by_task.values()))
    for name in attached:                    # a training group has its adapter's name
        if name not in needed:
            print(f"{name}: the run's adapter serves no task now and is removed")
            lora.detach(bert, name)
        elif name in settings.training_groups and made_by[name] != asked:
            raise UserError(f"the run's adapter {name} goes on as it is, which is {made_by[name]}, "
                            f"and the flags say {asked}; use its own, or name another (--adapters)")
        else:
            print(f"{name}: its adapter in the run")
    if new := [name for name in needed if name not in attached]:
        lora.attach(bert, settings.lora_targets.split(","), ranks, new, settings.lora_alpha,
                    settings.lora_dropout, settings.lora_norms, settings.lora_kind)
    lora.adapters.train_only(bert, settings.training_groups)
    edit = {"method": "lora", "kind": "adapters", "adapters": by_task,
            "flags": {name: made_by.get(name, asked) for name in needed}}
    if settings.lora_top:
        edit["ranks"] = [[*key, rank] for key, rank in ranks.items()]
    bert.edits = [other for other in bert.edits if other["method"] != "lora"] + [edit]
    model.adapters = by_task
    print(storage_table(count(bert, sum(t.numel() for t in model.own_state().values()))) + "\n")


def describe(settings):
    """The flags that define an adapter as text, with targets in the order of MATRICES."""
    flags = {f.name: getattr(settings, f.name) for f in fields(Flags) if f.name != "adapters"}
    targets = [matrix for matrix in MATRICES if matrix in flags["lora_targets"].split(",")]
    return command(Flags(**flags | {"lora_targets": ",".join(targets)}))


def storage_table(counts):
    """The result of adapters.count as a table: parameters, bytes in float32, percent."""
    rows = {"base": counts["base"], "heads": counts["heads"],
            **{f"adapter {name}": n for name, n in counts["adapters"].items()},
            "incremental": counts["incremental"], "bundled": counts["bundled"]}
    return text_table([["stored", "parameters", "bytes", "of the base"]] + [
        [name, f"{n:,}", f"{4 * n:,}", f"{n / counts['base']:.2%}"] for name, n in rows.items()])


def save(model, tasks, folder):
    """Write the adapters of these tasks, each with the own_state of all tasks that it serves."""
    base, saved = base_fingerprint(model.bert), {}
    for name in dict.fromkeys(model.adapters[task] for task in tasks):
        served = [task for task, adapter in model.adapters.items() if adapter == name]
        saved |= write_adapter(model.bert, name, folder / "adapters" / name, base)
        write_tensors(folder / "adapters" / name / HEADS, model.own_state(served))
    return saved


def weight_files(folder):
    return sorted((folder / "adapters").glob("*/adapter_model.safetensors"))


def restore(bert, edit, folder):
    for name in dict.fromkeys(edit["adapters"].values()):
        lora.load(bert, folder / "adapters" / name, name)


def swap(model, task, folder):
    """Use the adapter in another folder for `task`, with the head and further modules that the
    folder holds for it → whether there are any. Other tasks are not changed."""
    path = Path(folder, HEADS)
    found = read_tensors(path) if path.is_file() else {}
    own = {name: tensor for name, tensor in found.items() if task in name.split(".")[:2]}
    if found and not own:
        tasks = [other for other in model.heads
                 if any(other in name.split(".")[:2] for name in found)]
        raise UserError(f"{path} has no head for {task}; it has one for {', '.join(tasks)}")
    if own:
        model.load_own_state(own, path, [task])
    model.adapters[task] = lora.load(model.bert, folder, f"{task}-swapped",
                                     reads_pooler=model.pooling_name == "pooler")
    return bool(own)
