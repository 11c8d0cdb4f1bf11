"""LASER's commands and searches: sweep, search on held-out halves, apply."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate as evaluate_script
import train_multitask
from laser.__main__ import main
from laser.interventions import Intervention, format_stack, parse
from laser.search import (
    SEARCHES,
    StackScorer,
    best_stack,
    bootstrap,
    halves,
    interval,
    posterior,
    prior_covariance,
)
from multitask import runs


def test_sweep_leaves_csv_and_pictures_and_scores_as_evaluate_does(run, script, tmp_path):
    code, out, _ = script(main, "sweep", run, "--out", tmp_path / "s", "--layers", "all",
                          "--matrices", "all", "--keep", "0.5,0.1")
    assert code == 0 and "the run as it is" in out and "python -m laser search" in out
    rows = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
    assert len(rows) == 1 + 2 * 6 * 2
    for row in (rows[0], rows[5], rows[-1]):
        flags = ["--laser", row["laser"]] if row["laser"] else []
        scores = json.loads(script(evaluate_script.main, run, "--json", "--predictions",
                                   tmp_path / "p", *flags)[1])
        assert float(row["sst"]) == scores["sst"]["accuracy"]
        assert float(row["sts"]) == pytest.approx(scores["sts"]["pearson"], abs=1e-4)
        assert float(row["overall"]) == pytest.approx(scores["overall"], abs=1e-4)
    for picture in ("heatmap.png", "spectra.png"):
        assert (tmp_path / "s" / picture).read_bytes().startswith(b"\x89PNG")


def test_search_reports_on_the_half_it_did_not_see(run, script, tmp_path):
    arguments = ("search", run, "--out", tmp_path / "s", "--keep", "0.5,0.1", "--splits", "2",
                 "--layers", "all", "--matrices", "fc_in")
    code, out, _ = script(main, *arguments)
    assert code == 0 and "survive" in out and "best for sst" in out
    rows = list(csv.DictReader((tmp_path / "s" / "search.csv").open()))
    assert (tmp_path / "s" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert {row["search"] for row in rows} == set(SEARCHES) and len(rows) == 8
    assert all(float(r["low"]) <= float(r["high"]) for r in rows)
    assert max(int(r["evaluations"]) for r in rows if r["search"] in ("backwards", "additive")) <= 4
    assert script(main, *arguments)[1] == out                # from the outputs on the disk


class FakeScorer:
    """A StackScorer whose gains are a given function of the stack."""

    def __init__(self, function):
        self.function, self.gains = function, {(): 0.0}
        self.outputs = SimpleNamespace(evaluator=None)

    def __call__(self, stacks):
        for stack in map(tuple, map(sorted, stacks)):
            self.gains.setdefault(stack, self.function(stack))
        return [self.gains[tuple(sorted(stack))] for stack in stacks]

    def standard_error(self, stack):
        return 0.001


GRID = [Intervention(layer, "fc_in", keep) for layer in (0, 1, 2) for keep in (0.8, 0.5, 0.2)]


def sum_of(effects):
    return lambda stack: sum(effects.get(format_stack([i]), -0.02) for i in stack)


@pytest.mark.parametrize("search", SEARCHES)
def test_searches_find_the_effects_that_add_up(search, monkeypatch):
    monkeypatch.setattr("laser.search.approximation_stats", lambda _, i: {"energy": i.keep})
    scorer = FakeScorer(sum_of({"0:fc_in:0.5": 0.01, "2:fc_in:0.5": 0.02, "2:fc_in:0.8": 0.01}))
    stack = SEARCHES[search](scorer, GRID, budget=len(GRID), seed=0)
    best = "2:fc_in:0.5" if search == "single" else "0:fc_in:0.5,2:fc_in:0.5"
    assert format_stack(stack) == best or search == "additive"
    assert len(scorer.gains) - 1 <= len(GRID) + 2 * (search == "forwards")
    if search == "additive":
        assert scorer.gains[stack] >= 0.02


@pytest.mark.parametrize("search", SEARCHES)
def test_searches_keep_nothing_where_nothing_helps(search, monkeypatch):
    monkeypatch.setattr("laser.search.approximation_stats", lambda _, i: {"energy": i.keep})
    assert SEARCHES[search](FakeScorer(sum_of({})), GRID, budget=len(GRID), seed=0) == ()


def test_the_posterior_is_ridge_regression(monkeypatch):
    """Against the textbook's other form: (XᵀX/σ² + K⁻¹)⁻¹ Xᵀy/σ²."""
    rng = np.random.default_rng(0)
    design, gains = (rng.random((12, 4)) < 0.4).astype(float), rng.normal(size=12)
    covariance = prior_covariance(np.array([0.1, 0.4, 0.2, 0.3]), [(0,), (0,), (1,), (2,)])
    assert covariance[0, 1] == 0.1 and covariance[0, 2] == 0
    monkeypatch.setattr("laser.search.SCALES", np.array([1.0]))
    mean, spread = posterior(design, gains, np.full(12, 0.25), covariance)
    precision = design.T @ design / 0.25 + np.linalg.inv(covariance)
    np.testing.assert_allclose(spread, np.linalg.inv(precision), atol=1e-10)
    np.testing.assert_allclose(mean, spread @ design.T @ gains / 0.25, atol=1e-10)


