"""A run's folder (docs/multitask.md says what is in it): begun, the best model saved, opened again.
Where each task has an encoder of its own, it lies in model/<task>/."""

import itertools
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from bert import Bert, Tokenizer, UserError
from bert.checkpoint import load_bert, save_bert
from bert.files import fingerprint, read_metadata, read_tensors, write_json, write_tensors
from bert.json_files import NUMBER, check_type, read_json
from bert.tokenizer import SETTINGS, VOCABULARY
from common.cli import quoted
from common.run_folder import claim, clear, damaged, new_folder, read_record, versions
from multitask import distributed, methods
from multitask.course import find_file
from multitask.evaluation import write_predictions
from multitask.model import use_attention, with_heads
from multitask.settings import SHARED
from multitask.tasks import TASKS

VERSION = 2                                                  # of the format of run.json
ENCODER = ("model.safetensors", "compressed.safetensors", "config.json", *VOCABULARY, *SETTINGS)
PREDICTIONS = {row.write(row, task, split, [], [])[0] for task, row in TASKS.items()
               for split in (*row.dev_sets, *row.test_sets)}
FILES = {                                    # folder in a run → what we write there, as patterns
    "last": ("state.pt",),
    "": ("run.json", "metrics.json", "log.jsonl", "curves.png", "heads.safetensors",
         "exits.safetensors", "experts.safetensors"),
    "model": ENCODER, "model/*": ENCODER,
    "adapters/*": ("adapter_config.json", "adapter_model.safetensors", "heads.safetensors"),
    "importance": [f"{of}.{kind}" for of in ("heads", "neurons", "layers")
                   for kind in ("csv", "png")],
    "laser": ("outputs.safetensors", "sweep.csv", "heatmap.png", "spectra.png", "search.csv",
              "search.png"),
    "compression": [f"compress-*.{kind}" for kind in ("json", "csv", "png")],
    "early_exit": ("states-*.safetensors", "curve.csv", "chosen.csv", "curve.png", "netcut.png"),
    "experts": [f"curve.{kind}" for kind in ("json", "csv", "png")],
    "attack": [f"{task}-*.jsonl" for task in TASKS],
    **{f"{place}predictions": PREDICTIONS for place in ("", "laser/", "early_exit/", "experts/")}}
CONTENT = [str(Path(place, file)) for place, files in FILES.items() for file in files]
EDIT = {"method": set(methods.METHODS)}                           # beside the method's own EDIT
RECORD = {                                                   # run.json; its settings: Settings
    "settings": dict[str, bool | int | float | str], "methods": list[set(methods.METHODS)],
    "recipe": str, "edits": list[EDIT], "complete": bool,
    "data": dict[str, str], "times": {"train_seconds?": float, "steps?": int},
    "versions": {"processes": int, "threads": int}, "parameters": {"trained": int, "stored": int}}
COMPLETE = {"times": {"train_seconds": float}, "best_step": dict[str, int]}      # and then also
SCORES = dict[str, dict[str, NUMBER] | NUMBER]               # metrics.json
RESUME = "python train_multitask.py --resume"


@contextmanager
def choose_folder(settings):
    """Claim the folder that a new run will have and yield it; nothing is written yet."""
    out, stem = settings.out, Path(settings.from_run or settings.bert).resolve().name
    for number in itertools.count(1) if not out else ():
        out = Path("runs") / f"{stem}-{number}"
        with suppress(FileExistsError):
            out.mkdir(parents=True)                          # of two processes one alone makes it
            break
    with new_folder(out, "run.json", "saved run", settings.overwrite, RESUME, {
            "--bert": settings.bert, "--data": settings.data, "--from": settings.from_run},
            CONTENT) as folder:
        yield folder


@contextmanager
def claim_saved(folder, record):
    """Claim a run that is to go on. UserError if its record is not as it was read before."""
    with claim(folder, CONTENT):
        if read_fields(folder) != record:
            raise UserError(f"{folder} was changed by another process; resume it again")
        yield


def init_run_folder(folder, record):
    """Clear the run that was in the folder, and write run.json. Delete last/ before rewriting
    run.json: a crash never pairs old state with new settings."""
    state, _, *others = CONTENT
    clear(folder, [state])
    write_json(folder / "run.json", record)
    clear(folder, others)


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


