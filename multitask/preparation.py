"""What happens before the first step of training: data, model, schedule, optimizer, run folder."""

import warnings
from types import SimpleNamespace

import torch

from bert import Bert, Tokenizer, UserError
from bert.files import fingerprint
from common.device import pick_device, pick_precision
from common.finite import FiniteCheck
from common.log import SUMS, Log
from common.optimization import OPTIMIZERS, parameter_groups
from common.run_folder import restore as restore_state
from multitask import distributed, methods, runs
from multitask.compilation import check_compilation
from multitask.evaluation import load_sets, load_split
from multitask.model import build_model, model_from, use_attention
from multitask.runs import SCORES
from multitask.schedule import POSITION, Schedule, default_lr, trained_modules

STATE = {"progress": {                                       # in state.pt, beside save_state's own
    "step": range(2 ** 40), "seconds": float, "running": list[str], "scores": SCORES,
    "best": dict[str, float], "best_step": dict[str, int]}, "batches": dict[str, POSITION],
    "sums?": list[SUMS], "skipped?": range(2 ** 40)}


def prepare(settings, folder, recipe, record, state):
    """→ a namespace of all that the loop uses, from the start, or on from `state`; `train` is
    {task: Split}, `dev` {task: {name: Split}}, `trained` {training group: parameters}.
    Mistakes raise UserError before a file is written."""
    device = pick_device(settings.device)
    model, tokenizer = load_model(settings, device, record["edits"] if record else ())
    if settings.compile:
        check_compilation(model, device)
    asked = (record or {}).get("resolved", {}).get("precision", settings.precision)
    precision, autocast = pick_precision(asked, device, model.hidden_size)
    train = {task: load_split(task, "train", settings.data, tokenizer, settings, settings.limit)
             for task in settings.task_names}
    dev = load_sets(settings.task_names, settings, tokenizer)
    checksums = {"tokenizer": fingerprint(tokenizer.backend.to_str())} | runs.checksums(
        settings.data, {task: ("train", *dev[task]) for task in dev})
    model.to(device)
    sizes = {task: len(train[task]) for task in settings.trained_tasks}
    schedule = Schedule(settings, sizes, distributed.world())
    lr = settings.lr or default_lr(model, settings)
    optimizer = OPTIMIZERS[settings.optimizer](parameter_groups(
        trained_modules(model, settings, schedule, lr), settings.weight_decay))
    trained = {}
    for part in optimizer.param_groups:
        trained.setdefault(part["group"], []).extend(part["params"])
    runs.check_nothing_lost(model, optimizer, settings)
    torch.manual_seed(settings.seed + distributed.rank())    # of dropout
    record = prepare_folder(folder, settings, recipe, checksums, record, model)
    record["resolved"] = {"lr": lr, "steps": schedule.steps, "device": str(device),
                          "precision": precision}
    print(f"{record['parameters']['trained']:,} trainable parameters, {schedule.steps:,} steps, "
          f"{schedule.epoch_steps:,} an epoch; learning rate {lr:g}; on {device}, "
          f"{precision}\n")
    progress = SimpleNamespace(
        step=0, seconds=0.0, running=list(schedule.groups),  # training groups that go on
        scores={},                           # dev scores of the models that the folder holds
        best={}, best_step={})               # of each group the highest score, and in which step
    if state is not None:
        restore_state(state, model, optimizer, device, distributed.rank())
        vars(progress).update(state["progress"])
        if (progress.step > schedule.steps or schedule.batches.keys() != state["batches"].keys()
                or not {*progress.running, *progress.best_step} <= schedule.groups.keys()):
            raise UserError(f"{folder} has saved the state of other tasks or steps than run.json "
                            f"says; start a new run")
        for task, sampler in schedule.batches.items():
            sampler.load_state_dict(state["batches"][task])
    sums = (state or {}).get("sums")                         # of each process
    log = Log(folder / "log.jsonl" if distributed.rank() == 0 else None, progress.step,
              sums and sums[distributed.rank()], settings.skip_nonfinite)
    finite = FiniteCheck(model, runs.resume_command(folder), settings.skip_nonfinite,
                         (state or {}).get("skipped", 0), distributed)
    return SimpleNamespace(
        settings=settings, folder=folder, record=record, model=model, tokenizer=tokenizer,
        train=train, dev=dev, schedule=schedule, optimizer=optimizer, trained=trained,
        device=device, autocast=autocast, progress=progress, log=log,
        finite=finite, checked_tasks=set())  # checked_tasks: by check_all_trained


def load_model(settings, device, edits=()):
    """→ model (on the CPU), tokenizer: of a checkpoint or a saved run, changed by the methods
    in use. When resuming, `edits` supplies the recorded choices, so nothing is measured again."""
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
    tokenizer.check_fits(config, settings.from_run or settings.bert, settings.joint_pairs)
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
