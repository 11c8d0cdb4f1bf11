"""Every setting of a training run, once: the dataclass is the default, the flag and the help text.
The methods add their own (multitask/methods.py)."""

from dataclasses import dataclass
from typing import ClassVar

from bert import UserError
from bert.attention import ATTENTIONS
from bert.errors import check_known
from common.flags import check, setting
from common.optimization import OPTIMIZERS
from multitask.heads import HEADS, POOLINGS
from multitask.pcgrad import SURGERY
from multitask.schedule import SAMPLERS
from multitask.tasks import TASKS

SHARED = "shared"                # the name of the one encoder, or adapter, that all tasks share
MODEL, STEPS, MIX, RUN = ("the model", "optimization", "several tasks", "the run")
R_SOFTMAX = ("--attention r-softmax", lambda s: s.attention == "r-softmax")
UNFROZEN = ("an encoder that is trained (no --freeze)", lambda s: not s.freeze)


@dataclass
class Settings:
    bert: str = setting("tiny", "checkpoint to start from: a folder, a name on the hub, or tiny")
    data: str = setting("data", "folder with the course's files; data: the sample with the code")
    out: str = setting("", "folder of this run (default: runs/<checkpoint>-<number>)")
    tasks: str = setting("sst,para,sts", f"tasks to learn together, of {', '.join(TASKS)}")
    epochs: int = setting(0, "passes over the longest task, or with --sampling proportional or "
                             "annealed over all (0: 3, or on small data as many as make 500 steps)")
    batch_size: int = setting(32, "examples of a task in each batch of a process", min=1)
    lr: float = setting(0, "highest learning rate of the encoder (0: (3.84 / hidden size)², as "
                           "2.5e-5 for bert-base; for adapters times the factor of their kind)")
    head_lr: float = setting(1e-3, "highest learning rate of the heads")
    pairs: str = setting("joint", "a pair in one sequence, or each alone", ("joint", "separate"))
    pooling: str = setting("cls", "the encoder's vector of a sequence, which heads read", POOLINGS)
    head: str = setting("linear", f"{', '.join(HEADS)}; or of some tasks: sts=cosine,sst=mlp")
    limit: int = setting(0, "use only the first N examples of each file (0: all)")
    seed: int = setting(0, "of heads, dropout and the order of examples", max=2 ** 32)
    device: str = setting("auto", "auto takes CUDA where there is one", ("auto", "cuda", "cpu"))
    precision: str = setting("auto", "auto: bf16 on CUDA, or if the processor has AMX and the "
                                     "model is not tiny", ("auto", "fp32", "bf16"))
    overwrite: bool = setting(False, "replace the run that is in --out")
    from_run: str = setting("", "start from a saved run instead of --bert", flag="--from")

    head_dropout: float = setting(0.3, "dropout in mlp heads", max=1, group=MODEL)
    loss: str = setting("mse", "of similarity tasks: squared error of the label, or cosine: "
                               "(cos - y/5)²", ("mse", "cosine"), group=MODEL)
    attention: str = setting("sdpa", "fused kernel, as written (eager), or with exact zeros "
                                     "(r-softmax)", ATTENTIONS, group=MODEL)
    zeros: float = setting(0.1, "r-softmax: fraction of a sequence's tokens that get no attention",
                           max=1, group=MODEL)
    zeros_ramp: float = setting(0.5, "r-softmax: fraction of the steps in which the zeros come in "
                                     "gradually (0: all at once)", group=MODEL)
    zeros_gradient: str = setting("true", "r-softmax: through the threshold too, or as published "
                                          "(detached)", ("true", "detached"), group=MODEL)
    encoders: str = setting("shared", "one encoder for all tasks, or one for each",
                            ("shared", "separate"), group=MODEL)
    freeze: bool = setting(False, "train the heads only, the encoder stays as it is", group=MODEL)

    train_tasks: str = setting("", "train only these of --tasks, score all of them", group=MIX)
    sampling: str = setting("all", "tasks of a step: all, or one: in turn, by size, or annealed "
                                   "from proportional to uniform", SAMPLERS, group=MIX)
    annealing: float = setting(0.8, "c of p ~ N^(1 - c·(epoch - 1)/(epochs - 1))", group=MIX)
    surgery: str = setting("none", "PCGrad removes conflicts of the tasks' gradients: whole or "
                                   "tensor by tensor", ("none", *SURGERY), group=MIX)

    steps: int = setting(0, "stop after this many steps instead (0: go by --epochs)", group=STEPS)
    patience: int = setting(0, "epochs without a better score before it ends (0: all)", group=STEPS)
    accumulate: int = setting(1, "batches of a task that add up to one step's", min=1, max=2 ** 16,
                             group=STEPS)
    optimizer: str = setting("adamw", "of common/optimization.py", OPTIMIZERS, group=STEPS)
    warmup: float = setting(0.1, "fraction of the steps in which the rate rises", group=STEPS)
    decay: bool = setting(True, "after it the rate falls in a line to nothing", group=STEPS)
    layer_decay: float = setting(1.0, "factor on the rate for each layer below", group=STEPS)
    weight_decay: float = setting(0.01, "AdamW's, on matrices only", group=STEPS)
    l2: float = setting(0, "L2 regularization: this times a weight joins its gradient", group=STEPS)
    clip: float = setting(1.0, "largest norm of the gradient (0: any)", group=STEPS)

    log_every: int = setting(10, "steps between two lines of log.jsonl", min=1, group=RUN)
    save_every: int = setting(0, "steps between saves for --resume (0: an epoch)", group=RUN)
    compile: bool = setting(False, "compile the encoder's layers (torch.compile); the first steps "
                                   "take minutes", group=RUN)
    skip_nonfinite: bool = setting(False, "leave out an update whose loss or gradient is not "
                                          "finite and count it, instead of stopping", group=RUN)
    strict_rows: bool = setting(False, "rows that a task may leave out are errors", group=RUN)

    methods: ClassVar = ()                       # whose flags are among these settings
    checks: ClassVar = ()                        # of the methods: (settings) → None or UserError
    adapter_by_task: ClassVar = {}               # {task: the adapter that serves it}
    lr_factor: ClassVar = 1.0                    # of what is trained, × the encoder's default lr
    adapters_decay: ClassVar = True              # weight decay acts on what is trained
    keep_from: ClassVar = 0.0                    # no model is kept before this part of the steps
    NEEDS: ClassVar = {     # setting → what it has an effect with, (settings) → whether that is so
        "sampling": ("two tasks or more that are trained", lambda s: len(s.trained_tasks) > 1),
        "annealing": ("--sampling annealed", lambda s: s.sampling == "annealed"),
        "pairs": ("a task of pairs", lambda s: any(TASKS[task].pair for task in s.task_names)),
        "head_dropout": ("an mlp head that is trained", lambda s: any(
            s.head_kinds[t] not in ("linear", "cosine", "relu-cosine") for t in s.trained_tasks)),
        "loss": ("a similarity task that is trained", lambda s: any(
            s.loss in TASKS[task].other_losses for task in s.trained_tasks)),
        "zeros": R_SOFTMAX, "zeros_ramp": R_SOFTMAX, "zeros_gradient": R_SOFTMAX,
        "lr": UNFROZEN,
        "layer_decay": UNFROZEN,
        "patience": ("more epochs than it waits for", lambda s: not 0 < s.epochs <= s.patience),
        "epochs": ("no --steps", lambda s: not s.steps),
        "overwrite": ("--out", lambda s: s.out),
    }

    def __post_init__(self):
        check(self)
        for name in ("warmup", "layer_decay", "zeros_ramp"):
            if (value := getattr(self, name)) > 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it is a fraction, at "
                                f"most 1")
        self.head_kinds, self.trained_tasks  # noqa: B018  raise where a task or kind is unknown
        for check_method in self.checks:
            check_method(self)
        alone = max(map(len, self.training_groups.values())) == 1
        if self.surgery != "none" and (alone or self.freeze):
            raise UserError("--surgery compares gradients on shared weights: it needs two tasks or "
                            "more with one encoder, or with one adapter, and no --freeze")
        if self.surgery != "none" and self.sampling != "all":
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
    def joint_pairs(self):
        """Whether a task has pairs that are encoded in one sequence."""
        return self.pairs == "joint" and any(TASKS[task].pair for task in self.task_names)

    @property
    def trained_tasks(self):
        return self._known("train_tasks", self.task_names) if self.train_tasks else self.task_names

    @property
    def training_groups(self):
        """{name: its tasks}. A training group has its own early stopping and best checkpoint: the
        encoder that all tasks share, a task's own encoder, or an adapter."""
        groups = {}
        for task in self.trained_tasks:
            name = (task if self.encoders == "separate" else
                    self.adapter_by_task.get(task, SHARED))
            groups.setdefault(name, []).append(task)
        return groups

    def _known(self, name, known):
        names = [task.strip() for task in getattr(self, name).split(",")]
        for task in names:
            check_known(task, known, "task", where=f"--{name.replace('_', '-')}")
        if len(set(names)) < len(names):
            raise UserError(f"--{name} {getattr(self, name)} names a task twice")
        return names

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
