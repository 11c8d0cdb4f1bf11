"""Every setting of a training run, once: the dataclass is the default, the flag and the help
text."""

from dataclasses import dataclass

from bert import UserError
from bert.cli import did_you_mean
from bert.settings import check, setting
from multitask.heads import HEADS
from multitask.model import READS
from multitask.tasks import TASKS


@dataclass
class Settings:
    bert: str = setting("tiny", "checkpoint to start from: a folder, a name on the hub, or tiny")
    data: str = setting("data", "folder with the course's files (ids-sst-train.csv, …)")
    tasks: str = setting("sst,para,sts", f"tasks to learn together, of {', '.join(TASKS)}")
    pairs: str = setting("joint", "two sentences in one sequence, or each in its own",
                         ("joint", "separate"))
    read: str = setting("cls", "what heads read of the encoder", READS)
    head: str = setting("linear", f"kind of head ({', '.join(HEADS)}) of all tasks, or of some, "
                                  f"as in sts=cosine,sst=mlp (the others: linear)")
    head_dropout: float = setting(0.3, "dropout in mlp heads", least=0, most=1)
    epochs: int = setting(0, "passes over the longest task, the others being cycled (0: 3, or on "
                             "small data as many as make 500 steps)", least=0)
    steps: int = setting(0, "stop after this many steps instead (0: go by --epochs)", least=0)
    limit: int = setting(0, "use only the first N examples of each file (0: all)", least=0)
    batch_size: int = setting(32, "examples of each task in a step", least=1)
    lr: float = setting(0, "highest learning rate of the encoder (0: 0.0384 / hidden size, "
                           "which is 5e-5 for bert-base and 1e-4 for half its width)", least=0)
    head_lr: float = setting(1e-3, "highest learning rate of the heads", least=0)
    warmup: float = setting(0.1, "fraction of the steps in which the learning rate rises", least=0)
    weight_decay: float = setting(0.01, "AdamW's, on matrices only", least=0)
    clip: float = setting(1.0, "largest norm of the gradient (0: any)", least=0)
    seed: int = setting(0, "of heads, dropout and the order of examples", least=0,
                        most=2 ** 32)
    device: str = setting("auto", "auto takes CUDA where there is one", ("auto", "cuda", "cpu"))
    precision: str = setting("auto", "auto: bf16 on CUDA, else fp32; weights stay fp32",
                             ("auto", "fp32", "bf16"))
    attention: str = setting("fused", "the fused kernel or the textbook's equation; same numbers",
                             ("fused", "textbook"))
    save_every: int = setting(0, "steps between saves of what --resume needs (0: each epoch)",
                              least=0)
    strict_rows: bool = setting(False, "rows that a task may leave out are errors")
    out: str = setting("", "folder of this run (default: runs/<checkpoint>-<number>)")
    overwrite: bool = setting(False, "replace the run that is in --out")
    from_run: str = setting("", "start from a saved run instead of --bert", flag="--from")

    def __post_init__(self):
        check(self)
        if self.warmup > 1:
            raise UserError(f"--warmup is {self.warmup}; it is a fraction, at most 1")
        self.head_kinds  # noqa: B018  raises where a task or kind is unknown

    @property
    def task_names(self):
        names = [name.strip() for name in self.tasks.split(",")]
        for name in names:
            if name not in TASKS:
                raise UserError(f"--tasks: there is no task {name!r}{did_you_mean(name, TASKS)}; "
                                f"there are {', '.join(TASKS)}")
        if len(set(names)) < len(names):
            raise UserError(f"--tasks {self.tasks} names a task twice")
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
