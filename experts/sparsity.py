"""Make most activations of feed-forward networks zero: ReLU for GELU, and a penalty in training.

    loss + w(t) · (1/L) Σ_ℓ mean over tokens of S(z_ℓ)      z [tokens, d]: before the activation

    relu-l1       S = (3072/d) Σᵢ aᵢ                       a = ReLU(z)
    relu-hoyer    S = (3072/d) (Σᵢ|aᵢ|)² / (Σᵢaᵢ² + ε)     from 3072/d (one active) to 3072 (equal)
    gelu-l1       S = (3072/d) Σᵢ max(zᵢ, D) − D           GELU(z) is near 0 below D
    gelu-hoyer    the Hoyer ratio of max(z, D) − D

DSTI sums over bert-base's d = 3072 neurons; the factor 3072/d keeps its weights (L1 1e-4, Hoyer
0.2, clamped GELU 5e-5) good for other widths. Rows are real tokens, so padding has no part in it.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from bert.config import ACTIVATIONS
from bert.errors import UserError, check_known

WIDTH = 3072
DISPLACEMENT = -10.0       # D


def l1(values):
    return values.abs().sum(dim=1).mean()


def hoyer(values):
    """About how many entries of a row [N, d] are not small, the mean over rows."""
    return (values.abs().sum(dim=1).square() / (values.square().sum(dim=1) + 1e-15)).mean()


def clamped(values):
    return values.clamp(min=DISPLACEMENT) - DISPLACEMENT


PENALTIES = {              # name → function of z [N, d]
    "relu-l1": lambda z: l1(z.relu()), "relu-hoyer": lambda z: hoyer(z.relu()),
    "gelu-l1": lambda z: l1(clamped(z)), "gelu-hoyer": lambda z: hoyer(clamped(z)),
}
# name → (factor of the weight after a fraction of the steps, the fraction from which it is 1)
SCHEDULES = {"none": (lambda done: 1.0, 0.0), "linear": (lambda done: done, 1.0),
             "warm-up": (lambda done: min(1.0, 2 * done), 0.5)}


@dataclass(frozen=True)
class Sparsity:
    """A penalty of PENALTIES with its weight, and a schedule of SCHEDULES."""

    penalty: str
    weight: float
    schedule: str = "none"

    @classmethod
    def parse(cls, text):
        """"relu-l1:1e-4:warm-up" → Sparsity; the schedule may be left out."""
        try:
            penalty, weight, schedule = (*text.split(":", 2), "none")[:3]
            found = cls(penalty, float(weight), schedule)
        except ValueError:
            found = None
        if found is None or not 0 < found.weight < float("inf"):
            raise UserError(f"--sparsity {text} is not understood; write penalty:weight or "
                            f"penalty:weight:schedule, as in relu-l1:1e-4:warm-up")
        check_known(penalty, PENALTIES, "penalty", where="--sparsity")
        check_known(schedule, SCHEDULES, "schedule", where="--sparsity")
        return found

    @property
    def full_from(self):
        """The fraction of the steps after which the weight is whole."""
        return SCHEDULES[self.schedule][1]

    def term(self, recorder, done):
        """The weighted penalty of what a Recorder holds, after the fraction `done` of the steps."""
        layers = [PENALTIES[self.penalty](rows.float()) * WIDTH / rows.size(1)
                  for rows in recorder.preactivations if rows.size(1)]
        return self.weight * SCHEDULES[self.schedule][0](done) * torch.stack(layers).mean()


class Recorder:
    """Keeps what the layers of a Bert compute while gradients are on, each list in the order of the
    layers, until `clear`: preactivations [N, d], and the layers' outputs [N, H]. `teacher`: a Bert
    whose layers' outputs are the goal, or None; it is no part of the model's state."""

    def __init__(self, bert, teacher=None):
        self.teacher, self.preactivations, self.outputs = teacher, [], []
        for _, layer, _ in bert.walk():
            for module, values in ((layer.ffn.fc_in, self.preactivations), (layer, self.outputs)):
                module.register_forward_hook(
                    lambda module, inputs, output, values=values:
                    values.append(output) if torch.is_grad_enabled() else None)

    def clear(self):
        self.preactivations.clear()
        self.outputs.clear()


def distance(states, goals):
    """How far hidden states [N, H] of some layers are from a teacher's: the squared error as a
    share of the teacher's variance over its tokens, the mean over the layers."""
    return torch.stack([
        (state.float() - goal.float()).square().mean()
        / (goal.float() - goal.float().mean(dim=0)).square().mean().clamp(min=1e-6)
        for state, goal in zip(states, goals)]).mean()


def to_relu(bert):
    """Replace the activation of every feed-forward network by ReLU, in place."""
    if bert.config.hidden_act == "relu":
        raise UserError("the activation is ReLU already; leave out --relu, or split the run: "
                        "python -m experts split")
    bert.config = replace(bert.config, hidden_act="relu")
    for _, layer, _ in bert.walk():
        layer.ffn.activation = ACTIVATIONS["relu"]


@torch.no_grad()
def zero_fraction(bert, forward):
    """The fraction of activations that are exactly zero, in all layers, while forward() runs."""
    zeros, total = 0, 0

    def count(fc_out, inputs):
        nonlocal zeros, total
        zeros, total = zeros + int((inputs[0] == 0).sum()), total + inputs[0].numel()

    with ExitStack() as hooks:
        for _, layer, _ in bert.walk():
            hooks.enter_context(layer.ffn.fc_out.register_forward_pre_hook(count))
        forward()
    return zeros / max(1, total)