def test_the_best_stack_takes_what_helps_once_a_matrix():
    effects = [0.1, 0.3, 0.2, -0.1, -0.2, -0.3, 0.0, 0.01, -1]
    assert format_stack(best_stack(effects, GRID)) == "0:fc_in:0.5,2:fc_in:0.5"


# -------------------------------------------------------------------------------------- held out


def test_halves_are_disjoint_whole_and_seeded():
    choose, report = halves({"sst": 11, "sts": 8}, seed=3)
    assert len(choose["sst"]) == 5 and not set(choose["sst"]) & set(report["sst"])
    assert sorted({*choose["sts"], *report["sts"]}) == list(range(8))
    assert np.array_equal(halves({"sst": 11}, 3)[0]["sst"], choose["sst"])
    assert not np.array_equal(halves({"sst": 11}, 4)[0]["sst"], choose["sst"])


def test_the_bootstrap_interval_has_the_standard_error_of_a_proportion():
    rng = np.random.default_rng(0)
    labels = {"sst": np.ones(400)}
    base, edited = {"sst": np.zeros(400)}, {"sst": (rng.random(400) < 0.5).astype(float)}
    rows = {"sst": np.arange(400)}
    outputs = SimpleNamespace(add=lambda stacks: None, labels=labels,
                              predictions=lambda stack: edited if stack == "edited" else base)
    scorer = StackScorer(outputs, rows, "sst")
    gain = scorer.gain_of("edited")
    assert bootstrap(gain, rows, 500).std() == pytest.approx(0.025, rel=0.1)
    low, high = interval(gain, rows)
    assert gain(rows) == edited["sst"].mean() and low > 0
    assert high - low == pytest.approx(4 * 0.0245, rel=0.1)
    assert interval(scorer.gain_of(()), rows) == [0, 0]


# --------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("factored", [(), ("--factored",)])
def test_an_applied_run_opens_in_evaluate_with_the_same_scores(run, script, tmp_path, factored):
    text = "0:fc_out:0.3,1:fc_in:0.2,1:query:0.5:magnitude"
    code, out, _ = script(main, "apply", run, "--laser", text, "--out", tmp_path / "new", *factored)
    assert code == 0 and "parameters" in out
    saved = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert json.loads(script(evaluate_script.main, tmp_path / "new", "--json")[1]) == saved
    reduced = json.loads(script(evaluate_script.main, run, "--laser", text, "--json",
                              "--predictions", tmp_path / "p")[1])
    assert reduced["sst"] == saved["sst"]
    assert reduced["sts"]["pearson"] == pytest.approx(saved["sts"]["pearson"], abs=1e-4)
    edit, = json.loads((tmp_path / "new" / "run.json").read_text())["edits"]
    assert edit["interventions"] == format_stack(parse(text))
    assert edit["ranks"] == ({"0:fc_out": 9, "1:fc_in": 6} if factored else {})
    size = [(folder / "model" / "model.safetensors").stat().st_size
            for folder in (run, tmp_path / "new")]
    assert (size[1] < size[0]) == bool(factored)


def test_an_applied_run_keeps_the_rows_and_precision_it_was_scored_with(run, script, tmp_path):
    code, *_ = script(main, "apply", run, "--laser", "0:fc_out:0.3", "--out", tmp_path / "new",
                      "--precision", "bf16", "--limit", "9")
    saved = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert json.loads(script(evaluate_script.main, tmp_path / "new", "--json")[1]) == saved


def test_a_factored_run_can_be_trained_on(run, script, data, tmp_path):
    script(main, "apply", run, "--laser", "1:fc_in:0.2", "--factored", "--out", tmp_path / "new")
    code, _, err = script(train_multitask.main, "--from", tmp_path / "new", "--data", data,
                          "--steps", "1", "--out", tmp_path / "more")
    assert code == 0, err
    assert runs.open_run(tmp_path / "more")[0].bert.layers[1].ffn.fc_in.down.out_features == 6


@pytest.mark.parametrize("arguments, says", [
    (["swep"], "did you mean sweep"), (["apply", "RUN", "--out", "RUN", "--laser", "1:fc_in:0.3"],
                                       "saved run; --overwrite"),
    (["sweep", "RUN", "--layers", "7"], "layers 0 to 1"),
    (["sweep", "RUN", "--matrices", "fc"], "no matrix 'fc'"),
    (["sweep", "RUN", "--keep", "2"], "--keep 2"), (["sweep", "RUN", "--layers", "x"], "is not"),
    (["search", "RUN", "--metric", "sst5"], "no score"),
    (["search", "RUN", "--splits", "0"], "1 or more"), (["sweep", "nowhere"], "not a saved run"),
])
def test_a_wrong_command_is_a_sentence(run, script, tmp_path, arguments, says):
    named = [str(run) if a == "RUN" else a for a in arguments]
    out = [] if arguments[0] in ("swep", "apply") else ["--out", tmp_path / "o"]
    code, _, err = script(main, *named, *out)
    assert code == 2 and says in err and "Traceback" not in err
