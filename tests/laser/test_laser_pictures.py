"""The heat map of a sweep tells losses apart, and noise from gains."""

from types import SimpleNamespace

import numpy as np

from laser import sweep
from laser.interventions import Intervention, format_stack
from laser.sweep import gain_errors

GAINS = {0: -0.19, 1: -0.03, 2: 0.01}


def draw(monkeypatch, errors):
    rows = [{"laser": "", "sst": 0.5}] + [
        {"laser": f"{layer}:fc_in:0.1", "layer": layer, "matrix": "fc_in", "keep": 0.1,
         "sst": 0.5 + gain} for layer, gain in GAINS.items()]
    figures = []
    monkeypatch.setattr(sweep, "save_figure", lambda figure, path: figures.append(figure))
    sweep.draw_heat_maps(rows, "map.png", errors)
    (image,) = figures[0].axes[0].get_images()
    assert len(figures[0].axes) == 2                         # and a color bar
    return image


def test_a_small_and_a_large_loss_have_different_colors(monkeypatch):
    image = draw(monkeypatch, None)
    colors = image.cmap(image.norm(np.array([-19.0, -3.0, 1.0])))
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 0.2


def test_a_gain_within_its_standard_error_is_gray(monkeypatch):
    errors = {f"{layer}:fc_in:0.1": {"sst": 0.02} for layer in GAINS}
    values = draw(monkeypatch, errors).get_array()
    assert values.mask[:, 0].tolist() == [False, False, True]


def test_the_standard_error_of_a_gain_pairs_the_examples():
    """Two of 100 answers change, both for the better: √(.02·.98/100) = .014."""
    labels, edited = np.ones(100), Intervention(0, "fc_in", 0.1)
    found = {"": np.r_[np.zeros(20), np.ones(80)], format_stack((edited,)): np.r_[np.zeros(18),
                                                                                  np.ones(82)]}
    outputs = SimpleNamespace(labels={"sst": labels}, fingerprint="ab", predictions=lambda stack: {
        "sst": found[format_stack(stack)]})
    errors = gain_errors(outputs, [edited])[format_stack((edited,))]
    assert 0.010 < errors["sst"] < 0.018
