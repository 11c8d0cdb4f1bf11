"""What exits read of a run's examples after every layer: the frozen encoder runs once, and what it
gave is kept in a file, from which all kinds of exits are trained."""

import math
import time

import torch

from bert.checkpoint import check_names_and_shapes
from bert.files import read_metadata, read_tensors, write_tensors
from common.cli import StopSignal, UserStop
from common.log import progress_bar
from early_exit.leaving import layer_states
from multitask.data import Split
from multitask.evaluation import TOKENS, check_outputs, model_fingerprint
from multitask.tasks import TASKS

SAVE_SECONDS = 60


def segments_of(model, task):
    """The sequences of an example: 2 for a pair encoded separately."""
    return 2 if TASKS[task].pair and model.pairs == "separate" else 1


def subset(split, indices):
    """→ the Split of these examples, a list of their numbers"""
    return Split([split.ids[i] for i in indices],
                 None if split.labels is None else split.labels[indices],
                 [([ids[i] for i in indices], [types[i] for i in indices])
                  for ids, types in split.segments], split.tokenizer)


def collect(session, task, split, path=None, title="states"):
    """→ states [n, M, W], outputs [n, outputs] of a split's examples. `path`: the file that keeps
    them; what it has of the same model and rows is not computed again. Ctrl-C saves it."""
    model, segments = session.model.eval(), segments_of(session.model, task)
    width = segments * 2 * model.encoder(task).config.hidden_size        # read_states
    fingerprint = path and "[CLS], mean " + model_fingerprint(model, {task: split},
                                                              session.precision)
    states = torch.full((len(split), len(model.encoder(task).layers) - 1, width), math.nan)
    outputs = torch.full((len(split), TASKS[task].outputs), math.nan)
    if path and path.is_file() and read_metadata(path).get("fingerprint") == fingerprint:
        found = read_tensors(path)
        check_names_and_shapes(path, {"states": states, "outputs": outputs}, found, "its run")
        states, outputs = found["states"], found["outputs"]
    todo = [batch for batch in split.by_length(TOKENS) if outputs[batch].isnan().any()]
    saved = time.monotonic()

    def save():
        if path is not None:
            write_tensors(path, {"states": states, "outputs": outputs}, fingerprint=fingerprint)

    with StopSignal() as stop, progress_bar(title, len(split), "example", leave=False,
                                            done=len(split) - sum(map(len, todo))) as bar:
        for indices in todo:
            with session.autocast():
                found = layer_states(model, task, split.batch(indices).to(session.device), segments)
            check_outputs(found[1], task, [split.ids[i] for i in indices])
            states[indices], outputs[indices] = (tensor.cpu() for tensor in found)
            bar.update(len(indices))
            if path is not None and time.monotonic() - saved > SAVE_SECONDS or stop.asked:
                save()
                saved = time.monotonic()
            if stop.asked:
                raise UserStop("stopped; " + ("call it again" if path is None else
                               f"{path} has the states so far, and the same command goes on"))
    if todo:
        save()
    return states, outputs
