"""Which tasks a step trains, on which of their examples, and at which learning rates. All follows
from the seed and the number of the step or pass alone, so that a resumed run draws the same."""

import torch
from torch import nn

from bert import UserError
from bert.r_softmax import configure
from common.optimization import warmup_then_decay

POSITION = {"passes": range(2 ** 40), "position": range(2 ** 40)}        # BatchSampler.state_dict()


class BatchSampler:
    """Shuffled passes over n examples, as lists of `size` indices. (seed, pass number) fixes the
    order of a pass, so two integers are the whole state."""

    def __init__(self, n, size, seed):
        self.n, self.size, self.seed = n, size, seed
        self.load_state_dict({"passes": 0, "position": 0})

    def __len__(self):
        """Batches in one pass."""
        return -(-self.n // self.size)

    def __next__(self):
        if self.position >= self.n:
            self.load_state_dict({"passes": self.passes + 1, "position": 0})
        indices = self.order[self.position:self.position + self.size]
        self.position += self.size
        return indices

    def state_dict(self):
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, state):
        self.passes, self.position = state["passes"], state["position"]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.passes)
        self.order = torch.randperm(self.n, generator=generator).tolist()


def annealing_exponent(epoch, epochs, c):
    """α = 1 − c·(e − 1)/(E − 1) of epoch e, 1 … E; 1 where there is only one."""
    return 1.0 if epochs == 1 else 1.0 - c * (epoch - 1) / (epochs - 1)


def draw(sizes, alpha, seed, step):
    """One task, p ∝ N^α, N its number of examples."""
    weights = torch.tensor(list(sizes.values()), dtype=torch.float64) ** alpha
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return [list(sizes)[torch.multinomial(weights, 1, generator=generator).item()]]


# name → (sizes {task: examples}, step from 1, epoch from 1, epochs, settings) → tasks. With all,
# shorter data sets are cycled ("stretched"); annealed: Stickland & Murray 2019, section 4.1
SAMPLERS = {
    "all": lambda sizes, *_: list(sizes),
    "round-robin": lambda sizes, step, *_: [list(sizes)[(step - 1) % len(sizes)]],
    "proportional": lambda sizes, step, epoch, epochs, settings: draw(
        sizes, 1.0, settings.seed, step),
    "annealed": lambda sizes, step, epoch, epochs, settings: draw(
        sizes, annealing_exponent(epoch, epochs, settings.annealing), settings.seed, step),
}


def steps_in_epoch(batches, sampling):
    """batches {task: batches in a pass} → steps of an epoch: one full pass over the longest task if
    the sampler gives all tasks equally many batches, or else the batches of all tasks together."""
    if sampling in ("all", "round-robin"):
        return max(batches.values()) * (len(batches) if sampling == "round-robin" else 1)
    return sum(batches.values())


class Schedule:
    """`groups` {training group: its tasks} and `batches` {task that is trained: BatchSampler}. A
    step has batch_size examples of a task, times the batches that accumulate, times processes."""

    def __init__(self, settings, sizes, processes):
        """sizes: {task that is trained: examples}"""
        size = settings.batch_size * settings.accumulate * processes
        self.settings, self.groups = settings, settings.training_groups
        self.batches = {task: BatchSampler(n, size, settings.seed) for task, n in sizes.items()}
        in_a_pass = {task: len(sampler) for task, sampler in self.batches.items()}
        self.epoch_steps = steps_in_epoch(in_a_pass, settings.sampling)
        epochs = settings.epochs or max(3, round(500 / self.epoch_steps))
        self.steps = settings.steps or epochs * self.epoch_steps
        self.epochs = -(-self.steps // self.epoch_steps)

    def tasks_of(self, step, running):
        """The tasks of this step, of the training groups `running` (names)."""
        sizes = {task: self.batches[task].n for name in running for task in self.groups[name]}
        epoch = -(-step // self.epoch_steps)
        return SAMPLERS[self.settings.sampling](sizes, step, epoch, self.epochs, self.settings)

    def set_learning_rates(self, optimizer, step):
        factor = warmup_then_decay(step, self.steps, self.settings.warmup, self.settings.decay)
        for group in optimizer.param_groups:
            group["lr"] = group["max_lr"] * factor

    def set_ramps(self, model, step):
        """Set how far r-softmax has come from the softmax in this step: 0 in the first one, 1 after
        the fraction --zeros-ramp of the steps."""
        ramp_steps = self.settings.zeros_ramp * self.steps
        for bert in model.encoders.values():
            configure(bert, ramp=min(1.0, (step - 1) / ramp_steps) if ramp_steps else 1.0)


def default_lr(model, settings):
    """(3.84 / hidden size)², times the factor of the kind of adapter."""
    width = next(iter(model.encoders.values())).config.hidden_size
    return settings.lr_factor * (3.84 / width) ** 2


def trained_modules(model, settings, schedule, lr):
    """→ [(module, {"group": its training group, "max_lr": its highest learning rate})]. Each layer
    learns slower than the one above it by the factor --layer-decay."""
    found, more = [], {} if settings.adapters_decay else {"weight_decay": 0.0}
    others = other_parameters(model, schedule)
    for name, tasks in schedule.groups.items():
        bert = model.encoder(name)
        embeddings = nn.ModuleList([bert.word_embeddings, bert.position_embeddings,
                                    bert.token_type_embeddings, bert.embedding_norm])
        for depth, level in enumerate([bert.pooler, *reversed(bert.layers), embeddings]):
            if model.adapters:
                level = nn.ParameterList(parameter for key, parameter in level.named_parameters()
                                         if f"adapters.{name}." in key)
            max_lr = lr * settings.layer_decay ** max(depth - 1, 0)
            found.append((level, {"max_lr": max_lr, "group": name} | more))
        found += [(module, {"max_lr": settings.head_lr, "group": name})
                  for task in (*tasks, None) for module in others.get(task, {}).values()]
    return found


def other_parameters(model, schedule):
    """→ {task (None: all tasks): {part of the model beside the encoders: what is trained}}"""
    found = {}
    for name, parameter in model.named_parameters():
        part, task = model.part(name)
        if parameter.requires_grad and not name.startswith("encoders."):
            found.setdefault(task, {}).setdefault(part, nn.ParameterList()).append(parameter)
    if len(schedule.groups) > 1 and None in found:
        raise UserError(f"all tasks use {', '.join(found[None])}, but {', '.join(schedule.groups)} "
                        f"are trained and kept apart; make one for each task (an nn.ModuleDict by "
                        f"task), or let the tasks share one encoder or adapter")
    return found
