"""Every setting of a training run, once: the dataclass is the default, the flag and the help
text."""

import math
from dataclasses import dataclass, fields

from bert import UserError
from bert.cli import did_you_mean
from bert.settings import check, flag_of, setting
from lora import KINDS, TARGETS
from multitask.heads import HEADS
from multitask.model import READS, SHARED
from multitask.sampling import SAMPLERS
from multitask.tasks import TASKS

UNFROZEN = ("an encoder that is trained (no --freeze)", lambda s: not s.freeze)
NEEDS = {              # setting → what it has an effect with, (settings) → whether that is so
    "sampling": ("two tasks or more that are trained", lambda s: len(s.learnt) > 1),
    "annealing": ("--sampling annealed", lambda s: s.sampling == "annealed"),
    "surgery_mean": ("--surgery", lambda s: s.surgery != "none"),
    "pairs": ("a task of pairs", lambda s: any(TASKS[task].pair for task in s.task_names)),
    "head_dropout": ("an mlp head that is trained", lambda s: not {
        s.head_kinds[task] for task in s.learnt} <= {"linear", "cosine", "relu-cosine"}),
    "loss": ("a graded task that is trained", lambda s: any(
        s.loss in TASKS[task].other_losses for task in s.learnt)),
    "lr": ("an encoder that is trained (no --freeze) at no --task-lr of its own", lambda s: not (
        s.freeze or {tasks[0] for tasks in s.units.values()} <= set(s.of_tasks("task_lr", float)))),
    "task_lr": UNFROZEN,
    "layer_decay": UNFROZEN,
    "patience": ("more epochs than it waits for", lambda s: not 0 < s.epochs <= s.patience),
    "overwrite": ("--out", lambda s: s.out),
}


def without_effect(settings):
    """[setting]: those that are not at their default and change nothing beside the others."""
    return [name for name, (_, met) in NEEDS.items()
            if getattr(settings, name) != getattr(Settings, name) and not met(settings)]


