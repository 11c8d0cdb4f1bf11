"""Exits in runs: trained ones lie in exits.safetensors, and opening the run attaches them to the
encoder as `bert.exits`, {task: Exits}. Without a threshold such a run is the run it was made of."""

import math
from contextlib import contextmanager

from torch import nn

from bert import UserError
from bert.checkpoint import check_names_and_shapes
from bert.errors import plain_number
from bert.files import read_tensors, write_tensors
from early_exit.exits import METHODS, Exits
from early_exit.leaving import EarlyExit, task_exits

FILE = "exits.safetensors"                                   # in a run's folder
EDIT = {"tasks": dict[str, tuple[int, range(1, 100), range(1, 3)]],      # in run.json
        "cascade": bool, "mean?": bool, "ensemble": {ensemble for _, ensemble in METHODS.values()}}


def prepare(model, tokenizer, settings, device, edits=()):
    """Drop the exits of the source run: they fit its encoder, which training may change."""
    print("the run's exits are not carried into a run that is trained; train exits of that: "
          "python -m early_exit train")
    for bert in model.encoders.values():
        drop(bert)


def drop(bert):
    """Remove the exits, if any, and their record."""
    if hasattr(bert, "exits"):
        del bert.exits
    bert.edits = [edit for edit in bert.edits if edit["method"] != "early_exit"]


def attach(model, exits, **how):
    """Give every encoder the exits {task: Exits}, in place of those it has."""
    for bert in model.encoders.values():
        drop(bert)
        bert.exits = nn.ModuleDict(exits)
        shapes = {task: [len(e), e.outputs, e.segments] for task, e in exits.items()}
        bert.edits = [*bert.edits, {"method": "early_exit", "kind": "exits", "tasks": shapes} | how]


def restore(bert, edit, folder):
    """Attach a saved run's exits. With an encoder for each task, each has those of all tasks."""
    for task, (count, *_) in edit["tasks"].items():
        if not task.isidentifier() or count != len(bert.layers) - 1:
            raise UserError(f"{folder}/run.json has {count} exits for {task!r}, which do not fit "
                            f"an encoder of {len(bert.layers)} layers; train them again")
    bert.exits = nn.ModuleDict({
        task: Exits(count, bert.config.hidden_size, outputs, segments, edit["cascade"],
                    edit["ensemble"], edit.get("mean", False))
        for task, (count, outputs, segments) in edit["tasks"].items()}).requires_grad_(False)
    found = read_tensors(folder / FILE)
    check_names_and_shapes(folder / FILE, bert.exits.state_dict(), found)
    bert.exits.load_state_dict(found)
    bert.exits.to(bert.word_embeddings.weight.device)


def save(model, tasks, folder):
    """Write the exits of all tasks."""
    exits = next(iter(model.encoders.values())).exits
    return {folder / FILE: write_tensors(folder / FILE, exits.state_dict())}


def weight_files(folder):
    return [folder / FILE]


@contextmanager
def encoder_alone(bert):
    """Within this context bert has no exits."""
    exits = bert.exits
    del bert.exits
    try:
        yield
    finally:
        bert.exits = exits


def parse_threshold(text):
    """"0.9" → 0.9. UserError unless it is a number of 0 or more."""
    try:
        threshold = plain_number(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold < math.inf:
        raise UserError(f"--exit {text}: an example leaves when its probability is above this; "
                        f"write a number from 0 (all leave at the first exit) to 1 (none leaves)")
    return threshold


def set_threshold(model, text, run, swapped=()):
    """Let examples leave in all further passes of the model → the EarlyExit. `swapped`: tasks whose
    adapter was replaced. UserError if the run has no exits, or if they fit another adapter."""
    threshold = parse_threshold(text)
    exits = {task: task_exits(model, task) for task in model.heads}
    if not any(exits.values()):
        raise UserError(f"{run} has no exits, so --exit cannot let an example leave; train some: "
                        f"python -m early_exit train {run} --out EXITS")
    if unfit := [task for task in swapped if exits.get(task)]:
        raise UserError(f"the exits of {', '.join(unfit)} were trained on the run's own adapter, "
                        f"not on the one of --adapter; leave out --exit or --adapter")
    model.early_exit = EarlyExit(threshold)
    return model.early_exit
