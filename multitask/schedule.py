"""How long a run is, and what learns how fast."""

from dataclasses import dataclass

from torch import nn

from bert import UserError
from lora import KINDS
from multitask.sampling import BatchSampler, steps_in_epoch


@dataclass
class Schedule:
    """A unit is what is trained, stopped and kept for itself: the encoder that all tasks share with
    their heads, each task's encoder with its head, or an adapter with the heads of its tasks."""

    units: dict                                          # name of a unit → tasks that train it
    batches: dict                                        # task → Batches
    epoch_steps: int
    epochs: int
    steps: int                                           # of the run
    unit_steps: dict                                     # unit → its steps


def default_lr(model, settings):
    """Of the encoder, by its width; of adapters as much more as their kind says."""
    width = next(iter(model.encoders.values())).config.hidden_size
    times = KINDS[settings.lora_kind].lr_factor if settings.lora else 1
    return times * (3.84 / width) ** 2


def make_schedule(settings, sizes, processes):
    """sizes {task that is trained: examples} → Plan. A step has batch_size examples of a task, as
    often as gradients accumulate, in each process."""
    size = settings.batch_size * settings.accumulate * processes
    batches = {task: BatchSampler(n, size, settings.seed) for task, n in sizes.items()}
    units = settings.units
    epoch_steps = steps_in_epoch({t: len(b) for t, b in batches.items()}, settings.sampling)
    epochs = settings.epochs or max(3, round(500 / epoch_steps))
    steps = settings.steps or epochs * epoch_steps
    epochs = -(-steps // epoch_steps)
    own = settings.parse_per_task("task_epochs", int)
    unit_steps = {unit: min(own.get(tasks[0], epochs) * epoch_steps, steps)
                  for unit, tasks in units.items()}
    return Schedule(units, batches, epoch_steps, epochs, max(unit_steps.values()), unit_steps)


def trained_modules(model, settings, schedule, lr):
    """→ [(module, {"unit": the unit it is of, "max_lr": its highest learning rate, "steps": until it
    is through})]. Each layer below the top one learns slower by --layer-decay; adapters decay if
    their kind says so."""
    decays = not settings.lora or KINDS[settings.lora_kind].decays
    parts, more = [], {} if decays else {"weight_decay": 0.0}
    beside = beside_encoders(model, schedule)
    for unit, steps in schedule.unit_steps.items():
        bert = model.encoder(unit)
        peak = settings.parse_per_task("task_lr", float).get(schedule.units[unit][0], lr)
        embeddings = nn.ModuleList([bert.word_embeddings, bert.position_embeddings,
                                    bert.token_type_embeddings, bert.embedding_norm])
        levels = [bert.pooler, *reversed(bert.layers), embeddings]
        if settings.lora:
            levels = [of_adapter(level, unit) for level in levels]
        parts += [(module, {"max_lr": peak * settings.layer_decay ** max(depth - 1, 0),
                            "steps": steps, "unit": unit} | more)
                  for depth, module in enumerate(levels)]
        parts += [(module, {"max_lr": settings.head_lr, "steps": steps, "unit": unit})
                  for task in (*schedule.units[unit], None) for module in beside.get(task, {}).values()]
    return parts


def beside_encoders(model, schedule):
    """→ {task, or None for all tasks: {part of the model: its parameters}}: what is trained of
    heads and further modules."""
    found = {}
    for name, parameter in model.named_parameters():
        part, task = model.part(name)
        if parameter.requires_grad and not name.startswith("encoders."):
            found.setdefault(task, {}).setdefault(part, nn.ParameterList()).append(parameter)
    if len(schedule.units) > 1 and None in found:
        raise UserError(f"all tasks use {', '.join(found[None])}, but {', '.join(schedule.units)} are "
                        f"trained and kept apart, each at its own best step; make one for each "
                        f"task (an nn.ModuleDict by task), or let the tasks share one encoder or "
                        f"adapter")
    return found


def of_adapter(module, name):
    """What a part of the encoder holds of one adapter."""
    return nn.ParameterList(parameter for key, parameter in module.named_parameters()
                            if f"adapters.{name}." in key)
