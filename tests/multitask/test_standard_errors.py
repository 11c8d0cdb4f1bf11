"""Standard errors of saved runs' scores, and which differences between runs are noise."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
from multitask.evaluation import write_predictions
from multitask.metrics import accuracy
from multitask.report import cells
from multitask.runs import read_fields
from multitask.standard_errors import (
    against_best,
    bootstrap,
    difference_table,
    latex_table,
    read_predictions,
    saved_bootstraps,
)
from multitask.tasks import TASKS

LABELS = [n % 2 for n in range(400)]


def answers(wrong):
    """400 predictions, of which the first `wrong` are wrong."""
    return [1 - y if n < wrong else y for n, y in enumerate(LABELS)]


def row(name, wrong, examples="ab"):
    predictions = answers(wrong)
    draws = bootstrap(accuracy, predictions, LABELS, examples)
    return SimpleNamespace(name=name, scores=[{"sst": accuracy(predictions, LABELS)}],
                           parameters={"trained": 1e6, "stored": 2e6}, minutes=[1], published={},
                           bootstraps=[{"sst": draws}])


def test_the_same_examples_are_compared_one_by_one():
    """8 of 400 answers differ, all in one direction: √(.02·.98/400) = .007. Independent examples
    have √2·√(.1·.9/400) = .021."""
    (_, own, none, _), (_, _, paired, error) = against_best([row("a", 40), row("b", 48)], "sst")
    assert own == pytest.approx(0.015, rel=0.15) and none == 0
    assert paired == pytest.approx(-0.02) and error == pytest.approx(0.007, rel=0.15)
    _, (_, _, _, unpaired) = against_best([row("a", 40), row("b", 48, "cd")], "sst")
    assert unpaired == pytest.approx(0.022, rel=0.15)


def test_a_difference_within_two_standard_errors_is_noise():
    table = difference_table([row("a", 40), row("b", 43), row("c", 60), row("d", 43, "cd")],
                             ["sst"])
    assert [line[1].strip().endswith("≈") for line in table[1:]] == [False, True, False, True]
    assert table[1][1] == "best" and table[3][1].startswith("-0.050 ±")


def test_without_predictions_a_difference_has_no_standard_error():
    rows = [row("a", 40), row("b", 48)]
    rows[1].bootstraps = [{}]
    assert difference_table(rows, ["sst"])[2][1] == "-0.020"
    assert "$0.880$" in latex_table(rows, ["sst"], cells(rows))


def test_a_rows_standard_error_is_of_the_mean_over_its_seeds():
    one, other = row("a", 40), row("a", 60)
    both = SimpleNamespace(scores=one.scores + other.scores,
                           bootstraps=one.bootstraps + other.bootstraps)
    (mean, own, _, _), = against_best([both], "sst")
    assert mean == pytest.approx(0.875)
    expected = (one.bootstraps[0]["sst"] + other.bootstraps[0]["sst"]) / 2
    assert own == pytest.approx(np.std(expected))


def test_the_latex_table_is_whole():
    rows = [row("my_run & 50%", 40), row("b", 41)]
    text = latex_table(rows, ["sst"], cells(rows))
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert r"my\_run \& 50\%" in text and len(lines) == 3
    assert len({line.replace(r"\&", "").count("&") for line in lines}) == 1
    assert r"\mathbf{0.900} \pm 0.0" in text and r"^{\approx}$" in text
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert text.count(word) == 1


def test_saved_predictions_are_read_back(tmp_path):
    class Ids:
        ids = ["x1", "x2"]

    for task, predicted in (("sts", [2.5, -0.25]), ("sst", [3.0, 0.0]), ("mnli", [2.0, 0.0])):
        split = TASKS[task].dev_sets[0]
        write_predictions(tmp_path, {task: {split: Ids}}, {(task, split): predicted})
        name, _ = TASKS[task].write(TASKS[task], task, split, [], [])
        assert read_predictions(tmp_path / name, task) == dict(zip(Ids.ids, predicted))


def test_a_runs_bootstraps_lie_around_its_scores(run):
    found = saved_bootstraps(run, read_fields(run)["settings"])
    scores = json.loads((run / "metrics.json").read_text())
    assert set(found) == set(scores)
    for task, draws in found.items():
        value = scores[task] if task in ("overall", "mean") else next(iter(scores[task].values()))
        assert abs(draws.mean() - value) < 0.1


def test_runs_whose_data_is_gone_are_compared_without_standard_errors(run, script, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name)
    code, out, err = script(evaluate.main, "--compare", tmp_path / "a", tmp_path / "b", "--out",
                            tmp_path / "to")
    assert code == 0 and out.count("difference from the best") == 0, err    # one row: two "seeds"
    assert r"\pm" in (tmp_path / "to" / "comparison.tex").read_text()
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    record["settings"] |= {"data": str(tmp_path / "nowhere"), "head_lr": 0.5}
    (tmp_path / "b" / "run.json").write_text(json.dumps(record))
    code, out, err = script(evaluate.main, "--compare", tmp_path / "a", tmp_path / "b", "--out",
                            tmp_path / "to")
    assert code == 0 and "difference from the best" in out and not err, err
