"""How long a run is, and what learns how fast."""

from dataclasses import dataclass

from torch import nn

from bert import UserError
from lora import KINDS
from multitask.sampling import Batches, steps_in_epoch


@dataclass
class Plan:
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


def make_plan(settings, sizes, processes):
    """sizes {task that is trained: examples} → Plan. A step has batch_size examples of a task, as
    often as gradients accumulate, in each process."""
    size = settings.batch_size * settings.accumulate * processes
    batches = {task: Batches(n, size, settings.seed) for task, n in sizes.items()}
    units = settings.units
    epoch_steps = steps_in_epoch({t: len(b) for t, b in batches.items()}, settings.sampling)
    epochs = settings.epochs or max(3, round(500 / epoch_steps))
    steps = settings.steps or epochs * epoch_steps
    epochs = -(-steps // epoch_steps)
    own = settings.of_tasks("task_epochs", int)
    unit_steps = {unit: min(own.get(tasks[0], epochs) * epoch_steps, steps)
                  for unit, tasks in units.items()}
    return Plan(units, batches, epoch_steps, epochs, max(unit_steps.values()), unit_steps)


def learning_parts(model, settings, plan, lr):
    """→ [(module, {"unit": the unit it is of, "peak": its highest learning rate, "steps": until it
    is through})]. Each layer below the top one learns slower by --layer-decay; adapters decay if
    their kind says so."""
    decays = not settings.lora or KINDS[settings.lora_kind].decays
    parts, more = [], {} if decays else {"weight_decay": 0.0}
    beside = beside_encoders(model, plan)
    for unit, steps in plan.unit_steps.items():
        bert = model.encoder(unit)
        peak = settings.of_tasks("task_lr", float).get(plan.units[unit][0], lr)
        embeddings = nn.ModuleList([bert.word_embeddings, bert.position_embeddings,
                                    bert.token_type_embeddings, bert.embedding_norm])
        levels = [bert.pooler, *reversed(bert.layers), embeddings]
        if settings.lora:
            levels = [of_adapter(level, unit) for level in levels]
        parts += [(module, {"peak": peak * settings.layer_decay ** max(depth - 1, 0),
                            "steps": steps, "unit": unit} | more)
                  for depth, module in enumerate(levels)]
        parts += [(module, {"peak": settings.head_lr, "steps": steps, "unit": unit})
                  for task in (*plan.units[unit], None) for module in beside.get(task, {}).values()]
    return parts


def beside_encoders(model, plan):
    """→ {task, or None for all tasks: {part of the model: its parameters}}: what is trained of
    heads and further modules."""
    found = {}
    for name, parameter in model.named_parameters():
        part, task = model.part(name)
        if parameter.requires_grad and not name.startswith("encoders."):
            found.setdefault(task, {}).setdefault(part, nn.ParameterList()).append(parameter)
    if len(plan.units) > 1 and None in found:
        raise UserError(f"all tasks use {', '.join(found[None])}, but {', '.join(plan.units)} are "
                        f"trained and kept apart, each at its own best step; make one for each "
                        f"task (an nn.ModuleDict by task), or let the tasks share one encoder or "
                        f"adapter")
    return found


def of_adapter(module, name):
    """What a part of the encoder holds of one adapter."""
    return nn.ParameterList(parameter for key, parameter in module.named_parameters()
                            if f"adapters.{name}." in key)
