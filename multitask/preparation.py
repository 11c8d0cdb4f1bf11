"""What happens before the first step of training: data, model, schedule, optimizer, run folder."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from bert import Bert, Tokenizer, UserError
from bert.files import fingerprint
from common.device import pick_device
from common.log import Log
from common.optimization import OPTIMIZERS, parameter_groups
from common.train_state import restore
from multitask import distributed, methods, runs
from multitask.evaluation import load_split
from multitask.model import build_model, model_from, use_attention
from multitask.schedule import default_lr, make_schedule, trained_modules
from multitask.tasks import TASKS


@dataclass
class Progress:
    """How far the run is: its state beside weights, optimizer and random numbers."""

    step: int = 0
    seconds: float = 0.0
    running: list = field(default_factory=list)          # names of the training groups that go on
    scores: dict = field(default_factory=dict)           # dev scores of what is kept
    best: dict = field(default_factory=dict)             # {training group: its highest score}
    best_step: dict = field(default_factory=dict)        # {training group: the step of that score}


@dataclass
class Training:
    """All that the loop uses."""

    settings: object
    folder: Path
    record: dict
    model: nn.Module
    tokenizer: Tokenizer
    data: dict                                           # task → {"train": Split, "dev": Split, …}
    schedule: object
    optimizer: torch.optim.Optimizer
    device: torch.device
    autocast: object
    progress: Progress
    log: Log


def prepare(settings, folder, recipe, record, state):
    """→ Training: everything that the loop uses, from the start, or on from `state`. Invalid
    settings, data and checkpoints raise UserError here, before a file is written."""
    device, autocast = pick_device(settings.device, settings.precision)
    model, tokenizer = load_model(settings, device, record["edits"] if record else ())
    data, checksums = load_data(settings, tokenizer)
    model.to(device)
    sizes = {task: len(data[task]["train"]) for task in settings.trained_tasks}
    schedule = make_schedule(settings, sizes, distributed.world())
    lr = settings.lr or default_lr(model, settings)
    optimizer = OPTIMIZERS[settings.optimizer](parameter_groups(
        trained_modules(model, settings, schedule, lr), settings.weight_decay))
    for group in optimizer.param_groups:
        schedule.groups[group["group"]].parameters += group["params"]
    runs.check_nothing_lost(model, [p for group in optimizer.param_groups for p in group["params"]])
    torch.manual_seed(settings.seed + distributed.rank())    # of dropout
    record = prepare_folder(folder, settings, recipe, checksums, record, model)
    record["resolved"] = {"lr": lr, "steps": schedule.steps, "device": str(device)}
    print(f"{record['parameters']['trained']:,} trainable parameters, {schedule.steps:,} steps, "
          f"{schedule.epoch_steps:,} an epoch; learning rate {lr:g}; on {device}\n")
    progress = Progress(running=list(schedule.groups))
    if state is not None:
        restore(state, model, optimizer, device, distributed.rank())
        progress = Progress(**state["progress"])
        for task, sampler in schedule.batches.items():
            sampler.load_state_dict(state["batches"][task])
    log = Log(folder / "log.jsonl" if distributed.rank() == 0 else None, progress.step)
    return Training(settings, folder, record, model, tokenizer, data, schedule, optimizer, device,
                    autocast, progress, log)


def load_data(settings, tokenizer):
    """→ {task: {"train": Split, "dev": Split, …}}, {file: checksum}"""
    if not Path(settings.data).is_dir():
        raise UserError(f"--data {settings.data} is not a folder; it must hold the data files, "
                        f"{TASKS[settings.task_names[0]].files['train']} for one")
    splits, checksums = {}, {"tokenizer": fingerprint(tokenizer.backend.to_str())}
    for task in settings.task_names:
        names = ("train", *TASKS[task].dev_sets)
        splits[task] = {name: load_split(task, name, settings.data, tokenizer, settings,
                                         settings.limit) for name in names}
        checksums |= runs.checksums(settings.data, [TASKS[task].files[name] for name in names])
    return splits, checksums


def load_model(settings, device, edits=()):
    """→ model, tokenizer: from a checkpoint with new heads, or from a saved run (--from), changed
    by the methods in use. The model is on the CPU; importance is measured on `device`. When
    resuming, `edits` supplies the recorded choices, so nothing is measured again."""
    torch.manual_seed(settings.seed)                         # of the new heads
    if settings.from_run:
        saved, tokenizer, *_ = runs.open_run(settings.from_run)
        model = model_from(saved, settings)
    else:
        tokenizer = Tokenizer.from_pretrained(settings.bert)
        bert = Bert.from_pretrained(settings.bert, settings.attention)
        use_attention(bert, settings)
        model = build_model(bert, settings)
    config = next(iter(model.encoders.values())).config
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{settings.from_run or settings.bert}: the tokenizer knows "
                        f"{tokenizer.vocab_size:,} tokens but the encoder embeds only "
                        f"{config.vocab_size:,}; they are of different checkpoints")
    model.encoders.requires_grad_(not settings.freeze)
    if settings.pooling != "pooler":                         # then nothing reads the pooler
        for bert in model.encoders.values():
            bert.pooler.requires_grad_(False)
    methods.prepare(model, tokenizer, settings, device, edits)
    for name, parameter in model.named_parameters():
        if model.part(name)[1] not in (None, *settings.trained_tasks):
            parameter.requires_grad_(False)
    return model, tokenizer


def prepare_folder(folder, settings, recipe, checksums, record, model):
    """Check that a resumed run sees the same files, or begin a new run's folder → its record."""
    new = runs.new_record(settings, recipe, checksums, model)
    if record is None:
        if distributed.rank() == 0:
            runs.init_run_folder(folder, new)
        return new
    if record["data"] != checksums:
        changed = [name for name in checksums if record["data"].get(name) != checksums[name]]
        raise UserError(f"{', '.join(changed)} changed since the run {folder} began, so it cannot "
                        f"go on; start a new run (its data is {settings.data})")
    began, here = record["versions"], new["versions"]
    if began["processes"] != here["processes"]:
        raise UserError(f"the run {folder} began with {began['processes']} processes and cannot go "
                        f"on with {here['processes']}: their shares of the data would differ")
    if began["threads"] != here["threads"]:
        warnings.warn(f"the run began with {began['threads']} threads and goes on with "
                      f"{here['threads']}: last digits will differ", stacklevel=2)
    return record
