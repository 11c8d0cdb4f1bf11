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
from bert.cli import Parser, StopSignal, UserStop, pick_device, run_script
from bert.files import write_json
from bert.log import Log
from bert.settings import add_flags, anchored, command
from bert.training import (
    adamw,
    progress_bar,
    read_state,
    restore,
    save_state,
    warmup_then_decay,
)
from multitask import runs
from multitask.data import checksum
from multitask.evaluation import evaluate, load_split
from multitask.metrics import choose_by
from multitask.report import draw_curves, score_line, score_table
from multitask.sampling import Batches
from multitask.settings import Settings
from multitask.tasks import TASKS

LOG_EVERY = 10                                               # steps between two looks at the losses
LAST = Path("last", "state.pt")                              # in the run: the state to resume from


def load_data(settings, tokenizer):
    """→ {task: {"train": Split, "dev": Split, …}}, {file: checksum}"""
    if not Path(settings.data).is_dir():
        raise UserError(f"--data {settings.data} is not a folder; it must hold the course's files, "
                        f"{TASKS[settings.task_names[0]].files['train']} for one")
    splits, checksums = {}, {"tokenizer": checksum(tokenizer.backend.to_str().encode())}
    for task in settings.task_names:
        names = ("train", *TASKS[task].dev_sets)
        splits[task] = {name: load_split(task, name, settings.data, tokenizer, settings,
                                         settings.limit) for name in names}
        files = [TASKS[task].files[name] for name in names]
        checksums |= {file: checksum((Path(settings.data) / file).read_bytes()) for file in files}
    return splits, checksums


def load_model(settings):
    """→ model, tokenizer: from a checkpoint with new heads, or from a saved run (--from)."""
    torch.manual_seed(settings.seed)                         # of the new heads
    if not settings.from_run:
        tokenizer = Tokenizer.from_pretrained(settings.bert)
        bert = Bert.from_pretrained(settings.bert, settings.attention)
        model = runs.build_model(bert, settings)
    else:
        saved, tokenizer, *_ = runs.open_run(settings.from_run)
        saved.bert.use_attention(settings.attention)
        model = runs.build_model(saved.bert, settings)
        for task, head in model.heads.items():
            new = head.state_dict()
            old = saved.heads[task].state_dict() if task in saved.heads else {}
            fits = ((saved.pairs, saved.read) == (settings.pairs, settings.read) and
                    {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()})
            head.load_state_dict(old if fits else new)
            print(f"{task}: {'its head in the run' if fits else 'a new head'}")
    if tokenizer.vocab_size > model.bert.config.vocab_size:
        raise UserError(f"{settings.from_run or settings.bert}: the tokenizer knows "
                        f"{tokenizer.vocab_size:,} tokens but the encoder embeds only "
                        f"{model.bert.config.vocab_size:,}; they are of different checkpoints")
    return model, tokenizer


