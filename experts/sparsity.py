"""Make most activations of feed-forward networks zero: ReLU for GELU, and a penalty in training.

    loss + w(t) · (1/L) Σ_ℓ mean over tokens of S(a_ℓ)

    relu-l1       S = (3072/d) Σᵢ aᵢ                      a [tokens, d]: activations, after ReLU
    relu-hoyer    S = (3072/d) (Σᵢ|aᵢ|)² / (Σᵢaᵢ² + ε)     from 3072/d (one active) to 3072 (equal)
    gelu-l1       S = (3072/d) Σᵢ max(zᵢ, D) − D           z: before GELU, which is near 0 below D
    gelu-hoyer    the Hoyer ratio of max(z, D) − D

DSTI sums over bert-base's d = 3072 neurons; the factor 3072/d keeps its weights (L1 1e-4, Hoyer
0.2, clamped GELU 5e-5) good for other widths. Rows are real tokens, so padding has no part in it.
"""

from dataclasses import dataclass, replace

import torch

from bert.config import ACTIVATIONS
from bert.errors import UserError, check_known

WIDTH = 3072
DISPLACEMENT = -10.0       # D


def l1(values):
    """Σᵢ|vᵢ|, the mean over rows: [N, d] → scalar."""
    return values.abs().sum(dim=1).mean()


def hoyer(values):
    """(Σᵢ|vᵢ|)²/Σᵢvᵢ², the mean over rows: about how many entries of a row are not small."""
    return (values.abs().sum(dim=1).square() / (values.square().sum(dim=1) + 1e-15)).mean()


def clamped(values):
    """max(z, D) − D, which is zero where GELU(z) is zero to all digits."""
    return values.clamp(min=DISPLACEMENT) - DISPLACEMENT


PENALTIES = {              # name → (function of values [N, d], whether they are pre-activations)
    "relu-l1": (l1, False), "relu-hoyer": (hoyer, False),
    "gelu-l1": (lambda z: l1(clamped(z)), True), "gelu-hoyer": (lambda z: hoyer(clamped(z)), True),
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
        penalty, _, rest = text.partition(":")
        weight, _, schedule = rest.partition(":")
        check_known(penalty, PENALTIES, "penalty", where="--sparsity")
        check_known(schedule or "none", SCHEDULES, "schedule", where="--sparsity")
        try:
            number = float(weight)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            raise UserError(f"--sparsity {text} is not understood; write penalty:weight or "
                            f"penalty:weight:schedule, as in relu-l1:1e-4:warm-up")
        return cls(penalty, number, schedule or "none")

    @property
    def full_from(self):
        """The fraction of the steps after which the weight is whole."""
        return SCHEDULES[self.schedule][1]

    def term(self, recorder, done):
        """The weighted penalty of what a Recorder holds, after the fraction `done` of the steps."""
        function, before = PENALTIES[self.penalty]
        values = recorder.preactivations if before else recorder.activations
        layers = [function(rows.float()) * WIDTH / rows.size(1) for rows in values if rows.size(1)]
        return self.weight * SCHEDULES[self.schedule][0](done) * torch.stack(layers).mean()


class Recorder:
    """Keeps what the layers of a Bert compute while gradients are on, each list in the order of the
    layers, until `clear`: preactivations and activations [N, d], and the layers' outputs [N, H]."""

    def __init__(self, bert):
        self.clear()
        for _, layer, _ in bert.walk():
            layer.ffn.fc_in.register_forward_hook(
                lambda module, inputs, output: self._keep(self.preactivations, output))
            layer.ffn.fc_out.register_forward_pre_hook(
                lambda module, inputs: self._keep(self.activations, inputs[0]))
            layer.register_forward_hook(
                lambda module, inputs, output: self._keep(self.outputs, output))

    def clear(self):
        self.preactivations, self.activations, self.outputs = [], [], []

    def _keep(self, values, tensor):
        if torch.is_grad_enabled():
            values.append(tensor)


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
def zero_fraction(bert, batches, forward):
    """The fraction of activations that are exactly zero, over the real tokens of all layers."""
    zeros, total = 0, 0

    def count(module, inputs):
        nonlocal zeros, total
        zeros, total = zeros + int((inputs[0] == 0).sum()), total + inputs[0].numel()

    hooks = [layer.ffn.fc_out.register_forward_pre_hook(count) for _, layer, _ in bert.walk()]
    try:
        for batch in batches:
            forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return zeros / max(1, total)