def is_trained(record):
    """Whether train_multitask.py makes the run; else a command makes it of another, `from_run`
    (RunSession.derive)."""
    return record.get("best_step") != {SHARED: 0}


def checksums(folder, splits):
    """{file: the fingerprint of its bytes}: what a run has read of `splits` {task: split names}."""
    files = [TASKS[task].files[name] for task, names in splits.items() for name in names]
    return {file: fingerprint(find_file(folder, file).read_bytes()) for file in files}


def encoder_folder(folder, name):
    """Where the encoder that all tasks share lies, or a task's own."""
    return folder / "model" / ("" if name == SHARED else name)


def weights_fingerprint(folder, names, edits, saved=()):
    """The fingerprint of the weights of these encoders and of what `edits` saved beside them. The
    heads' file holds it: a kill between the files of one save is noticed when the run is opened.
    saved {path: bytes}: what was just written, which is not read back."""
    files = [encoder_folder(folder, name) / "model.safetensors" for name in names]
    return fingerprint(*(saved[file] if file in saved else file.read_bytes()
                         for file in files + methods.weight_files(edits, folder)))


def check_nothing_lost(model, optimizer, settings):
    """Raise UserError that names parameters with requires_grad that the optimizer lacks, tensors of
    the encoders that no saved file would hold, and others that an opened run would not have."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [name for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in trained]
    opened = with_heads(model.encoders, settings).own_state()
    lost += [name for name in model.own_state() if name not in opened]
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
    saved = {}
    for name in dict.fromkeys(task if task in model.encoders else SHARED for task in tasks):
        bert, place = model.encoders[name], encoder_folder(folder, name)
        if model.adapters and (place / "model.safetensors").is_file():
            continue                                         # it is frozen, only adapters change
        with methods.encoder_alone(bert):
            saved |= save_bert(bert, place, partial(methods.rebuild, edits=bert.edits))
        tokenizer.save_pretrained(place)
    saved |= methods.save(model, tasks, folder)
    heads_file = folder / "heads.safetensors"
    heads = model.own_state()
    if set(tasks) < set(model.heads) and heads_file.is_file():
        heads = read_tensors(heads_file) | model.own_state(tasks)
    write_tensors(heads_file, heads, encoder=weights_fingerprint(
        folder, model.encoders, next(iter(model.encoders.values())).edits, saved))
    write_predictions(folder / "predictions", splits,
                      {key: value for key, value in predictions.items() if key[0] in tasks})
    write_json(folder / "metrics.json", scores)


def resume_command(folder):
    return f"{RESUME} {quoted(folder)}"


def is_saved_run(folder):
    return (Path(folder) / "run.json").is_file()


def read_fields(folder, needed=tuple(RECORD)):
    """The fields of a run's run.json; UserError unless those that are needed are as RECORD and the
    methods' EDITs describe them."""
    path = Path(folder) / "run.json"
    record = read_record(path, "saved run", VERSION, {name: RECORD[name] for name in needed})
    try:
        check_type(record, COMPLETE if record["complete"] else {}, path)
        if "edits" in needed:
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
        raise UserError(f"{folder} has no scored model yet; {resume_command(folder)} goes on with "
                        f"the run")
    names = [SHARED] if settings.encoders == "shared" else settings.task_names
    found = weights_fingerprint(folder, names, record["edits"])
    if read_metadata(heads_file).get("encoder") != found:
        model_file = encoder_folder(folder, names[-1]) / "model.safetensors"
        raise UserError(f"{heads_file} belongs to another encoder than {model_file}: the run was "
                        f"stopped while it was saved ({resume_command(folder)} mends that), or a "
                        f"file was replaced")
    encoders = {}
    for name in names:
        encoders[name] = load_bert(Bert, encoder_folder(folder, name), settings.attention,
                                   partial(methods.rebuild, edits=record["edits"]))
        use_attention(encoders[name], settings)
        methods.restore(encoders[name], record["edits"], folder)
    tokenizer = Tokenizer.from_pretrained(encoder_folder(folder, names[0]))
    tokenizer.check_fits(encoders[names[0]].config, folder, settings.joint_pairs)
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
    if {} in scores.values():
        raise UserError(f"{path} names a task without scores; evaluate or train the run again")
    check_type(scores, {task: dict.fromkeys(TASKS[task].metrics, NUMBER) for task in tasks}, path)
    return scores