def train(settings, folder, record=None, state=None):
    """Train from the start, or on from `state`, and leave a whole run in `folder`."""
    device, autocast = pick_device(settings.device, settings.precision)
    model, tokenizer = load_model(settings)
    data, checksums = load_data(settings, tokenizer)
    dev = {task: {n: s for n, s in splits.items() if n != "train"} for task, splits in data.items()}
    model.to(device)
    lr = settings.lr or 0.0384 / model.bert.config.hidden_size
    optimizer = adamw([(model.bert, lr), (model.heads, settings.head_lr)], settings.weight_decay)
    batches = {task: Batches(len(splits["train"]), settings.batch_size, settings.seed)
               for task, splits in data.items()}
    epoch_steps = max(map(len, batches.values()))
    epochs = settings.epochs or max(3, round(500 / epoch_steps))
    steps = settings.steps or epochs * epoch_steps
    torch.manual_seed(settings.seed)                         # of dropout
    record = prepare_folder(folder, settings, checksums, record, model.bert.edits)
    record["resolved"] = {"lr": lr, "steps": steps, "device": str(device)}
    print(f"{steps:,} steps, {epoch_steps:,} an epoch; learning rate {lr:g}; on {device}\n")
    now = {"step": 0, "best": -math.inf, "best_step": 0, "seconds": 0.0}
    if state is not None:
        restore(state, model, optimizer)
        now = state["now"]
        for task, stream in batches.items():
            stream.load_state_dict(state["batches"][task])
    log = Log(folder / "log.jsonl", now["step"])
    began = time.perf_counter() - now["seconds"]

    with StopSignal() as stop, progress_bar("train", steps, "step", now["step"]) as bar:
        for step in range(now["step"] + 1, steps + 1):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * warmup_then_decay(step, steps, settings.warmup)
            for task in batches:
                batch = data[task]["train"].batch(next(batches[task])).to(device)
                with autocast():
                    outputs = model(task, batch)
                loss = TASKS[task].loss(outputs, batch.labels)
                loss.backward()                              # the tasks' gradients add up
                log.add_loss(task, loss)
            if settings.clip:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()

            bar.update()
            if step % LOG_EVERY == 0 or step == steps:
                bar.set_postfix(log.write_losses(step, time.perf_counter() - began), refresh=False)
            at_end = step % epoch_steps == 0 or step == steps
            if at_end:
                scores, predictions = evaluate(model, dev, device, autocast)
                if not math.isfinite(choose_by(scores)):
                    raise UserError(f"a dev score of step {step} is not finite; lower --lr")
                log.write(step=step, dev=scores, seconds=round(time.perf_counter() - began, 1))
                better = choose_by(scores) > now["best"]
                if better:
                    now |= {"best": choose_by(scores), "best_step": step}
                    runs.save_best(folder, model, tokenizer, scores, dev, predictions)
                bar.write(score_line(step / epoch_steps, scores, better))
            if at_end or stop.asked or (settings.save_every and step % settings.save_every == 0):
                now |= {"step": step, "seconds": time.perf_counter() - began}
                save_state(folder / LAST, model, optimizer, now=now, batches={
                    task: stream.state_dict() for task, stream in batches.items()})
            if stop.asked and step < steps:
                raise UserStop(f"stopped after step {step} of {steps}; go on with: "
                               f"python train_multitask.py --resume {folder}")
    finish(folder, record, now, log)


def prepare_folder(folder, settings, checksums, record, edits):
    """Check that a resumed run sees the same files, or begin a new run's folder → its record."""
    if record is None:
        record = runs.new_record(settings, checksums, edits)
        runs.start(folder, record)
    if record["data"] != checksums:
        changed = [name for name in checksums if record["data"].get(name) != checksums[name]]
        raise UserError(f"{', '.join(changed)} changed since the run {folder} began, so it cannot "
                        f"go on; start a new run (its data is {settings.data})")
    if record["versions"]["threads"] != torch.get_num_threads():
        warnings.warn(f"the run began with {record['versions']['threads']} threads and goes on "
                      f"with {torch.get_num_threads()}: last digits will differ", stacklevel=2)
    return record


def finish(folder, record, now, log):
    """Complete run.json, draw the curves, print the table."""
    draw_curves(log.lines, folder / "curves.png")
    record["complete"] = True
    record["best_step"] = now["best_step"]
    record["times"]["train_seconds"] = round(now["seconds"], 1)
    write_json(folder / "run.json", record)
    print(report(folder, record))


def report(folder, record):
    """The final table and what to do next."""
    scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return (f"\n{score_table(scores)}\n\nbest of the run: step {record['best_step']:,}; "
            f"{record['times']['train_seconds'] / 60:.1f} minutes in all\n"
            f"run: {folder}   curves: {folder / 'curves.png'}\n"
            f"next: python evaluate.py {folder} --split test")


def parse(arguments):
    parser = Parser(description=__doc__)
    parser.add_argument("--resume", metavar="RUN", help="go on with a stopped run, as it was set")
    add_flags(parser, Settings)
    return vars(parser.parse_args(arguments))


def main(arguments=None):
    given = parse(arguments)
    resumed = given.pop("resume")
    if resumed is None:
        if {"bert", "from_run"} <= set(given):
            warnings.warn("--from brings its own encoder; --bert is not read", stacklevel=2)
            del given["bert"]
        settings = Settings(**given)
        folder = runs.choose_folder(settings)
        print(f"python train_multitask.py {command(settings)}\n")
        return train(anchored(settings, "bert", "data", "from_run"), folder)
    if set(given) - {"device", "save_every"}:
        raise UserError("--resume goes on by the run's own settings; only --device and "
                        "--save-every may stand beside it. To start from a run with others, use "
                        "--from")
    folder = Path(resumed)
    record, settings = runs.read_record(folder)
    if record["complete"]:
        print(f"{folder} is complete: nothing is left to do\n{report(folder, record)}")
        return None
    state = read_state(folder / LAST)
    settings = replace(settings, **given)
    if state is None:                                     # killed before the first save: begin anew
        return train(settings, folder)
    return train(settings, folder, record, state)


if __name__ == "__main__":
    run_script(main)
