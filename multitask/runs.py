"""A run's folder: what training leaves behind and any script opens again.

    model/             the best encoder, in the Hugging Face layout   metrics.json  its dev scores
    heads.safetensors  the best heads                                 predictions/  the course's
    adapters/<name>/   each adapter, in peft's layout, and its heads  log.jsonl     what happened
    last/              the state to resume from
    run.json           settings, data, edits, versions, times         curves.png    the log drawn
"""

import json
import platform
import shutil
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch

from bert import Bert, Tokenizer, UserError
from bert.checkpoint import check_names_and_shapes, load_bert, save_bert
from bert.files import read_metadata, read_tensors, write_json, write_tensors
from lora import detached
from multitask import adapters, edits
from multitask.data import checksum
from multitask.evaluation import write_predictions
from multitask.model import MultitaskModel, build_head
from multitask.settings import Settings

CONTENT = ("last", "run.json", "metrics.json", "model", "adapters", "heads.safetensors",
           "predictions", "log.jsonl", "curves.png")


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
            raise UserError(f"--out {folder} is a saved run; --overwrite replaces it, --resume "
                            f"{folder} goes on with it")
        for flag, path in (("--bert", settings.bert), ("--data", settings.data),
                           ("--from", settings.from_run)):
            if path and Path(path).expanduser().resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{flag} {path} lies in --out {folder}, which would be replaced; "
                                f"choose another --out")
    return folder


def start(folder, record):
    """Make the folder, or clear the run that was in it, and write run.json. At every moment the
    folder can be told to be a run's; last/ goes first, because it is of the old record."""
    for name in CONTENT:
        if name == "run.json":
            write_json(folder / name, record)
        elif (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def new_record(settings, checksums, edits=()):
    """run.json of a run that begins, with a model to which `edits` were done before."""
    return {
        "settings": asdict(settings), "tasks": settings.task_names, "seed": settings.seed,
        "data": checksums, "edits": list(edits), "complete": False,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "threads": torch.get_num_threads()},
        "times": {"started": datetime.now().isoformat(timespec="seconds")},
    }


def save_best(folder, model, tokenizer, scores, splits, predictions):
    """Write the model and what it scores. The heads' file holds the encoder's checksum: a kill
    between the files is noticed when the run is opened."""
    with detached(model.bert):
        save_bert(model.bert, folder / "model", lambda bert: edits.reshape(bert, model.bert.edits))
    adapters.save_all(model, folder)
    tokenizer.save_pretrained(folder / "model")
    write_tensors(folder / "heads.safetensors", model.heads.state_dict(),
                  encoder=encoder_checksum(folder))
    write_predictions(folder / "predictions", splits, predictions)
    write_json(folder / "metrics.json", scores)


def encoder_checksum(folder):
    """Of the files that hold the encoder's weights, and its adapters'."""
    files = [folder / "model" / "model.safetensors", *adapters.weight_files(folder)]
    return checksum(b"".join(file.read_bytes() for file in files))


def read_record(folder):
    """→ run.json's fields and its Settings."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a saved run: it has no run.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        absent = {"settings", "edits", "complete", "data", "times", "versions"} - set(record)
        if absent:
            raise KeyError(*sorted(absent))
        return record, Settings(**record["settings"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or made by another version ({error!r})") from error


def open_run(folder):
    """→ model, tokenizer, settings, record of a saved run's best model."""
    folder = Path(folder)
    record, settings = read_record(folder)
    heads_file = folder / "heads.safetensors"
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder} has no scored model yet; python train_multitask.py --resume "
                        f"{folder} goes on with the run")
    if read_metadata(heads_file).get("encoder") != encoder_checksum(folder):
        raise UserError(f"{heads_file} belongs to another encoder than is in {folder}: the run was "
                        f"stopped while it was saved (python train_multitask.py --resume {folder} "
                        f"mends that), or a file was replaced")
    bert = load_bert(Bert, folder / "model", settings.attention,
                     reshape=lambda bert: edits.reshape(bert, record["edits"]))
    edits.restore(bert, record["edits"], folder)
    tokenizer = Tokenizer.from_pretrained(folder / "model")
    model = build_model(bert, settings)
    heads = read_tensors(heads_file)
    check_names_and_shapes(heads_file, model.heads.state_dict(), heads)
    model.heads.load_state_dict(heads)
    return model, tokenizer, settings, record


def build_model(bert, settings):
    """The encoder with a new head for each task."""
    width = bert.config.hidden_size
    heads = {task: build_head(task, kind, width, settings.pairs, settings.head_dropout)
             for task, kind in settings.head_kinds.items()}
    return MultitaskModel(bert, heads, settings.pairs, settings.read, adapters.serving(bert))
