"""Every setting of a training run, once: the dataclass is the default, the flag and the help text.
The methods add their own (multitask/methods.py)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from bert import UserError
from bert.errors import check_known
from bert.model import ATTENTIONS
from common.flags import check, setting
from common.optimization import OPTIMIZERS
from multitask.heads import HEADS
from multitask.pcgrad import SURGERY
from multitask.poolings import POOLINGS
from multitask.sampling import SAMPLERS
from multitask.tasks import TASKS

SHARED = "shared"                # the name of the one encoder, or adapter, that all tasks share
MODEL, STEPS, TASK_MIX, RUN = ("the model", "optimization", "several tasks", "the run")
R_SOFTMAX = ("--attention r-softmax", lambda s: s.attention == "r-softmax")
UNFROZEN = ("an encoder that is trained (no --freeze)", lambda s: not s.freeze)


@dataclass
class Settings:
    bert: str = setting("tiny", "checkpoint to start from: a folder, a name on the hub, or tiny")
    data: str = setting("data", "folder with the course's files (ids-sst-train.csv, …); the "
                                "default is the sample beside the code")
    out: str = setting("", "folder of this run (default: runs/<checkpoint>-<number>)")
    tasks: str = setting("sst,para,sts", f"tasks to learn together, of {', '.join(TASKS)}")
    epochs: int = setting(0, "passes over the longest task, the others being cycled, or with "
                             "--sampling proportional or annealed over all of them (0: 3, or on "
                             "small data as many as make 500 steps)", min=0)
    batch_size: int = setting(32, "examples of each task in a step", min=1)
    lr: float = setting(0, "highest learning rate of the encoder (0: (3.84 / hidden size)², "
                           "which is 2.5e-5 for bert-base and 1e-4 for half its width; for "
                           "adapters times the factor of their kind)", min=0)
    head_lr: float = setting(1e-3, "highest learning rate of the heads", min=0)
    pairs: str = setting("joint", "two sentences in one sequence, or each in its own",
                         ("joint", "separate"))
    pooling: str = setting("cls", "the encoder's vector of a sequence, which heads read", POOLINGS)
    head: str = setting("linear", f"kind of head ({', '.join(HEADS)}) of all tasks, or of some, "
                                  f"as in sts=cosine,sst=mlp (the others: linear)")
    limit: int = setting(0, "use only the first N examples of each file (0: all)", min=0)
    seed: int = setting(0, "of heads, dropout and the order of examples", min=0, max=2 ** 32)
    device: str = setting("auto", "auto takes CUDA where there is one", ("auto", "cuda", "cpu"))
    precision: str = setting("auto", "auto: bf16 on CUDA, else fp32; weights stay fp32",
                             ("auto", "fp32", "bf16"))
    overwrite: bool = setting(False, "replace the run that is in --out")
    from_run: str = setting("", "start from a saved run instead of --bert", flag="--from")

    head_dropout: float = setting(0.3, "dropout in mlp heads (task-level dropout)", min=0, max=1,
                                  group=MODEL)
    loss: str = setting("mse", "of similarity tasks: squared error of the label, or cosine: "
                               "(cos - y/5)²", ("mse", "cosine"), group=MODEL)
    attention: str = setting("sdpa", "the fused kernel or the equation as written (eager), same "
                                     "numbers; r-softmax has exact zeros", ATTENTIONS, group=MODEL)
    zeros: float = setting(0.1, "r-softmax: fraction of a sequence's tokens that get no attention",
                           min=0, max=1, group=MODEL)
    zeros_ramp: float = setting(0.5, "r-softmax: fraction of the steps in which the zeros come in "
                                     "gradually (0: all at once)", min=0, group=MODEL)
    zeros_gradient: str = setting("true", "r-softmax: through the threshold too, or as published "
                                          "(detached)", ("true", "detached"), group=MODEL)
    encoders: str = setting("shared", "one encoder for all tasks, or one for each",
                            ("shared", "separate"), group=MODEL)
    freeze: bool = setting(False, "train the heads only, the encoder stays as it is", group=MODEL)

    train_tasks: str = setting("", "train only these of --tasks; the others are only scored",
                               group=TASK_MIX)
    sampling: str = setting("all", "tasks of a step: all, or one: in turn, at random in proportion "
                                   "to size, or annealed from proportional towards uniform",
                            SAMPLERS, group=TASK_MIX)
    annealing: float = setting(0.8, "c of annealed sampling, p ~ N^(1 - c·(epoch - 1)/(epochs - "
                                    "1))", min=0, group=TASK_MIX)
    surgery: str = setting("none", "PCGrad: remove from each task's gradient its component against "
                                   "another's; over the whole gradient, or tensor by tensor",
                           ("none", *SURGERY), group=TASK_MIX)
    task_lr: str = setting("", "of a task's own encoder or adapter, as in sst=2e-5,sts=1e-4",
                           group=TASK_MIX)
    task_epochs: str = setting("", "epochs after which a task with an encoder or adapter of its "
                                   "own stops, as in sst=1", group=TASK_MIX)

    steps: int = setting(0, "stop after this many steps instead (0: go by --epochs)", min=0,
                         group=STEPS)
    patience: int = setting(0, "stop after so many epochs without a better dev score, each task "
                               "for itself if they share nothing (0: never)", min=0, group=STEPS)
    accumulate: int = setting(1, "batches of a task whose gradients add up to one step's", min=1,
                              group=STEPS)
    optimizer: str = setting("adamw", "of the table in common/optimization.py", OPTIMIZERS,
                             group=STEPS)
    warmup: float = setting(0.1, "fraction of the steps in which the learning rate rises", min=0,
                            group=STEPS)
    decay: bool = setting(True, "after it the learning rate falls in a line to nothing",
                          group=STEPS)
    layer_decay: float = setting(1.0, "factor on the learning rate from a layer to the one below",
                                 min=0, group=STEPS)
    weight_decay: float = setting(0.01, "AdamW's, on matrices only", min=0, group=STEPS)
    l2: float = setting(0, "L2 regularization: this times the weight is added to its gradient",
                        min=0, group=STEPS)
    clip: float = setting(1.0, "largest norm of the gradient (0: any)", min=0, group=STEPS)

    log_every: int = setting(10, "steps between two lines of log.jsonl", min=1, group=RUN)
    save_every: int = setting(0, "save what --resume needs after so many steps too (0: only after "
                                 "each epoch)", min=0, group=RUN)
    strict_rows: bool = setting(False, "rows that a task may leave out are errors", group=RUN)

    methods: ClassVar = ()                       # whose flags are among these settings
    checks: ClassVar = ()                        # of the methods: (settings) → None or UserError
    adapter_by_task: ClassVar = {}               # {task: the adapter that serves it}
    lr_factor: ClassVar = 1.0                    # of what is trained, × the encoder's default lr
    adapters_decay: ClassVar = True              # weight decay acts on what is trained
    NEEDS: ClassVar = {     # setting → what it has an effect with, (settings) → whether that is so
        "sampling": ("two tasks or more that are trained", lambda s: len(s.trained_tasks) > 1),
        "annealing": ("--sampling annealed", lambda s: s.sampling == "annealed"),
        "pairs": ("a task of pairs", lambda s: any(TASKS[task].pair for task in s.task_names)),
        "head_dropout": ("an mlp head that is trained", lambda s: not {
            s.head_kinds[task] for task in s.trained_tasks} <= {"linear", "cosine", "relu-cosine"}),
        "loss": ("a similarity task that is trained", lambda s: any(
            s.loss in TASKS[task].other_losses for task in s.trained_tasks)),
        "lr": ("an encoder that is trained (no --freeze) at no --task-lr of its own", lambda s: not
               (s.freeze or {tasks[0] for tasks in s.training_groups.values()} <= set(
                   s.parse_per_task("task_lr", float)))),
        "task_lr": UNFROZEN,
        "layer_decay": UNFROZEN,
        "zeros": R_SOFTMAX, "zeros_ramp": R_SOFTMAX, "zeros_gradient": R_SOFTMAX,
        "patience": ("more epochs than it waits for", lambda s: not 0 < s.epochs <= s.patience),
        "overwrite": ("--out", lambda s: s.out),
    }

    def __post_init__(self):
        check(self)
        for name in ("warmup", "layer_decay", "zeros_ramp"):
            if getattr(self, name) > 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it is a "
                                f"fraction, at most 1")
        self.head_kinds, self.trained_tasks  # noqa: B018  raise where a task or kind is unknown
        for check_method in self.checks:
            check_method(self)
        for name, kind in (("task_lr", float), ("task_epochs", int)):
            if self.parse_per_task(name, kind) and max(map(len, self.training_groups.values())) > 1:
                raise UserError(f"--{name.replace('_', '-')} is for tasks that share nothing; add "
                                f"--encoders separate, or --lora with separate adapters")
        if self.surgery != "none":
            self._check_surgery()

    def _check_surgery(self):
        if max(map(len, self.training_groups.values())) < 2 or self.freeze:
            raise UserError("--surgery compares tasks' gradients on weights that they share: it "
                            "needs two tasks or more with one encoder, or with one adapter, and "
                            "no --freeze")
        if self.sampling != "all":
            raise UserError(f"--surgery compares the gradients of one step's tasks, and --sampling "
                            f"{self.sampling} has one task a step; use --sampling all")

    def without_effect(self):
        """{setting: what it needs}: settings that are not at their default and have no effect."""
        return {name: needed for name, (needed, met) in self.NEEDS.items()
                if getattr(self, name) != getattr(type(self), name) and not met(self)}

    def loss_of(self, task):
        """The task's loss, or the one of that name that --loss chooses."""
        return TASKS[task].other_losses.get(self.loss, TASKS[task].loss)

    @property
    def task_names(self):
        return self._known("tasks", TASKS)

    @property
    def trained_tasks(self):
        return self._known("train_tasks", self.task_names) if self.train_tasks else self.task_names

    @property
    def training_groups(self):
        """{name: its tasks}. A training group has its own schedule, early stopping and best
        checkpoint: the encoder that all tasks share, a task's own encoder, or an adapter."""
        group_of = (dict.fromkeys(self.trained_tasks, SHARED) | self.adapter_by_task
                    if self.encoders == "shared" else {task: task for task in self.trained_tasks})
        return {name: [task for task in self.trained_tasks if group_of[task] == name]
                for name in dict.fromkeys(group_of[task] for task in self.trained_tasks)}

    def _known(self, name, known):
        names = [task.strip() for task in getattr(self, name).split(",")]
        for task in names:
            check_known(task, known, "task", where=f"--{name.replace('_', '-')}")
        if len(set(names)) < len(names):
            raise UserError(f"--{name} {getattr(self, name)} names a task twice")
        return names

    def parse_per_task(self, name, kind):
        """{task: number} of a setting like sst=1,sts=3"""
        values = {}
        for part in filter(None, getattr(self, name).split(",")):
            task, _, text = part.strip().partition("=")
            try:
                values[task] = kind(text)
            except ValueError:
                values[task] = -1
            if task not in self.trained_tasks or not 0 < values[task] < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {part!r} is not understood; write "
                                f"task=number, a number above 0 and a task that is trained "
                                f"({', '.join(self.trained_tasks)})")
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
