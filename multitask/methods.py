"""The methods that a run may use, each a folder with a file binding.py that binds it to runs.

To add a method, add its folder, and its name to METHODS. docs/methods.md says what a binding may
define; every part of it is optional. A binding is imported when a run uses the method."""

import importlib
from contextlib import ExitStack, contextmanager
from dataclasses import make_dataclass
from functools import cache
from pathlib import Path

from bert.errors import check_known
from bert.json_files import check_type
from multitask.settings import Settings

# In the order of prepare and restore.
METHODS = ("early_exit", "pruning", "laser", "compression", "experts", "lora")


def parts(methods, name):
    """What the bindings of these methods define under this name, in the order of METHODS."""
    for method in methods:
        check_known(method, METHODS, "method", where="run.json")
    found = (getattr(importlib.import_module(f"{method}.binding"), name, None)
             for method in METHODS if method in methods)
    return [part for part in found if part is not None]


@cache
def settings_class(methods=METHODS):
    """Settings with the flags of these methods; a run is opened with those that it used."""
    class_ = make_dataclass("Settings", [], bases=(*parts(methods, "Flags"), Settings),
                            namespace={"methods": methods})
    class_.NEEDS = Settings.NEEDS | {name: need for needs in parts(methods, "NEEDS")
                                     for name, need in needs.items()}
    class_.checks = parts(methods, "check")
    return class_


def used_methods(settings):
    """The methods whose flags these settings use."""
    return tuple(method for method in settings.methods
                 if any(in_use(settings) for in_use in parts([method], "in_use")))


def further_losses(settings, model, task, batch, done):
    """→ {name: term} that the methods in use add to the task's loss in a training step. `done` is
    the fraction of all steps that are done."""
    found = {}
    for losses in parts(used_methods(settings), "further_losses"):
        found |= losses(settings, model, task, batch, done)
    return found


def check_edits(edits, path):
    """UserError unless the edits in the file `path` are as the methods' EDITs describe them."""
    for number, edit in enumerate(edits):
        for kind in parts([edit["method"]], "EDIT"):
            check_type(edit, kind, path, f"edits[{number}]")


def edited_by(edits):
    return {edit["method"] for edit in edits}


def prepare(model, tokenizer, settings, device, edits=()):
    """Let each method that is in use, or that has edited the model, change it before the first
    step. `edits`: those of a run that is resumed."""
    had = {method for bert in model.encoders.values() for method in edited_by(bert.edits)}
    for change in parts({*used_methods(settings), *had}, "prepare"):
        change(model, tokenizer, settings, device, edits)


def rebuild(bert, edits):
    """Change the modules of a new Bert as these edits did, before the saved weights are loaded."""
    for edit in edits:
        for change in parts([edit["method"]], "rebuild"):
            change(bert, edit)


def restore(bert, edits, folder):
    """After the weights are loaded, attach what the methods saved beside them in `folder`."""
    for edit in sorted(edits, key=lambda edit: METHODS.index(edit["method"])):
        for change in parts([edit["method"]], "restore"):
            change(bert, edit, Path(folder))
    bert.edits = [edit for edit in edits     # KEEPS_EDIT = False: restore left plain matrices
                  if False not in parts([edit["method"]], "KEEPS_EDIT")]


@contextmanager
def encoder_alone(bert):
    """Within this context bert holds only what model/model.safetensors is to hold."""
    with ExitStack() as stack:
        for context in reversed(parts(edited_by(bert.edits), "encoder_alone")):
            stack.enter_context(context(bert))
        yield


def save(model, tasks, folder):
    """Write what the methods save beside the encoder for these tasks → {path: bytes}."""
    edited = {method for bert in model.encoders.values() for method in edited_by(bert.edits)}
    saved = {}
    for write in parts(edited, "save"):
        saved |= write(model, tasks, folder) or {}
    return saved


def weight_files(edits, folder):
    """The files of weights that the methods of these edits saved in a run's folder."""
    return [file for files in parts(edited_by(edits), "weight_files") for file in files(folder)]