@dataclass
class Settings:
    bert: str = setting("tiny", "checkpoint to start from: a folder, a name on the hub, or tiny")
    data: str = setting("data", "folder with the course's files (ids-sst-train.csv, …); the "
                                "default is the sample beside the code")
    tasks: str = setting("sst,para,sts", f"tasks to learn together, of {', '.join(TASKS)}")
    learn: str = setting("", "train only these of --tasks; the others are only scored")
    encoders: str = setting("shared", "one encoder for all tasks, or one for each",
                            ("shared", "separate"))
    freeze: bool = setting(False, "train the heads only, the encoder stays as it is")
    lora: int = setting(0, "train adapters of this rank (LoRA) on a frozen encoder (0: train the "
                           "encoder itself)", least=0)
    adapters: str = setting("separate", "with --lora: an adapter for each task, one that all share "
                                        "(shared), or groups, as in sst=a,para=b,sts=b")
    lora_targets: str = setting("query,key,value,output", "matrices that are adapted, of "
                                + ", ".join(TARGETS))
    lora_kind: str = setting("lora", "LoRA, or LoRA-XS with Σ in A (xs) or in B (xs-out); the "
                                     "kinds of lora/kinds.py", KINDS)
    lora_alpha: float = setting(0, "the adapter is scaled by alpha/rank (0: by 1)", least=0)
    lora_dropout: float = setting(0, "dropout of what goes into an adapter", least=0, most=1)
    lora_norms: bool = setting(False, "train LayerNorms too; each adapter has its own")
    lora_top: int = setting(0, "rank in the third of the layers whose heads matter most (0: --lora "
                               "in all)", least=0)
    mask_heads: str = setting("", "heads that are switched off, as in '0:3,7 5:0', which are heads "
                                  "3 and 7 of layer 0 and head 0 of layer 5")
    keep_heads: str = setting("", "before training, remove the heads that matter least: keep so "
                                  "many (100), or a fraction (0.7)")
    sampling: str = setting("all", "what a step learns from: one batch of every task, or of one "
                                   "task: in turn, or at random by the tasks' sizes, with "
                                   "annealing less and less so", tuple(SAMPLERS))
    annealing: float = setting(0.8, "c of annealed sampling, p ~ N^(1 - c·(epoch - 1)/(epochs - "
                                    "1))", least=0)
    surgery: str = setting("none", "PCGrad: take out what in a task's gradient goes against "
                                   "another's; over the whole gradient, or weight by weight",
                           ("none", "whole", "weight"))
    surgery_mean: bool = setting(False, "divide the combined gradient by the number of tasks")
    pairs: str = setting("joint", "two sentences in one sequence, or each in its own",
                         ("joint", "separate"))
    read: str = setting("cls", "what heads read of the encoder", READS)
    head: str = setting("linear", f"kind of head ({', '.join(HEADS)}) of all tasks, or of some, "
                                  f"as in sts=cosine,sst=mlp (the others: linear)")
    head_dropout: float = setting(0.3, "dropout in mlp heads (task-level dropout)", least=0,
                                  most=1)
    loss: str = setting("mse", "of graded tasks: squared error of the label, or cosine: "
                               "(cos - y/5)²", ("mse", "cosine"))
    epochs: int = setting(0, "passes over the longest task, the others being cycled (0: 3, or on "
                             "small data as many as make 500 steps)", least=0)
    steps: int = setting(0, "stop after this many steps instead (0: go by --epochs)", least=0)
    limit: int = setting(0, "use only the first N examples of each file (0: all)", least=0)
    batch_size: int = setting(32, "examples of each task in a step", least=1)
    accumulate: int = setting(1, "batches of a task whose gradients add up to one step's", least=1)
    lr: float = setting(0, "highest learning rate of the encoder (0: (3.84 / hidden size)², "
                           "which is 2.5e-5 for bert-base and 1e-4 for half its width), or of "
                           "its adapters (0: that times "
                           + ", ".join(f"{k.lr_factor:g} for {n}" for n, k in KINDS.items())
                           + ")", least=0)
    head_lr: float = setting(1e-3, "highest learning rate of the heads", least=0)
    task_lr: str = setting("", "of a task's own encoder, as in sst=2e-5,sts=1e-4 (with --encoders "
                               "separate)")
    task_epochs: str = setting("", "epochs after which a task stops, as in sst=1 (with --encoders "
                                   "separate)")
    patience: int = setting(0, "stop after so many epochs without a better dev score, each task "
                               "for itself with --encoders separate (0: never)", least=0)
    layer_decay: float = setting(1.0, "each layer learns this much slower than the one above it",
                                 least=0)
    warmup: float = setting(0.1, "fraction of the steps in which the learning rate rises", least=0)
    decay: bool = setting(True, "after it the learning rate falls in a line to nothing")
    weight_decay: float = setting(0.01, "AdamW's, on matrices only", least=0)
    l2: float = setting(0, "L2 regularisation: this times the weight is added to its gradient",
                        least=0)
    clip: float = setting(1.0, "largest norm of the gradient (0: any)", least=0)
    seed: int = setting(0, "of heads, dropout and the order of examples", least=0,
                        most=2 ** 32)
    device: str = setting("auto", "auto takes CUDA where there is one", ("auto", "cuda", "cpu"))
    precision: str = setting("auto", "auto: bf16 on CUDA, else fp32; weights stay fp32",
                             ("auto", "fp32", "bf16"))
    attention: str = setting("fused", "the fused kernel or the textbook's equation; same numbers",
                             ("fused", "textbook"))
    log_every: int = setting(10, "steps between two lines of log.jsonl", least=1)
    save_every: int = setting(0, "steps between saves of what --resume needs (0: each epoch)",
                              least=0)
    strict_rows: bool = setting(False, "rows that a task may leave out are errors")
    out: str = setting("", "folder of this run (default: runs/<checkpoint>-<number>)")
    overwrite: bool = setting(False, "replace the run that is in --out")
    from_run: str = setting("", "start from a saved run instead of --bert", flag="--from")

    def __post_init__(self):
        check(self)
        for name in ("warmup", "layer_decay"):
            if getattr(self, name) > 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it is a "
                                f"fraction, at most 1")
        self.head_kinds, self.learnt  # noqa: B018  raise where a task or kind is unknown
        if self.lora:
            self._check_lora()
        if self.keep_heads and self.encoders == "separate":
            raise UserError("--keep-heads removes heads of one encoder; leave out --encoders "
                            "separate")
        for name, kind in (("task_lr", float), ("task_epochs", int)):
            if self.of_tasks(name, kind) and max(map(len, self.units.values())) > 1:
                raise UserError(f"--{name.replace('_', '-')} is for tasks that share nothing; add "
                                f"--encoders separate, or --lora with separate adapters")
        if self.surgery != "none":
            self._check_surgery()

    def _check_lora(self):
        if self.encoders == "separate" or self.freeze:
            raise UserError("--lora trains adapters of one encoder that stays as it is: leave out "
                            "--encoders separate and --freeze")
        self.adapters_of_tasks  # noqa: B018  raises where a task is unknown
        for target in self.lora_targets.split(","):
            if target not in TARGETS:
                raise UserError(f"--lora-targets: there is no matrix {target!r}"
                                f"{did_you_mean(target, TARGETS)}; a layer has "
                                f"{', '.join(TARGETS)}")

    def check_adapter_flags(self):
        """UserError where flags describe adapters and there are none. Not asked of a saved run."""
        idle = [flag_of(f) for f in adapter_fields() if getattr(self, f.name) != f.default]
        if idle and not self.lora:
            raise UserError(f"{', '.join(idle)}: without --lora there are no adapters; add --lora "
                            f"RANK, or leave them out")

    def _check_surgery(self):
        if max(map(len, self.units.values())) < 2 or self.freeze:
            raise UserError("--surgery compares tasks' gradients on weights that they share: it "
                            "needs two tasks or more with one encoder, or with one adapter, and "
                            "no --freeze")
        if self.sampling != "all":
            raise UserError(f"--surgery compares the gradients of one step's tasks, and --sampling "
                            f"{self.sampling} has one task a step; use --sampling all")

    def loss_of(self, task):
        return TASKS[task].other_losses.get(self.loss, TASKS[task].loss)

    @property
    def task_names(self):
        return self._known("tasks", TASKS)

    @property
    def learnt(self):
        """The tasks that are trained."""
        return self._known("learn", self.task_names) if self.learn else self.task_names

    @property
    def units(self):
        """{what is trained, stopped and kept for itself: its tasks}: the encoder that all share, a
        task's own, or an adapter."""
        if self.encoders == "separate":
            return {task: [task] for task in self.learnt}
        if not self.lora:
            return {SHARED: self.learnt}
        serves = self.adapters_of_tasks
        return {name: [task for task in self.learnt if serves[task] == name]
                for name in dict.fromkeys(serves[task] for task in self.learnt)}

    @property
    def adapters_of_tasks(self):
        """{task: the adapter that serves it}"""
        tasks = self.task_names
        if self.adapters in ("separate", "shared"):
            return {task: task if self.adapters == "separate" else SHARED for task in tasks}
        serves = dict(part.strip().split("=", 1) for part in self.adapters.split(",")
                      if "=" in part)
        if set(serves) != set(tasks) or len(serves) < len(self.adapters.split(",")):
            raise UserError(f"--adapters {self.adapters!r} is not understood; write separate, "
                            f"shared, or task=adapter for each task ({', '.join(tasks)})")
        return {task: serves[task] for task in tasks}

    def _known(self, name, known):
        names = [task.strip() for task in getattr(self, name).split(",")]
        for task in names:
            if task not in known:
                raise UserError(f"--{name}: there is no task {task!r}{did_you_mean(task, known)}; "
                                f"there are {', '.join(known)}")
        if len(set(names)) < len(names):
            raise UserError(f"--{name} {getattr(self, name)} names a task twice")
        return names

    def of_tasks(self, name, kind):
        """{task: number} of a setting like sst=1,sts=3"""
        values = {}
        for part in filter(None, getattr(self, name).split(",")):
            task, _, text = part.strip().partition("=")
            try:
                values[task] = kind(text)
            except ValueError:
                values[task] = -1
            if task not in self.learnt or not 0 < values[task] < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {part!r} is not understood; write "
                                f"task=number, a number above 0 and a task that is trained "
                                f"({', '.join(self.learnt)})")
        return values

    @property
    def head_kinds(self):
        """{task: kind of head}"""
        kinds = {task: TASKS[task].heads[0] for task in self.task_names}
        for part in self.head.split(","):
            task, equals, kind = part.strip().rpartition("=")
            if kind not in HEADS or (equals and task not in kinds):
                raise UserError(f"--head {part!r} is not understood; write one of "
                                f"{', '.join(HEADS)}, or task=kind with a task of this run "
                                f"({', '.join(kinds)})")
            kinds.update({task: kind} if equals else dict.fromkeys(kinds, kind))
        return kinds


def adapter_fields():
    """The fields of Settings that describe adapters; --lora 0 is none."""
    return [f for f in fields(Settings) if f.name.startswith(("lora", "adapters"))]
