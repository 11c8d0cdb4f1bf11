"""A run's folder: what training leaves behind and any script opens again.

    model/             the best encoder, in the Hugging Face layout   metrics.json  its dev scores
    heads.safetensors  the best heads, and further modules            predictions/  the course's
    adapters/<name>/   each adapter, in peft's layout, and its heads  log.jsonl     what happened
    last/              the state to resume from
    run.json           settings, data, edits, versions, times         curves.png    the log drawn

Where each task has an encoder of its own, they lie in model/<task>/.
"""

import json
import platform
import shutil
import warnings
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path

import torch

from bert import Bert, Tokenizer, UserError
from bert.checkpoint import check_names_and_shapes, load_bert, save_bert
from bert.files import read_metadata, read_tensors, write_json, write_tensors
from common.device import pick_device
from common.flags import with_absolute_paths
from compression.stored import left_out
from lora import detached
from multitask import adapters, distributed, edits
from multitask.adapters import SHARED
from multitask.data import checksum, find_file
from multitask.evaluation import evaluate, load_dev, write_predictions
from multitask.model import with_heads
from multitask.report import score_table
from multitask.settings import Settings
from multitask.tasks import TASKS

CONTENT = ("last", "run.json", "metrics.json", "model", "adapters", "heads.safetensors",
           "predictions", "log.jsonl", "curves.png", "importance", "laser")


def choose_folder(settings):
    """The folder a new run will have. Nothing is written yet: a mistake found later leaves no
    trace."""
    if not settings.out:
        stem, number = Path(settings.from_run or settings.bert).resolve().name, 1
        while (folder := Path("runs") / f"{stem}-{number}").exists():
            number += 1
        return folder
    folder = Path(settings.out).expanduser()
    if folder.is_file():
        raise UserError(f"--out {folder} is a file; a run is a folder")
    if folder.is_dir() and any(file.name != "run.json.part" for file in folder.iterdir()):
        if not (folder / "run.json").is_file():
            raise UserError(f"--out {folder} holds files that are no saved run; they are left "
                            f"alone: choose another folder")
        if not settings.overwrite:
            raise UserError(f"--out {folder} is a saved run; --overwrite replaces it (python "
                            f"train_multitask.py --resume {folder} goes on with it)")
        for flag, path in (("--bert", settings.bert), ("--data", settings.data),
                           ("--from", settings.from_run)):
            if path and Path(path).expanduser().resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{flag} {path} lies in --out {folder}, which would be replaced; "
                                f"choose another --out")
    return folder


