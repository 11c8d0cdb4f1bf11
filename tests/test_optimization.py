"""Clipping and parameter groups (common/optimization.py), --precision auto (common/device.py)."""

import pytest
import torch
from torch import nn

from common.device import pick_precision
from common.optimization import adamw, clip_gradients, parameter_groups


def parameters(scale):
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((5, 3), (3,))]
    for parameter in found:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return found


@pytest.mark.parametrize("scale", [0.01, 10.0])
@pytest.mark.parametrize("limit", [0, 1.0])
def test_gradients_are_clipped_as_by_torch(scale, limit):
    ours, theirs, folded = parameters(scale), parameters(scale), parameters(scale)
    norm = nn.utils.clip_grad_norm_(theirs, limit or float("inf"))
    torch.testing.assert_close(clip_gradients(ours, limit), norm)
    for found, expected in zip(ours, theirs):
        torch.testing.assert_close(found.grad, expected.grad)
    optimizers = [adamw([{"params": each}]) for each in (ours, folded)]
    torch.testing.assert_close(clip_gradients(folded, limit, optimizers[1]), norm)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
    assert all(map(torch.equal, ours, folded))               # divided before or during the step


def test_no_gradient_has_the_norm_0():
    assert clip_gradients([nn.Parameter(torch.ones(2))], 1.0) == 0


def test_modules_of_equal_values_share_a_group():
    layers = [nn.Linear(2, 2) for _ in range(3)]
    layers[2].weight.requires_grad_(False)
    groups = parameter_groups([(layers[0], {"max_lr": 1.0}), (layers[1], {"max_lr": 2.0}),
                               (layers[2], {"max_lr": 1.0})], 0.01)
    assert [(g["max_lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (1.0, 0.01, 1), (1.0, 0.0, 2), (2.0, 0.01, 1), (2.0, 0.0, 1)]


@pytest.mark.parametrize("amx, name, width, expected", [
    (True, "auto", 384, "bf16"), (True, "auto", 128, "fp32"), (False, "auto", 384, "fp32"),
    (True, "fp32", 384, "fp32"), (False, "bf16", 128, "bf16")])
def test_auto_takes_bf16_on_processors_that_multiply_it(amx, name, width, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    found, autocast = pick_precision(name, torch.device("cpu"), width)
    with autocast():
        assert found == expected and torch.is_autocast_enabled("cpu") == (expected == "bf16")
