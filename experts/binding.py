"""Experts in runs: the flags of training with sparse activations, and how routers are saved.

    run.json             among its edits {"method": "experts", "kind": "split", "experts": 16, …}
    model/               the encoder with its neurons in the experts' order: an ordinary BERT
    experts.safetensors  the routers: layers.<number>.down and .up
"""

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from bert import UserError
from bert.checkpoint import check_names_and_shapes
from bert.files import read_tensors, write_tensors
from bert.linear import PackedLinear
from common.flags import setting
from experts.layers import ExpertFeedForward, expert_layers, ffn_share, select_experts
from experts.sparsity import PENALTIES, SCHEDULES, Recorder, Sparsity, distance, to_relu
from experts.split import check_divisible, insert_experts

FILE = "experts.safetensors"                                 # in a run's folder
EDIT = {"experts": int, "width": range(1, 2 ** 31)}          # in run.json
flag = partial(setting, group="sparse activations, for experts")


@dataclass
class Flags:
    relu: bool = flag(False, "replace GELU by ReLU before training")
    sparsity: str = flag("", f"add a penalty on activations, penalty:weight[:schedule], as in "
                             f"relu-l1:1e-4:warm-up; penalties: {', '.join(PENALTIES)}; schedules: "
                             f"{', '.join(SCHEDULES)}; no model is kept before the weight is whole")
    distill: float = flag(0, "add this times the distance of hidden states to those of the model "
                             "before training, as teacher")

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
    if settings.sparsity:
        Sparsity.parse(settings.sparsity)
    if in_use(settings) and (getattr(settings, "lora", 0) or settings.freeze):
        raise UserError("--relu and --sparsity train the encoder's own feed-forward networks: "
                        "leave out --lora and --freeze")
    if in_use(settings) and settings.compile:
        raise UserError("--relu and --sparsity record what each layer computes, and --compile "
                        "would compile that again in every step; leave out --compile")


def prepare(model, tokenizer, settings, device, edits=()):
    """Replace the activation and begin to record, as the settings say. UserError if the model has
    experts and its encoder would be trained: their routers would no longer fit."""
    for bert in model.encoders.values():
        has_experts = any(isinstance(layer.ffn, ExpertFeedForward) for layer in bert.layers)
        if has_experts and not settings.freeze:
            raise UserError(f"{settings.from_run} has experts, whose routers fit its weights as "
                            f"they are; train the run that it was split from, then split again, or "
                            f"add --freeze")
        if not in_use(settings):
            continue
        teacher = copy.deepcopy(bert).eval().requires_grad_(False) if settings.distill else None
        if settings.relu:
            to_relu(bert)
        penalty, activation = settings.sparsity.partition("-")[0], bert.config.hidden_act
        if penalty and (penalty == "relu") != (activation == "relu"):
            raise UserError(f"--sparsity {settings.sparsity} is for {penalty} activations, and the "
                            f"model's are {activation}; add --relu, or choose another penalty")
        bert.recorder = Recorder(bert, teacher)


def further_losses(settings, model, task, batch, done):
    """→ {name: term} of a training step, after the fraction `done` of all steps: the penalty on
    activations, and the distance to the teacher."""
    found, recorder = {}, model.encoder(task).recorder
    if settings.sparsity:
        found["sparsity"] = Sparsity.parse(settings.sparsity).term(recorder, done)
    if settings.distill:
        teacher, states = recorder.teacher.to(batch.input_ids.device), []
        with torch.no_grad():
            hidden, layout = teacher.embed(batch.input_ids, batch.layout, batch.token_type_ids)
            teacher.encode(hidden, layout, output_rows=model.pooled_rows(task, batch),
                           states=states)
        found["distill"] = settings.distill * distance(recorder.outputs, states)
    recorder.clear()
    return found


def routers(bert):
    """{name: tensor} of all routers, as in FILE."""
    return {f"layers.{number}.{name}": tensor for number, ffn in enumerate(expert_layers(bert))
            for name, tensor in ffn.router.state_dict().items()}


def restore(bert, edit, folder):
    """Insert the experts and load their routers, after the saved weights are loaded."""
    check_divisible(bert, edit["experts"], edit["width"])
    insert_experts(bert, edit["experts"], edit["width"])
    saved = read_tensors(folder / FILE)
    check_names_and_shapes(folder / FILE, routers(bert), saved)
    for name, tensor in routers(bert).items():
        tensor.copy_(saved[name])


def save(model, tasks, folder):
    return {folder / FILE: write_tensors(folder / FILE, routers(model.bert))}


def weight_files(folder):
    return [folder / FILE]


@contextmanager
def encoder_alone(bert):
    """Within this context the experts lack their routers, so that their names are FeedForward's."""
    experts = expert_layers(bert)
    for number, ffn in enumerate(experts):
        for matrix in (ffn.fc_in, ffn.fc_out):
            if not isinstance(matrix, PackedLinear):
                raise UserError(f"experts slice plain matrices, and layer {number} now has a "
                                f"{type(matrix).__name__}; change the run that was split instead")
    with ExitStack() as stack:
        for ffn in experts:
            stack.callback(setattr, ffn, "router", ffn.router)
            ffn.router = None
        yield


def cost(model, splits):
    """→ {"ffn": …, "model": …} after `splits` {task: {name: Split}} were run: multiply-adds, with
    routers, as shares of what all experts would need. All experts run from now on."""
    from pruning.report import split_cost

    def total():
        return sum(split_cost(model, task, split) for task, named in splits.items()
                   for split in named.values())

    share, ran = ffn_share(model.bert), total()
    select_experts(model.bert, None)
    return {"ffn": share, "model": ran / total()}
