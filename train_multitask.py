"""Fine-tune one BERT on several tasks at once.

    python train_multitask.py                            # the tiny BERT on the sample in data/
    python train_multitask.py --bert bert-base-uncased --data path/to/cs224n
    python train_multitask.py --tasks sts --pairs separate --head cosine --out runs/sts
    python train_multitask.py --resume runs/sts          # go on with a run that was stopped

The way of the data: files → token ids → batches → encoder → head → loss → gradients → clip → step.
"""

import json
import math
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bert import Bert, Tokenizer, UserError
from bert.errors import did_you_mean
from bert.files import write_json
from common.cli import Parser, StopSignal, UserStop, run_script
from common.device import peak_memory, pick_device
from common.flags import add_flags, command, with_absolute_paths
from common.log import Log, progress_bar
from common.optimization import adamw, parameter_groups, warmup_then_decay
from common.train_state import read_state, restore, rng_state, save_state
from lora import accounting
from multitask import adapters, distributed, pcgrad, runs
from multitask.adapters import SHARED
from multitask.data import checksum
from multitask.evaluation import evaluate, load_split
from multitask.metrics import choose_by, summary
from multitask.model import build_model, model_from
from multitask.recipes import RECIPES, listing
from multitask.report import draw_curves, score_line, score_table
from multitask.sampling import SAMPLERS
from multitask.schedule import default_lr, make_schedule, trained_modules
from multitask.settings import NEEDS, Settings, without_effect
from multitask.tasks import TASKS
from pruning.before_training import keep_heads, lora_ranks, switch_off

STATE_FILE = Path("last", "state.pt")                              # in the run: the state to resume from
SAMPLE = Path(__file__).resolve().parent / "data"            # the default of --data


def load_data(settings, tokenizer):
    """→ {task: {"train": Split, "dev": Split, …}}, {file: checksum}"""
    if not Path(settings.data).is_dir():
        raise UserError(f"--data {settings.data} is not a folder; it must hold the data files, "
                        f"{TASKS[settings.task_names[0]].files['train']} for one")
    splits, file_checksums = {}, {"tokenizer": checksum(tokenizer.backend.to_str().encode())}
    for task in settings.task_names:
        names = ("train", *TASKS[task].dev_sets)
        splits[task] = {name: load_split(task, name, settings.data, tokenizer, settings,
                                         settings.limit) for name in names}
        file_checksums |= runs.checksums(settings.data, [TASKS[task].files[name] for name in names])
    return splits, file_checksums


def load_model(settings, device, edits=()):
    """→ model, tokenizer: from a checkpoint with new heads, or from a saved run (--from). It is on
    the CPU; `device` is where importance is measured. `edits` of a run that goes on say what was
    chosen by it when the run began."""
    torch.manual_seed(settings.seed)                         # of the new heads
    if not settings.from_run:
        tokenizer = Tokenizer.from_pretrained(settings.bert)
        bert = Bert.from_pretrained(settings.bert, settings.attention)
        model = build_model(bert, settings)
    else:
        saved, tokenizer, *_ = runs.open_run(settings.from_run)
        model = model_from(saved, settings)
    config = next(iter(model.encoders.values())).config
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{settings.from_run or settings.bert}: the tokenizer knows "
                        f"{tokenizer.vocab_size:,} tokens but the encoder embeds only "
                        f"{config.vocab_size:,}; they are of different checkpoints")
    model.encoders.requires_grad_(not settings.freeze)
    if settings.pooling in ("cls", "mean"):                     # then nothing reads the pooler
        for bert in model.encoders.values():
            bert.pooler.requires_grad_(False)
    if settings.mask_heads:
        switch_off(model, settings)
    if settings.keep_heads:
        keep_heads(model, tokenizer, settings, device, edits)
    if settings.lora:
        ranks = lora_ranks(model, tokenizer, settings, device, edits) if settings.lora_top else None
        adapters.attach(model, settings, ranks)
    else:
        adapters.refuse_left_over(model)
    for name, parameter in model.named_parameters():
        if model.part(name)[1] not in (None, *settings.trained_tasks):
            parameter.requires_grad_(False)
    return model, tokenizer


