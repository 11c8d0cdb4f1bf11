"""The number of steps, the training groups, and the learning rates of the parameter groups."""

from dataclasses import dataclass, field

from torch import nn

from bert import UserError
from bert.r_softmax import configure
from common.optimization import warmup_then_decay
from multitask.sampling import SAMPLERS, BatchSampler, steps_in_epoch


@dataclass
class TrainingGroup:
    """What is trained, stopped and kept by itself: the encoder that all tasks share with their
    heads, a task's own encoder with its head, or an adapter with the heads of its tasks."""

    name: str
    tasks: list
    steps: int
    parameters: list = field(default_factory=list)


@dataclass
class Schedule:
    groups: dict                                         # name → TrainingGroup
    batches: dict                                        # task that is trained → BatchSampler
    epoch_steps: int
    epochs: int

    @property
    def steps(self):
        return max(group.steps for group in self.groups.values())

    def tasks_of(self, step, running, settings):
        """The tasks of this step, of the training groups `running` (names)."""
        sizes = {task: self.batches[task].n for name in running
                 for task in self.groups[name].tasks}
        epoch = -(-step // self.epoch_steps)
        return SAMPLERS[settings.sampling](sizes, step, epoch, self.epochs, settings)


def make_schedule(settings, sizes, processes):
    """sizes {task that is trained: examples} → Schedule. A step has batch_size examples of a task,
    times the batches that accumulate, times the processes."""
    size = settings.batch_size * settings.accumulate * processes
    batches = {task: BatchSampler(n, size, settings.seed) for task, n in sizes.items()}
    epoch_steps = steps_in_epoch({t: len(b) for t, b in batches.items()}, settings.sampling)
    epochs = settings.epochs or max(3, round(500 / epoch_steps))
    steps = settings.steps or epochs * epoch_steps
    epochs = -(-steps // epoch_steps)
    own = settings.parse_per_task("task_epochs", int)
    groups = {name: TrainingGroup(name, tasks, min(own.get(tasks[0], epochs) * epoch_steps, steps))
              for name, tasks in settings.training_groups.items()}
    return Schedule(groups, batches, epoch_steps, epochs)


def default_lr(model, settings):
    """(3.84 / hidden size)², times the factor of the kind of adapter."""
    width = next(iter(model.encoders.values())).config.hidden_size
    return settings.lr_factor * (3.84 / width) ** 2


def set_learning_rates(optimizer, step, settings):
    """Set each parameter group's learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = group["max_lr"] * warmup_then_decay(step, group["steps"], settings.warmup,
                                                          settings.decay)


def set_ramps(model, step, schedule, settings):
    """Set how far r-softmax has come from the softmax in this step: 0 in the first one, 1 after the
    fraction --zeros-ramp of the steps."""
    for name, bert in model.encoders.items():
        group = schedule.groups.get(name, schedule)          # an encoder of a task's own
        ramp_steps = settings.zeros_ramp * group.steps
        configure(bert, ramp=min(1.0, (step - 1) / ramp_steps) if ramp_steps else 1.0)


def trained_modules(model, settings, schedule, lr):
    """→ [(module, {"group": its training group, "max_lr": its highest learning rate, "steps": of
    its group})]. Each layer learns slower than the one above it by the factor --layer-decay."""
    found, more = [], {} if settings.adapters_decay else {"weight_decay": 0.0}
    others = other_parameters(model, schedule)
    for name, group in schedule.groups.items():
        bert = model.encoder(name)
        max_lr = settings.parse_per_task("task_lr", float).get(group.tasks[0], lr)
        embeddings = nn.ModuleList([bert.word_embeddings, bert.position_embeddings,
                                    bert.token_type_embeddings, bert.embedding_norm])
        levels = [bert.pooler, *reversed(bert.layers), embeddings]
        if model.adapters:
            levels = [adapter_of(level, name) for level in levels]
        found += [(module, {"max_lr": max_lr * settings.layer_decay ** max(depth - 1, 0),
                            "steps": group.steps, "group": name} | more)
                  for depth, module in enumerate(levels)]
        found += [(module, {"max_lr": settings.head_lr, "steps": group.steps, "group": name})
                  for task in (*group.tasks, None) for module in others.get(task, {}).values()]
    return found


def other_parameters(model, schedule):
    """→ {task, or None for all tasks: {part of the model: its parameters}}: what is trained of
    heads, poolings and further modules."""
    found = {}
    for name, parameter in model.named_parameters():
        part, task = model.part(name)
        if parameter.requires_grad and not name.startswith("encoders."):
            found.setdefault(task, {}).setdefault(part, nn.ParameterList()).append(parameter)
    if len(schedule.groups) > 1 and None in found:
        raise UserError(f"all tasks use {', '.join(found[None])}, but {', '.join(schedule.groups)} "
                        f"are trained and kept apart, each at its own best step; make one for each "
                        f"task (an nn.ModuleDict by task), or let the tasks share one encoder or "
                        f"adapter")
    return found


def adapter_of(module, name):
    """The parameters of one adapter in a part of the encoder."""
    return nn.ParameterList(parameter for key, parameter in module.named_parameters()
                            if f"adapters.{name}." in key)
