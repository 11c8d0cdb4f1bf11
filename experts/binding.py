"""Experts in runs: the flags of training with sparse activations, and how routers are saved.

    run.json             among its edits {"method": "experts", "kind": "split", "experts": 16, …}
    model/               the encoder with its neurons in the experts' order: an ordinary BERT
    experts.safetensors  the routers: layers.<number>.down and .up
"""

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bert import UserError
from bert.checkpoint import check_names_and_shapes
from bert.files import read_tensors, write_tensors
from bert.model import FeedForward, PackedLinear
from common.flags import setting
from experts.layers import ExpertFeedForward, expert_layers, ffn_share, select_experts
from experts.rules import Selection
from experts.sparsity import PENALTIES, SCHEDULES, Recorder, Sparsity, distance, to_relu
from experts.split import insert_experts

FILE = "experts.safetensors"                                 # in a run's folder
GROUP = "sparse activations, for experts"


@dataclass
class Flags:
    relu: bool = setting(False, "replace GELU by ReLU before training", group=GROUP)
    sparsity: str = setting("", f"add a penalty on activations, penalty:weight[:schedule], as in "
                                f"relu-l1:1e-4:warm-up; penalties: {', '.join(PENALTIES)}; "
                                f"schedules: {', '.join(SCHEDULES)}; no model is kept before the "
                                f"weight is whole", group=GROUP)
    distill: float = setting(0, "add this times the distance of hidden states to those of the "
                                "model before training, as teacher", min=0, group=GROUP)

    @property
    def keep_from(self):
        """The fraction of the steps before which no model is kept."""
        return Sparsity.parse(self.sparsity).full_from if self.sparsity else 0.0


NEEDS = {"distill": ("--relu or --sparsity, and an encoder that is trained (no --freeze)",
                     lambda s: bool(s.relu or s.sparsity) and not s.freeze)}


def in_use(settings):
    return bool(settings.relu or settings.sparsity)


def check(settings):
    """UserError if the settings exclude each other or the penalty is not understood."""
    if not in_use(settings):
        return
    if getattr(settings, "lora", 0) or settings.freeze:
        raise UserError("--relu and --sparsity train the encoder's own feed-forward networks: "
                        "leave out --lora and --freeze")
    sparsity = Sparsity.parse(settings.sparsity) if settings.sparsity else None
    if sparsity and sparsity.full_from and settings.patience:
        raise UserError("--patience counts from the first epoch, and a --sparsity with a schedule "
                        "keeps no model at first; leave out one of them")


@dataclass
class Training:
    """What the further losses of a training step read; no part of the model's state."""

    recorder: Recorder
    teacher: object                                          # a Bert, or None


def prepare(model, tokenizer, settings, device, edits=()):
    """Replace the activation and begin to record, as the settings say. UserError if the model has
    experts and its encoder would be trained: their routers would no longer fit."""
    for bert in model.encoders.values():
        if any(isinstance(layer.ffn, ExpertFeedForward) for layer in bert.layers):
            if not settings.freeze or in_use(settings):
                raise UserError(f"{settings.from_run} has experts, whose routers fit its weights "
                                f"as they are; train the run that it was split from, then split "
                                f"again, or add --freeze")
            bert.requires_grad_(False)
        if in_use(settings):
            teacher = copy.deepcopy(bert).eval().requires_grad_(False) if settings.distill else None
            if settings.relu:
                to_relu(bert)
            penalty = settings.sparsity.partition("-")[0]
            if penalty and (penalty == "relu") != (bert.config.hidden_act == "relu"):
                raise UserError(f"--sparsity {settings.sparsity} is for {penalty} activations, and "
                                f"the model's are {bert.config.hidden_act}; add --relu, or choose "
                                f"another penalty")
            bert.sparse_training = Training(Recorder(bert), teacher)


def further_losses(settings, model, task, batch, done):
    """→ {name: term} of a training step, after the fraction `done` of all steps: the penalty on
    activations, and the distance to the teacher."""
    found, training = {}, model.encoder(task).sparse_training
    if settings.sparsity:
        found["sparsity"] = Sparsity.parse(settings.sparsity).term(training.recorder, done)
    if settings.distill:
        teacher, states = training.teacher.to(batch.input_ids.device), []
        with torch.no_grad():
            hidden, layout = teacher.embed(batch.input_ids, batch.layout, batch.token_type_ids)
            teacher.encode(hidden, layout, output_rows=model.pooled_rows(task, batch),
                           states=states)
        found["distill"] = settings.distill * distance(training.recorder.outputs, states)
    training.recorder.clear()
    return found


def routers(bert):
    """{name: tensor} of all routers, as in FILE."""
    return {f"layers.{number}.{name}": tensor for number, ffn in enumerate(expert_layers(bert))
            for name, tensor in ffn.router.state_dict().items()}


def restore(bert, edit, folder):
    """Insert the experts and load their routers, after the saved weights are loaded."""
    insert_experts(bert, edit["experts"], edit["width"], bert.config.hidden_size)
    saved = read_tensors(Path(folder) / FILE)
    check_names_and_shapes(Path(folder) / FILE, routers(bert), saved)
    for name, tensor in routers(bert).items():
        tensor.copy_(saved[name])


def save(model, tasks, folder):
    write_tensors(Path(folder) / FILE, routers(model.bert))


def weight_files(folder):
    return [folder / FILE]


@contextmanager
def encoder_alone(bert):
    """Within this context plain FeedForwards, with the same matrices, replace the experts."""
    experts = [layer.ffn for layer in bert.layers]
    for number, ffn in enumerate(experts):
        for matrix in (ffn.fc_in, ffn.fc_out):
            if not isinstance(matrix, PackedLinear):
                raise UserError(f"experts slice plain matrices, and layer {number} now has a "
                                f"{type(matrix).__name__}; leave that layer's feed-forward network "
                                f"dense, or change the run that was split")
    for layer, ffn in zip(bert.layers, experts):
        if isinstance(ffn, ExpertFeedForward):
            plain = FeedForward.__new__(FeedForward)
            nn.Module.__init__(plain)
            plain.fc_in, plain.fc_out, plain.activation = ffn.fc_in, ffn.fc_out, ffn.activation
            layer.ffn = plain
    try:
        yield
    finally:
        for layer, ffn in zip(bert.layers, experts):
            layer.ffn = ffn


def use_tau(model, tau, rule):
    """Serve evaluate.py --tau and --rule: run the experts that they choose."""
    select_experts(model.bert, Selection(rule, tau))


def cost(model, splits):
    """→ {"ffn": …, "model": …} after `splits` {task: {name: Split}} were run: multiply-adds, with
    routers, as shares of what all experts would need."""
    from pruning.report import split_cost

    bert, chosen = model.bert, [ffn.selection for ffn in expert_layers(model.bert)]

    def total():
        return sum(split_cost(model, task, split) for task, named in splits.items()
                   for split in named.values())

    ran = total()
    for ffn in expert_layers(bert):
        ffn.selection = None
    dense = total()
    for ffn, selection in zip(expert_layers(bert), chosen):
        ffn.selection = selection
    return {"ffn": ffn_share(bert), "model": ran / dense}