def train(settings, folder, recipe="", record=None, state=None):
    """Train from the start, or on from `state`, and leave a whole run in `folder`."""
    device, autocast = pick_device(settings.device, settings.precision)
    model, tokenizer = load_model(settings, device, record["edits"] if record else ())
    data, checksums = load_data(settings, tokenizer)
    model.to(device)
    sizes = {task: len(data[task]["train"]) for task in settings.trained_tasks}
    schedule = make_schedule(settings, sizes, distributed.world())
    lr = settings.lr or default_lr(model, settings)
    optimizer = adamw(parameter_groups(trained_modules(model, settings, schedule, lr),
                                       settings.weight_decay))
    units = {unit: [p for group in optimizer.param_groups if group["unit"] == unit
                    for p in group["params"]] for unit in schedule.units}
    trained = sum(units.values(), [])
    shared = [p for name, p in model.named_parameters()
              if p.requires_grad and model.part(name)[1] is None]
    runs.check_nothing_lost(model, trained)
    torch.manual_seed(settings.seed + distributed.rank())       # of dropout
    record = prepare_folder(folder, settings, recipe, checksums, record, model)
    record["resolved"] = {"lr": lr, "steps": schedule.steps, "device": str(device)}
    if settings.lora:
        print(accounting.table(accounting.count(model.bert, model.heads)) + "\n")
    print(f"{record['parameters']['trained']:,} weights learn in {schedule.steps:,} steps, "
          f"{schedule.epoch_steps:,} an epoch; learning rate {lr:g}; on {device}\n")
    now = {"step": 0, "seconds": 0.0, "scores": {}, "running": list(schedule.units),
           "best": dict.fromkeys(schedule.units, -math.inf), "best_step": dict.fromkeys(schedule.units, 0)}
    if state is not None:
        restore(state, model, optimizer, device, distributed.rank())
        now = state["now"]
        for task, stream in schedule.batches.items():
            stream.load_state_dict(state["batches"][task])
    first = distributed.rank() == 0                             # of several processes
    log = Log(folder / "log.jsonl" if first else None, now["step"])
    began = time.perf_counter() - now["seconds"]
    steps = range(now["step"] + 1, schedule.steps + 1) if now["running"] else ()

    bar = progress_bar("train", schedule.steps, "step", now["step"], silent=not first)
    with StopSignal() as stop, bar:
        for step in steps:
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = group["max_lr"] * warmup_then_decay(step, group["steps"],
                                                                settings.warmup, settings.decay)
            running = {task: sizes[task] for unit in now["running"] for task in schedule.units[unit]}
            epoch = -(-step // schedule.epoch_steps)
            tasks = SAMPLERS[settings.sampling](running, step, epoch, schedule.epochs, settings)
            gradients = []
            for task in tasks:
                for indices, weight in distributed.shard_batch(next(schedule.batches[task]),
                                                       settings.accumulate):
                    batch = data[task]["train"].batch(indices).to(device)
                    with autocast():
                        outputs = model(task, batch)
                    loss = settings.loss_of(task)(outputs, batch.labels) * weight
                    loss.backward()                          # gradients add up
                    log.add("loss", task, loss, weight)
                if settings.surgery != "none":               # each task's apart
                    gradients.append(pcgrad.pop_grads(shared))
                    distributed.all_reduce(gradients[-1])
            distributed.all_reduce([p.grad for p in trained])       # over the processes
            if gradients:
                orders = pcgrad.draw_orders(len(tasks), settings.seed, step)
                combined, grams = pcgrad.pcgrad(gradients, orders, settings.surgery == "pcgrad-tensor",
                                                 settings.surgery_mean, reuse=True)
                pcgrad.set_grads(shared, combined)
                pcgrad.log_conflicts(log, grams, tasks)
            if settings.clip:                                # units share nothing, the norm either
                for parameters in units.values():
                    nn.utils.clip_grad_norm_(parameters, settings.clip)
            if settings.l2:
                add_l2(trained, settings.l2)
            optimizer.step()
            optimizer.zero_grad()

            bar.update()
            now |= {"step": step, "seconds": time.perf_counter() - began}
            if step % settings.log_every == 0 or step == schedule.steps:
                bar.set_postfix(log.write_means(step, now["seconds"], distributed.total),
                                refresh=False)
            at_end = step % schedule.epoch_steps == 0 or step == schedule.steps
            if at_end:
                if first:
                    bar.write(evaluate_and_keep_best(model, tokenizer, data, schedule, now, folder, log, autocast))
                now |= distributed.broadcast({name: now[name] for name in ("best", "best_step")})
                now["running"] = still_running(schedule, now, settings.patience)
            stopping = distributed.any_rank(stop.asked, step % settings.log_every == 0)
            if at_end or stopping or (settings.save_every and step % settings.save_every == 0):
                rng_states = distributed.gather(rng_state(device))
                if first:
                    save_state(folder / STATE_FILE, model, optimizer, rng_states, now=now, batches={
                        task: stream.state_dict() for task, stream in schedule.batches.items()})
            if not now["running"]:
                break
            if stopping and step < schedule.steps:
                raise UserStop(f"stopped after step {step} of {schedule.steps}; go on with: "
                               f"python train_multitask.py --resume {folder}")
    if first:
        finish(folder, record, now, log)


def add_l2(parameters, strength):
    """The gradient of strength/2 · ‖w‖² is added to that of the loss, so that Adam scales both
    (weight decay, on the other hand, goes past Adam: Loshchilov & Hutter 2019)."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach(), alpha=strength)


def evaluate_and_keep_best(model, tokenizer, data, schedule, now, folder, log, autocast):
    """Evaluate; keep each unit that is better than before → a line for the screen. `now` holds
    every unit's best score and step, and the scores of what is kept."""
    dev = {task: {n: s for n, s in splits.items() if n != "train"} for task, splits in data.items()}
    device = next(model.parameters()).device
    scores, predictions = evaluate(model, dev, device, autocast)
    log.write(step=now["step"], dev=scores, seconds=round(now["seconds"], 1))
    improved_tasks = []
    for unit in now["running"]:
        value = choose_by(summary({task: scores[task] for task in schedule.units[unit]}))
        if not math.isfinite(value):
            raise UserError(f"a dev score of step {now['step']} is not finite; lower --lr")
        if value > now["best"][unit]:
            now["best"][unit], now["best_step"][unit] = value, now["step"]
            improved_tasks += schedule.units[unit] if len(schedule.units) > 1 else list(data)
    if improved_tasks:
        kept = {task: value for task, value in now["scores"].items() if isinstance(value, dict)}
        trained_tasks = sum(schedule.units.values(), [])                # the others are kept with the first
        improved_tasks += [task for task in data if task not in (*kept, *trained_tasks, *improved_tasks)]
        now["scores"] = summary({task: scores[task] if task in improved_tasks or task not in kept
                                 else kept[task] for task in data})
        runs.save_best(folder, model, tokenizer, improved_tasks, now["scores"], dev, predictions)
    return score_line(now["step"] / schedule.epoch_steps, scores, improved_tasks)


def still_running(schedule, now, patience):
    """The units that have steps left and, with patience, were better not too long ago."""
    return [unit for unit in now["running"] if now["step"] < schedule.unit_steps[unit] and not (
        patience and now["step"] - now["best_step"][unit] >= patience * schedule.epoch_steps)]


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


def finish(folder, record, now, log):
    """Complete run.json, draw the curves, print the table."""
    draw_curves(log.lines, folder / "curves.png")
    record["complete"] = True
    record["best_step"] = now["best_step"]
    record["times"] |= {"train_seconds": round(now["seconds"], 3), "steps": now["step"]}
    record["peak_bytes"] = peak_memory(torch.device(record["resolved"]["device"]))
    write_json(folder / "run.json", record)
    print(report(folder, record))


def report(folder, record):
    """The final table and what to do next."""
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    best = ", ".join(f"step {step:,}" + (f" ({unit})" if unit != SHARED else "")
                     for unit, step in record["best_step"].items())
    return (f"\n{score_table(scores)}\n\nbest of the run: {best}; "
            f"{record['times']['train_seconds'] / 60:.1f} minutes in all\n"
            f"run: {folder}   curves: {folder / 'curves.png'}\n"
            f"next: python evaluate.py {folder} --split test")


def parse(arguments):
    parser = Parser(description=__doc__)
    parser.add_argument("--resume", metavar="RUN", help="go on with a stopped run, as it was set")
    parser.add_argument("--recipe", metavar="NAME", default="", help="a published experiment's "
                        "settings; flags given beside it go before them")
    parser.add_argument("--recipes", action="store_true", help="list the recipes")
    add_flags(parser, Settings)
    return vars(parser.parse_args(arguments))


def new_settings(given, recipe):
    """The settings of a recipe ("": of none) and the flags beside it. A flag that would have no
    effect is an error; what the recipe says in vain is left out."""
    if recipe and recipe not in RECIPES:
        raise UserError(f"--recipe: there is no recipe {recipe!r}{did_you_mean(recipe, RECIPES)}; "
                        f"--recipes lists them")
    if {"bert", "from_run"} <= set(given):
        warnings.warn("--from brings its own encoder; --bert is not read", stacklevel=2)
        del given["bert"]
    if given.get("data") == Settings.data:                   # the default means another folder
        given["data"] = f"./{Settings.data}"
    settings = Settings(**((RECIPES[recipe].settings if recipe else {}) | given))
    settings.check_adapter_flags()
    idle = without_effect(settings)
    for name in idle:
        if name in given:
            raise UserError(f"--{name.replace('_', '-')} has no effect here: it needs "
                            f"{NEEDS[name][0]}; leave it out, or change that")
    return replace(settings, **{name: getattr(Settings, name) for name in idle})


def main(arguments=None):
    given = parse(arguments)
    resumed, recipe, listed = (given.pop(name) for name in ("resume", "recipe", "recipes"))
    if listed:
        return print(listing())
    if resumed is not None:
        return resume(Path(resumed), given, recipe)
    settings = new_settings(given, recipe)
    with distributed.processes(settings.device):
        folder = distributed.broadcast(runs.choose_folder(settings))
        print(f"python train_multitask.py {command(settings)}\n")
        if settings.data == Settings.data:
            settings = replace(settings, data=str(SAMPLE))
        return train(with_absolute_paths(settings, "bert", "data", "from_run"), folder, recipe)


def resume(folder, given, recipe):
    """Go on with a run that was stopped."""
    if recipe or set(given) - {"device", "save_every"}:
        raise UserError("--resume goes on by the run's own settings; only --device and "
                        "--save-every may stand beside it. To start from a run with others, use "
                        "--from")
    record, settings = runs.read_record(folder)
    if record["complete"]:
        return print(f"{folder} is complete: nothing is left to do\n{report(folder, record)}")
    if unknown := runs.unknown_settings(record):
        raise UserError(f"{folder} was begun with {', '.join(unknown)}, which this version does "
                        f"not know, so it cannot go on as it was set; resume it with the version "
                        f"that began it")
    state = read_state(folder / STATE_FILE)
    settings = replace(settings, **given)
    with distributed.processes(settings.device):
        if state is None:                                 # killed before the first save: begin anew
            return train(settings, folder, record["recipe"])
        return train(settings, folder, record["recipe"], record, state)


if __name__ == "__main__":
    run_script(main)
