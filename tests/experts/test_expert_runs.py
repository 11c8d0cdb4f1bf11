"""Experts in runs: relu, split, evaluate --tau, curve; what can be done to such a run and what is
refused."""

import csv
import json

import pytest
import torch
from pruning_models import same

import evaluate
import train_multitask
from bert import Bert, UserError
from compression.__main__ import main as compression
from experts.__main__ import main
from experts.layers import ExpertFeedForward, ffn_share, select_experts
from experts.rules import Selection
from laser.__main__ import main as laser
from multitask import runs
from multitask.evaluation import load_sets, run_split
from pruning.__main__ import main as pruning


@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    """A short run on the small checkpoint and data."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(folder),
                          "--epochs", "1", "--lr", "3e-3"])
    return folder


@pytest.fixture(scope="module")
def relu(run, tmp_path_factory):
    """The run with sparse ReLU activations."""
    folder = tmp_path_factory.mktemp("relu") / "relu"
    main(["relu", str(run), "--out", str(folder), "--epochs", "2", "--sparsity",
          "relu-l1:1e-3:warm-up"])
    return folder


@pytest.fixture(scope="module")
def sparse(relu, tmp_path_factory):
    """The same, split into 8 experts."""
    folder = tmp_path_factory.mktemp("sparse") / "sparse"
    main(["split", str(relu), "--out", str(folder), "--experts", "8", "--epochs", "3"])
    return folder


def outputs(folder, selection=None):
    """{task: the model's outputs on dev}, and the model."""
    model, tokenizer, settings, _ = runs.open_run(folder)
    if selection:
        select_experts(model.bert, selection)
    splits = load_sets(model.heads, settings, tokenizer)
    return {task: run_split(model, task, named["dev"], torch.device("cpu"), torch.no_grad)
            for task, named in splits.items()}, model


def test_relu_is_a_run_that_was_trained_with_a_penalty_and_a_teacher(relu, run):
    record = json.loads((relu / "run.json").read_text())
    assert record["complete"] and record["methods"] == ["experts"]
    assert record["settings"]["relu"] and record["settings"]["from_run"] == str(run)
    assert Bert.from_pretrained(relu / "model").config.hidden_act == "relu"
    lines = [json.loads(line) for line in (relu / "log.jsonl").read_text().splitlines()]
    assert {"loss", "sparsity", "distill"} <= {name for line in lines for name in line}
    kept = [line["step"] for line in lines if "dev" in line]
    assert record["best_step"]["shared"] >= kept[-1] / 2     # none before the weight was whole


def test_relu_again_has_nothing_left_to_do(relu, run, script):
    same_flags = ("--epochs", "2", "--sparsity", "relu-l1:1e-3:warm-up")
    code, out, _ = script(main, "relu", run, "--out", relu, *same_flags)
    assert code == 0 and "complete: nothing is left to do" in out
    code, _, err = script(main, "relu", run, "--out", relu, "--epochs", "5")
    assert code == 2 and "--overwrite replaces it" in err


def test_a_stopped_relu_goes_on_and_ends_alike(relu, run, tmp_path, monkeypatch, script):
    from common import cli

    class StopsAtOnce(cli.StopSignal):
        asked = True

    monkeypatch.setattr(train_multitask, "StopSignal", StopsAtOnce)
    flags = ("relu", run, "--out", tmp_path / "stopped", "--epochs", "2", "--sparsity",
             "relu-l1:1e-3:warm-up")
    assert script(main, *flags)[0] == 130
    monkeypatch.setattr(train_multitask, "StopSignal", cli.StopSignal)
    assert script(main, *flags)[0] == 0
    assert (tmp_path / "stopped" / "metrics.json").read_bytes() == (relu / "metrics.json"
                                                                    ).read_bytes()


def test_a_split_run_opens_with_equal_outputs_and_as_an_ordinary_bert(relu, sparse):
    (before, _), (after, model) = outputs(relu), outputs(sparse)
    for task in before:
        same(after[task], before[task])
    assert all(isinstance(layer.ffn, ExpertFeedForward) for layer in model.bert.layers)
    plain = Bert.from_pretrained(sparse / "model")
    ids = torch.arange(5, 11)[None]
    same(plain(ids).last_hidden_state, model.bert(ids).last_hidden_state)


@pytest.mark.parametrize("rule", ["max", "cumulative"])
def test_tau_1_is_the_whole_model(sparse, rule):
    (whole, _), (chosen, model) = outputs(sparse), outputs(sparse, Selection(rule, 1.0))
    assert all(torch.equal(chosen[task], whole[task]) for task in whole)
    assert ffn_share(model.bert) == 1.0


def test_evaluate_with_tau_tells_the_cost(sparse, script):
    (sparse / "predictions").rename(sparse / "kept")
    code, out, _ = script(evaluate.main, sparse, "--tau", "0.3", "--json")
    (sparse / "kept").rename(sparse / "predictions")
    found = json.loads(out)
    assert code == 0 and set(found["cost"]) == {"ffn", "model", "seconds"}
    assert 0.1 < found["cost"]["ffn"] < found["cost"]["model"] < 1
    assert (sparse / "experts" / "predictions").is_dir()
    code, out, _ = script(evaluate.main, sparse, "--tau", "2", "--rule", "top-k")
    assert "of the feed-forward networks', " in out and "cost" not in out
    assert script(evaluate.main, sparse, "--tau", "0.5", "--text", "the cat is good .")[0] == 0


def test_curve_writes_its_table_and_resumes(sparse, script, monkeypatch):
    flags = ("curve", sparse, "--taus", "0.5,1", "--norms", "router,random", "--passes", "1")
    code, out, _ = script(main, *flags)
    with open(sparse / "experts" / "curve.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert code == 0 and (sparse / "experts" / "curve.png").is_file()
    assert {row["rule"] for row in rows} == {"max", "cumulative", "top-k"}
    assert {row["ffn"] for row in rows if row["tau"] == "1.0" and row["rule"] == "max"} == {"1.0"}
    monkeypatch.setattr("experts.__main__.measure", None)       # nothing is measured again
    assert script(main, *flags)[1] == out


@pytest.mark.parametrize("call, word", [
    ((evaluate.main, "SPARSE", "--tau", "1.5"), "from 0"),
    ((evaluate.main, "SPARSE", "--tau", "9", "--rule", "top-k"), "each layer has 8 experts"),
    ((evaluate.main, "SPARSE", "--tau", "0.5", "--rule", "mox"), "did you mean max"),
    ((evaluate.main, "SPARSE", "--rule", "max"), "add --tau"),
    ((evaluate.main, "RELU", "--tau", "0.5"), "no experts; make a run that has some"),
    ((main, "curve", "RELU"), "no experts; make a run that has some"),
    ((main, "curve", "SPARSE", "--taus", "2"), "numbers from 0 to 1"),
    ((main, "curve", "SPARSE", "--norms", "oracel"), "did you mean oracle"),
    ((main, "split", "RELU", "--out", "OUT", "--experts", "7"), "does not divide the 64 neurons"),
    ((main, "split", "SPARSE", "--out", "OUT"), "experts already"),
    ((main, "split", "RELU", "--out", "OUT", "--width", "100"), "would save nothing"),
    ((main, "relu", "RELU", "--out", "OUT"), "ReLU already"),
    ((main, "relu", "RUN", "--out", "OUT", "--sparsity", "relu-l1:x"), "write penalty:weight"),
    ((main, "splt",), "did you mean split"),
    ((laser, "sweep", "SPARSE"), "a ExpertFeedForward, which LASER cannot run in parts"),
    ((laser, "apply", "SPARSE", "--laser", "1:fc_in:0.2", "--factored", "--out", "OUT"),
     "experts slice plain matrices"),
    ((pruning, "importance", "SPARSE", "--of", "neurons"), "ExpertFeedForward"),
    ((pruning, "prune", "SPARSE", "--layers", "1", "--out", "OUT"), "after experts"),
    ((train_multitask.main, "--from", "SPARSE", "--out", "OUT"), "has experts, whose routers"),
    ((train_multitask.main, "--relu", "--lora", "2"), "leave out --lora"),
    ((train_multitask.main, "--distill", "1"), "--distill has no effect"),
    ((train_multitask.main, "--sparsity", "relu-l1"), "write penalty:weight"),
    ((train_multitask.main, "--sparsity", "relu-l1:1", "--out", "OUT"), "add --relu"),
])
def test_what_cannot_be_is_a_sentence(call, word, run, relu, sparse, tmp_path, script):
    places = {"RUN": run, "RELU": relu, "SPARSE": sparse, "OUT": tmp_path / "out"}
    code, _, err = script(call[0], *(places.get(argument, argument) for argument in call[1:]))
    assert code == 2 and word in err and "Traceback" not in err, err


def test_what_is_made_of_a_split_run_keeps_its_experts(sparse, data, tmp_path):
    pruning(["importance", str(sparse), "--examples", "8", "--out", str(tmp_path / "i")])
    pruning(["prune", str(sparse), "--remove", "0:1", "--out", str(tmp_path / "heads")])
    pruning(["report", str(tmp_path / "heads"), str(sparse)])
    laser(["apply", str(sparse), "--laser", "0:query:0.5", "--out", str(tmp_path / "low")])
    compression([str(sparse), "--matrices", "fc_in", "--methods", "bits", "--ratios", "4",
                 "--save", str(tmp_path / "bits")])
    train_multitask.main(["--from", str(sparse), "--data", str(data), "--freeze", "--steps", "2",
                          "--out", str(tmp_path / "frozen")])
    for name in ("heads", "low", "bits", "frozen"):
        (whole, model), (chosen, _) = (outputs(tmp_path / name),
                                       outputs(tmp_path / name, Selection("cumulative", 1.0)))
        assert "experts" in {edit["method"] for edit in model.bert.edits}, name
        assert all(torch.equal(chosen[task], whole[task]) for task in whole)


@pytest.mark.parametrize("flags", [
    ["--tasks", "sts", "--pairs", "separate", "--pooling", "mean"],
    ["--tasks", "sst,sts", "--lora", "2"],
    ["--tasks", "sst,sts", "--mask-heads", "0:1"]])
def test_other_kinds_of_runs_are_split(flags, checkpoint, data, tmp_path):
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--steps", "2", "--out",
                          str(tmp_path / "run"), *flags])
    main(["split", str(tmp_path / "run"), "--experts", "4", "--epochs", "1", "--out",
          str(tmp_path / "split")])
    before, after = outputs(tmp_path / "run")[0], outputs(tmp_path / "split")[0]
    for task in before:
        same(after[task], before[task])
    if "--lora" in flags:                                    # only such a run cannot be trained so
        with pytest.raises(UserError, match="adapters on a frozen encoder"):
            main(["relu", str(tmp_path / "run"), "--out", str(tmp_path / "relu")])
    chosen, model = outputs(tmp_path / "split", Selection("top-k", 1))
    assert ffn_share(model.bert) < 0.6 and all(row.isfinite().all() for row in chosen.values())


def test_separate_encoders_are_made_sparse_and_their_split_is_refused(checkpoint, data, tmp_path,
                                                                      script):
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--tasks", "sst,sts",
                          "--encoders", "separate", "--steps", "2", "--seed", "5", "--out",
                          str(tmp_path / "run")])
    code, out, _ = script(main, "relu", tmp_path / "run", "--epochs", "1", "--sparsity", "none",
                          "--seed", "0", "--out", tmp_path / "relu")
    assert code == 0 and "sst: " in out and "sts: " in out and "activations are zero on dev" in out
    assert json.loads((tmp_path / "relu" / "run.json").read_text())["seed"] == 0
    assert script(main, "split", tmp_path / "relu", "--out", tmp_path / "new")[0] == 2


def test_patience_counts_from_the_first_model_that_is_kept(checkpoint, data, tmp_path):
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--tasks", "sst",
                          "--relu", "--sparsity", "relu-l1:1e-4:linear", "--patience", "1",
                          "--epochs", "3", "--batch-size", "40", "--out", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["complete"] and record["best_step"] == {"shared": 3}   # the weight was whole
