"""How long a run is, and what learns how fast."""

from dataclasses import dataclass

from torch import nn

from multitask.model import SHARED
from multitask.sampling import Batches, steps_in_epoch


@dataclass
class Plan:
    """A unit is what is trained, stopped and kept for itself: the encoder that all tasks share with
    their heads, or each task's encoder with its head."""

    units: dict                                          # name of an encoder → tasks that train it
    batches: dict                                        # task → Batches
    epoch_steps: int
    epochs: int
    steps: int                                           # of the run
    unit_steps: dict                                     # unit → its steps


def make_plan(settings, sizes, processes):
    """sizes {task that is trained: examples} → Plan. A step has batch_size examples of a task, as
    often as gradients accumulate, in each process."""
    size = settings.batch_size * settings.accumulate * processes
    batches = {task: Batches(n, size, settings.seed) for task, n in sizes.items()}
    units = {SHARED: list(sizes)} if settings.encoders == "shared" else {t: [t] for t in sizes}
    epoch_steps = steps_in_epoch({t: len(b) for t, b in batches.items()}, settings.sampling)
    epochs = settings.epochs or max(3, round(500 / epoch_steps))
    steps = settings.steps or epochs * epoch_steps
    own = settings.of_tasks("task_epochs", int)
    unit_steps = {unit: min(own.get(unit, epochs) * epoch_steps, steps) for unit in units}
    return Plan(units, batches, epoch_steps, epochs, max(unit_steps.values()), unit_steps)


def learning_parts(model, settings, plan, lr):
    """→ [(module, {"peak": its highest learning rate, "steps": until it is through})]. Each layer
    below the top one learns slower by --layer-decay."""
    parts = []
    for unit, steps in plan.unit_steps.items():
        bert, peak = model.encoders[unit], settings.of_tasks("task_lr", float).get(unit, lr)
        embeddings = nn.ModuleList([bert.word_embeddings, bert.position_embeddings,
                                    bert.token_type_embeddings, bert.embedding_norm])
        levels = [bert.pooler, *reversed(bert.layers), embeddings]
        parts += [(module, {"peak": peak * settings.layer_decay ** max(depth - 1, 0),
                            "steps": steps}) for depth, module in enumerate(levels)]
        parts += [(model.heads[task], {"peak": settings.head_lr, "steps": steps})
                  for task in plan.units[unit]]
    return parts