def init_run_folder(folder, record):
    """Make the folder, or clear the run that was in it, and write run.json. At every moment the
    folder can be told to be a run's; last/ goes first, because it is of the old record."""
    for name in CONTENT:
        if name == "run.json":
            write_json(folder / name, record)
        elif (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def new_record(settings, recipe, checksums, model):
    """run.json of a run that begins."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "recipe": recipe, "settings": asdict(settings), "tasks": settings.task_names,
        "seed": settings.seed, "data": checksums, "complete": False,
        "edits": next(iter(model.encoders.values())).edits,
        "parameters": {"trained": trained, "stored": sum(p.numel() for p in model.parameters())},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "threads": torch.get_num_threads(), "processes": distributed.world()},
        "times": {"started": datetime.now().isoformat(timespec="seconds")},
    }


def checksums(folder, files):
    """{file: its checksum}: what a run has read."""
    return {file: checksum(find_file(folder, file).read_bytes()) for file in files}


def encoder_folder(folder, name):
    """Where the encoder that all tasks share lies, or a task's own."""
    return folder / "model" if name == SHARED else folder / "model" / name


def encoders_checksum(folder, names):
    """Of all the encoders' and adapters' weights. The heads' file holds it: a kill between the
    files of one save is noticed when the run is opened."""
    files = [encoder_folder(folder, name) / "model.safetensors" for name in names]
    return checksum(b"".join(file.read_bytes()
                             for file in files + adapters.weight_files(folder)))


def check_nothing_lost(model, trained):
    """UserError that names what training would change and not keep, or not change at all: of the
    parameters to learn, those that are not among `trained`; of the encoders' tensors, those that no
    saved file holds."""
    trained = {id(parameter) for parameter in trained}
    lost = [name for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in trained]
    for key, bert in model.encoders.items():
        with torch.device("meta"):
            plain = type(bert)(bert.config)
            edits.rebuild(plain, bert.edits)
        with detached(bert):
            shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
            lost += [f"encoders.{key}.{name}" for name, tensor in bert.state_dict().items()
                     if shapes.get(name) != tensor.shape]
    if lost:
        raise UserError(f"{', '.join(dict.fromkeys(lost))} would not be trained and saved: the "
                        f"encoder holds a Bert's own weights only; make a further module in "
                        f"MultitaskModel's __init__, beside the heads")


def save_best(folder, model, tokenizer, tasks, scores, splits, predictions):
    """Write the model of these tasks and what it scores; what is there of other tasks stays."""
    for name in {task if task in model.encoders else SHARED: None for task in tasks}:
        bert, place = model.encoders[name], encoder_folder(folder, name)
        if model.adapters and (place / "model.safetensors").is_file():
            continue                                         # it is frozen, only adapters change
        with detached(bert), left_out(bert):
            save_bert(bert, place, lambda plain, done=bert.edits: edits.rebuild(plain, done))
        tokenizer.save_pretrained(place)
    adapters.save(model, tasks, folder)
    heads_file = folder / "heads.safetensors"
    heads = model.own_state()
    if set(tasks) < set(model.heads) and heads_file.is_file():
        heads = read_tensors(heads_file) | model.own_state(tasks)
    write_tensors(heads_file, heads, encoder=encoders_checksum(folder, model.encoders))
    write_predictions(folder / "predictions", splits,
                      {key: value for key, value in predictions.items() if key[0] in tasks})
    write_json(folder / "metrics.json", scores)


def save_edited(folder, source, settings, model, tokenizer, splits, scores, predictions,
                more=None):
    """Write `model`, which was made of the run `source` by edits and no training, as a run of its
    own. `settings` are those it was scored with. `more` {file: tensors} lies beside it."""
    old, _ = read_record(source)
    model.requires_grad_(False)                              # nothing was trained
    settings = replace(settings, out=str(folder), from_run=str(Path(source).resolve()))
    files = [TASKS[task].files[name] for task, named in splits.items() for name in named]
    with left_out(next(iter(model.encoders.values()))):
        record = new_record(settings, old["recipe"], checksums(settings.data, files), model)
    record |= {"complete": True, "best_step": {SHARED: 0}}
    record["times"]["train_seconds"] = 0.0
    init_run_folder(folder, record)
    for file, tensors in (more or {}).items():
        write_tensors(folder / file, tensors)
    save_best(folder, model, tokenizer, list(model.heads), scores, splits, predictions)


def derive_run(args, edit):
    """A new run in args.out, made of args.run by edit(model, tokenizer, settings, device), which
    may return other settings: scored on its dev sets, and shown → its folder."""
    model, tokenizer, settings, _ = open_run(args.run)
    settings = with_absolute_paths(replace(settings, data=args.data or settings.data, from_run=args.run,
                                out=args.out, overwrite=args.overwrite), "data", "from_run")
    folder = choose_folder(settings)
    device, autocast = pick_device(args.device, settings.precision)
    settings = edit(model.to(device), tokenizer, settings, device) or settings
    dev = load_dev(model.heads, settings, tokenizer)
    scores, predictions = evaluate(model, dev, device, autocast)
    save_edited(folder, args.run, settings, model, tokenizer, dev, scores, predictions)
    print(f"{score_table(scores)}\n\nrun: {folder}")
    return folder


def is_saved_run(folder):
    return (Path(folder) / "run.json").is_file()


def read_fields(folder, needed):
    """run.json's fields; UserError unless those that are needed are among them."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a saved run: it has no run.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if absent := set(needed) - set(record):
            raise KeyError(*sorted(absent))
        return record | {"settings": dict(record["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or made by another version ({error!r})") from error


def unknown_settings(record):
    return sorted(set(record["settings"]) - {field.name for field in fields(Settings)})


def read_record(folder):
    """→ run.json's fields and its Settings, without those that this version does not know."""
    record = read_fields(folder, ("settings", "recipe", "edits", "complete", "data", "times",
                                  "versions", "parameters"))
    unknown, path = unknown_settings(record), Path(folder) / "run.json"
    if unknown:
        warnings.warn(f"{path} has settings that this version does not know, and does without: "
                      f"{', '.join(unknown)}", stacklevel=2)
    try:
        return record, Settings(**{name: value for name, value in record["settings"].items()
                                   if name not in unknown})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def open_run(folder):
    """→ model, tokenizer, settings, record of a saved run's best model."""
    folder = Path(folder)
    record, settings = read_record(folder)
    heads_file = folder / "heads.safetensors"
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder} has no scored model yet; python train_multitask.py --resume "
                        f"{folder} goes on with the run")
    names = [SHARED] if settings.encoders == "shared" else settings.task_names
    model_file = encoder_folder(folder, names[-1]) / "model.safetensors"
    if read_metadata(heads_file).get("encoder") != encoders_checksum(folder, names):
        raise UserError(f"{heads_file} belongs to another encoder than {model_file}: the run was "
                        f"stopped while it was saved (python train_multitask.py --resume {folder} "
                        f"mends that), or a file was replaced")
    encoders = {}
    for name in names:
        encoders[name] = load_bert(Bert, encoder_folder(folder, name), settings.attention,
                                   rebuild=lambda bert: edits.rebuild(bert, record["edits"]))
        edits.restore(encoders[name], record["edits"], folder)
    tokenizer = Tokenizer.from_pretrained(encoder_folder(folder, names[0]))
    model = with_heads(encoders, settings)
    heads = read_tensors(heads_file)
    check_names_and_shapes(heads_file, model.own_state(), heads)
    for name, tensor in model.own_state().items():
        tensor.copy_(heads[name])
    return model, tokenizer, settings, record
