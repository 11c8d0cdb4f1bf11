"""The pictures of a run: what is drawn on which axes."""

import math

import pytest

from multitask import pictures
from multitask.pictures import chance, draw_training

LINES = [{"step": 10 * n, "loss": {"sst": 1.6 / n, "sts": 3.0 / n}, "smart": {"sst": 0.1},
          "cosine": {"sst sts": 0.5 - n}, "conflict": {"sst sts": float(n > 1)}, "seconds": n}
         for n in (1, 2)] + [{"step": 20, "dev": {"sst": {"accuracy": 0.5}, "sts": {"pearson": 0.4},
                                                  "mean": 0.45},
                                      "dev_loss": {"sst": 1.2, "sts": 2.0, "para": 0.7}}]


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """{title: axes} of the curves of LINES."""
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure))
    draw_training(LINES, tmp_path / "curves.png")
    return {axes.get_title(): axes for axes in figures[0].axes}


def colors(axes):
    return {line.get_label().split()[0].strip(","): line.get_color() for line in axes.lines}


def test_losses_of_different_kinds_have_their_own_axes(panels):
    assert list(panels) == ["loss: classes (nats)", "loss: regression",
                            "training loss: smart", "dev scores", "cosine of two tasks' gradients"]


def test_a_task_has_one_color_in_all_panels(panels):
    classes, regression, smart, dev, _ = map(colors, panels.values())
    assert classes["sst"] == smart["sst"] == dev["sst"] != dev["sts"] == regression["sts"]
    assert len({dev[name] for name in ("sst", "sts", "mean")}) == 3


def test_the_dev_loss_of_a_trained_task_stands_beside_its_training_loss(panels):
    drawn = {title: {line.get_label(): (line.get_linestyle(), list(line.get_ydata()))
                     for line in panels[title].lines if line.get_label()[0] == "s"}
             for title in ("loss: classes (nats)", "loss: regression")}
    assert drawn == {"loss: classes (nats)": {"sst": ("-", [1.6, 0.8]), "sst, dev": ("--", [1.2])},
                     "loss: regression": {"sts": ("-", [3.0, 1.5]), "sts, dev": ("--", [2.0])}}


def test_chance_and_zero_are_drawn(panels):
    levels = {title: [line.get_ydata()[0] for line in axes.lines
                      if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2
                      and list(line.get_xdata()) == [0, 1]] for title, axes in panels.items()}
    assert levels["loss: classes (nats)"] == [pytest.approx(math.log(5))]
    assert levels["dev scores"] == [pytest.approx(0.2), 0]
    assert levels["cosine of two tasks' gradients"] == [0]
    legend = panels["cosine of two tasks' gradients"].get_legend()
    assert "sst sts: 50% in conflict" in [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("task, what, level", [
    ("para", "loss", math.log(2)), ("para", "dev", 0.5), ("sts", "dev", 0), ("sts", "loss", None),
    ("mean", "dev", None), ("sst", "smart", None)])
def test_chance_knows_only_the_number_of_classes(task, what, level):
    assert chance(task, what) == (level if level is None else pytest.approx(level))


def test_a_log_without_lines_is_drawn(tmp_path):
    draw_training([], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()
