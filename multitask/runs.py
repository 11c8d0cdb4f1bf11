"""A run's folder (docs/multitask.md says what is in it): begun, the best model saved, opened again.
Where each task has an encoder of its own, it lies in model/<task>/."""

import shutil
import warnings
from dataclasses import asdict, fields
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from bert import Bert, Tokenizer, UserError
from bert.checkpoint import load_bert, save_bert
from bert.files import fingerprint, read_metadata, read_tensors, write_json, write_tensors
from bert.json_files import NUMBER, check_type, read_json
from common.run_folder import check_new_folder, damaged, read_record, versions
from multitask import distributed, methods
from multitask.course import find_file
from multitask.evaluation import write_predictions
from multitask.model import use_attention, with_heads
from multitask.settings import SHARED
from multitask.tasks import TASKS

VERSION = 2                                                  # of the format of run.json
EDIT = {"method": set(methods.METHODS)}                           # beside the method's own EDIT
RECORD = {                                                   # run.json; its settings: Settings
    "settings": dict[str, bool | int | float | str], "methods": list[set(methods.METHODS)],
    "recipe": str, "edits": list[EDIT], "complete": bool,
    "data": dict[str, str], "times": {"train_seconds?": float, "steps?": int},
    "versions": {"processes": int, "threads": int}, "parameters": {"trained": int, "stored": int}}
COMPLETE = {"times": {"train_seconds": float}, "best_step": dict[str, int]}      # and then also
SCORES = dict[str, dict[str, NUMBER] | NUMBER]               # metrics.json
CONTENT = ("last", "run.json", "metrics.json", "model", "adapters", "heads.safetensors",
           "predictions", "log.jsonl", "curves.png", "importance", "laser", "compression",
           "early_exit", "exits.safetensors", "experts", "experts.safetensors", "attack")
RESUME = "python train_multitask.py --resume"


def choose_folder(settings):
    """The folder that a new run will have; nothing is written yet."""
    if settings.out:
        return check_new_folder(settings.out, "run.json", "saved run", settings.overwrite, RESUME, {
            "--bert": settings.bert, "--data": settings.data, "--from": settings.from_run})
    stem, number = Path(settings.from_run or settings.bert).resolve().name, 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def init_run_folder(folder, record):
    """Make the folder, or clear the run that was in it, and write run.json. Delete last/ before
    rewriting run.json: a crash never pairs old state with new settings."""
    for path in (folder / name for name in CONTENT):
        if path.name == "run.json":
            write_json(path, record)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def new_record(settings, recipe, checksums, model):
    """The fields of run.json when a run begins."""
    used = methods.used_methods(settings)
    known = {f.name for f in fields(methods.settings_class(used))}
    first = next(iter(model.encoders.values()))
    beside = sum(p.numel() for name, p in first.named_parameters()
                 if ".adapters." in name or name.startswith("exits."))
    with methods.encoder_alone(first):
        stored = beside + sum(p.numel() for p in model.parameters())
    return {
        "version": VERSION, "recipe": recipe, "tasks": settings.task_names, "seed": settings.seed,
        "settings": {name: value for name, value in asdict(settings).items() if name in known},
        "methods": list(used), "data": checksums, "complete": False, "edits": first.edits,
        "parameters": {"trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
                       "stored": stored},
        "versions": versions() | {"processes": distributed.world()},
        "times": {"started": datetime.now().isoformat(timespec="seconds")},
    }


def checksums(folder, splits):
    """{file: the fingerprint of its bytes}: what a run has read of `splits` {task: split names}."""
    files = [TASKS[task].files[name] for task, names in splits.items() for name in names]
    return {file: fingerprint(find_file(folder, file).read_bytes()) for file in files}


def encoder_folder(folder, name):
    """Where the encoder that all tasks share lies, or a task's own."""
    return folder / "model" / ("" if name == SHARED else name)


def weights_fingerprint(folder, names, edits):
    """The fingerprint of the weights of these encoders and of what `edits` saved beside them. The
    heads' file holds it: a kill between the files of one save is noticed when the run is opened."""
    files = [encoder_folder(folder, name) / "model.safetensors" for name in names]
    return fingerprint(*(file.read_bytes() for file in files + methods.weight_files(edits, folder)))


def check_nothing_lost(model, optimizer):
    """Raise UserError that names parameters with requires_grad that the optimizer lacks, and
    tensors of the encoders that no saved file would hold."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [name for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in trained]
    for key, bert in model.encoders.items():
        with torch.device("meta"):
            plain = type(bert)(bert.config, bert.attention_name)
            methods.rebuild(plain, bert.edits)
        with methods.encoder_alone(bert):
            shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
            lost += [f"encoders.{key}.{name}" for name, tensor in bert.state_dict().items()
                     if shapes.get(name) != tensor.shape]
    if lost:
        raise UserError(f"{', '.join(dict.fromkeys(lost))} would not be trained and saved; make a "
                        "further module in MultitaskModel's __init__, beside the heads")


def save_best(folder, model, tokenizer, tasks, scores, splits, predictions):
    """Write the model of these tasks and its scores; what is there of other tasks stays."""
    for name in dict.fromkeys(task if task in model.encoders else SHARED for task in tasks):
        bert, place = model.encoders[name], encoder_folder(folder, name)
        if model.adapters and (place / "model.safetensors").is_file():
            continue                                         # it is frozen, only adapters change
        with methods.encoder_alone(bert):
            save_bert(bert, place, partial(methods.rebuild, edits=bert.edits))
        tokenizer.save_pretrained(place)
    methods.save(model, tasks, folder)
    heads_file = folder / "heads.safetensors"
    heads = model.own_state()
    if set(tasks) < set(model.heads) and heads_file.is_file():
        heads = read_tensors(heads_file) | model.own_state(tasks)
    write_tensors(heads_file, heads, encoder=weights_fingerprint(
        folder, model.encoders, next(iter(model.encoders.values())).edits))
    write_predictions(folder / "predictions", splits,
                      {key: value for key, value in predictions.items() if key[0] in tasks})
    write_json(folder / "metrics.json", scores)


def is_saved_run(folder):
    return (Path(folder) / "run.json").is_file()


def read_fields(folder):
    """The fields of a run's run.json; UserError unless they are as RECORD and the methods' EDITs
    describe them."""
    path = Path(folder) / "run.json"
    record = read_record(path, "saved run", VERSION, RECORD)
    try:
        check_type(record, COMPLETE if record["complete"] else {}, path)
        methods.check_edits(record["edits"], path)
    except UserError as error:
        raise damaged(path, error) from error
    return record


def read_settings(folder):
    """→ run.json's fields, the Settings, and the names of settings that this version lacks."""
    record, path = read_fields(folder), Path(folder) / "run.json"
    try:
        class_ = methods.settings_class(tuple(dict.fromkeys(record["methods"])))
        known = {f.name for f in fields(class_)}
        unknown = sorted(name for name, value in record["settings"].items()
                         if value and name not in known)     # one that is off does nothing
        settings = class_(**{k: v for k, v in record["settings"].items() if k in known})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if unknown:
        warnings.warn(f"{path} has settings that this version does not know, and does without: "
                      f"{', '.join(unknown)}", stacklevel=2)
    return record, settings, unknown


def open_run(folder):
    """→ model, tokenizer, settings, record of a saved run's best model."""
    folder = Path(folder)
    record, settings, _ = read_settings(folder)
    heads_file = folder / "heads.safetensors"
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder} has no scored model yet; {RESUME} {folder} goes on with the run")
    names = [SHARED] if settings.encoders == "shared" else settings.task_names
    found = weights_fingerprint(folder, names, record["edits"])
    if read_metadata(heads_file).get("encoder") != found:
        model_file = encoder_folder(folder, names[-1]) / "model.safetensors"
        raise UserError(f"{heads_file} belongs to another encoder than {model_file}: the run was "
                        f"stopped while it was saved ({RESUME} {folder} mends that), or a file was "
                        f"replaced")
    encoders = {}
    for name in names:
        encoders[name] = load_bert(Bert, encoder_folder(folder, name), settings.attention,
                                   partial(methods.rebuild, edits=record["edits"]))
        use_attention(encoders[name], settings)
        methods.restore(encoders[name], record["edits"], folder)
    tokenizer = Tokenizer.from_pretrained(encoder_folder(folder, names[0]))
    model = with_heads(encoders, settings)
    if model.adapters != settings.adapter_by_task:
        raise damaged(folder / "run.json", f"its edits name the adapters {model.adapters}, and its "
                                           f"settings {settings.adapter_by_task}")
    model.load_own_state(read_tensors(heads_file), heads_file)
    return model, tokenizer, settings, record


def read_scores(folder, tasks=()):
    """→ the content of metrics.json, which must have scores of these tasks."""
    path = Path(folder) / "metrics.json"
    scores = read_json(path, SCORES)
    check_type(scores, {task: dict.fromkeys(TASKS[task].metrics, NUMBER) for task in tasks}, path)
    return scores
