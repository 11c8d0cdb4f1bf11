"""Runs with exits: exactness, each kind of run, each tool, and mistakes."""

import json
import shutil
from argparse import Namespace

import pytest
import torch

import compression.__main__ as compression
import early_exit.__main__ as command
import evaluate
import laser.__main__ as laser
import lora.__main__ as lora
import pruning.__main__ as pruning
import train_multitask
from bert import Bert
from early_exit import states as states_module
from early_exit.cost import cost_of, exit_costs
from early_exit.leaving import EarlyExit, answers, exit_layers, layer_states, task_exits
from early_exit.states import segments_of
from multitask import runs
from multitask.evaluation import run_split
from multitask.session import RunSession
from pruning.cost import multiply_adds

KINDS = {"plain": ("--tasks", "sst,para,sts"),
         "lora": ("--tasks", "sst,para", "--lora", "2"),
         "lora-shared": ("--tasks", "sst,para", "--lora", "2", "--adapters", "shared",
                         "--lora-norms"),
         "encoders": ("--tasks", "sst,para", "--encoders", "separate"),
         "pairs": ("--tasks", "sst,para", "--pairs", "separate", "--head", "mlp"),
         "mean": ("--tasks", "sst,para", "--pooling", "mean"),
         "pooler": ("--tasks", "sst,para", "--pooling", "pooler"),
         "masked": ("--tasks", "sst,para", "--mask-heads", "0:1,2 3:0")}


def opened(run):
    return RunSession(Namespace(run=run, device="cpu"))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def middle(log_q):
    """A threshold at which some examples leave and some stay, far from every confidence."""
    confidence = log_q.exp().amax(dim=2).flatten().sort().values
    inner = confidence[len(confidence) // 4: -len(confidence) // 4]
    gaps = inner.diff()
    return float(inner[gaps.argmax()] + gaps.max() / 2)


def test_above_one_nothing_leaves_and_outputs_are_bit_equal(kind, with_exits):
    session = opened(with_exits(*KINDS[kind]))
    for task, split in session.first_splits.items():
        whole = run_split(session.model, task, split, session.device, session.autocast)
        for threshold in (1.0, 1.5):
            session.model.early_exit = EarlyExit(threshold)
            found = run_split(session.model, task, split, session.device, session.autocast)
            session.model.early_exit = None
            assert torch.equal(found, whole)


def test_the_compacted_pass_answers_as_the_uncompacted_one(kind, with_exits):
    session = opened(with_exits(*KINDS[kind]))
    model, all_left = session.model.eval(), set()
    for task, split in session.first_splits.items():
        if task == "sts":
            continue
        exits, batch = task_exits(model, task), split.batch(range(len(split)))
        hidden, outputs = layer_states(model, task, batch, segments_of(model, task))
        log_q = exits(hidden)
        threshold = middle(log_q)
        layers = exit_layers(log_q, threshold)
        model.early_exit = early_exit = EarlyExit(threshold)
        with torch.inference_mode():
            found = model(task, batch)
        model.early_exit = None
        (_, left), = early_exit.left[task]
        assert left.tolist() == layers.tolist()
        all_left |= set(left.tolist())
        expected = answers(log_q, outputs if task != "para" else torch.cat([-outputs, outputs], 1)
                           / 2, layers)
        expected = expected[:, 1:] - expected[:, :1] if task == "para" else expected
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert len(all_left) > 1


def test_examples_that_left_are_not_computed(with_exits, monkeypatch):
    session = opened(with_exits(*KINDS["plain"]))
    rows, layer = [], type(session.model.bert.layers[1])
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, hidden, *more, **options: (
        rows.append(len(hidden)), forward(self, hidden, *more, **options))[1])
    session.model.early_exit = EarlyExit(0.0)                # all leave at the first exit
    run_split(session.model, "sst", session.first_splits["sst"], session.device, session.autocast)
    assert len(rows) == 1                                    # the first layer


def test_without_a_threshold_the_run_predicts_as_the_one_it_was_made_of(kind, with_exits, trained):
    for file in ("metrics.json", "predictions/sst-dev-output.csv"):
        before, after = ((make(*KINDS[kind]) / file).read_text() for make in (trained, with_exits))
        assert before == after, file


def test_the_encoder_is_saved_without_exits(kind, with_exits, trained):
    for file in (with_exits(*KINDS[kind]) / "model").rglob("model.safetensors"):
        original = trained(*KINDS[kind]) / file.relative_to(with_exits(*KINDS[kind]))
        assert file.read_bytes() == original.read_bytes()
        Bert.from_pretrained(file.parent)


def test_leaving_after_a_layer_costs_what_a_model_cut_there_costs(with_exits):
    """… beside the exits themselves, and all tokens of that layer, which a cut one needs not."""
    session = opened(with_exits(*KINDS["plain"]))
    model, exits = session.model, task_exits(session.model, "sst")
    lengths = torch.tensor([[5, 9, 3]])
    costs, plain = exit_costs(model, "sst", lengths)
    ones = torch.ones(3, dtype=torch.long)
    assert int(plain.sum()) == multiply_adds(model.bert, lengths[0], ones)
    layers = model.bert.layers
    for m in range(4):
        model.bert.layers = layers[:m + 1]
        shallow = multiply_adds(model.bert, lengths[0], lengths[0] if m < 3 else ones)
        assert int(costs[m].sum()) == shallow + 3 * exits.multiply_adds(min(m, 2))


def test_the_report_counts_who_left_where_and_what_it_cost(with_exits, script):
    run = with_exits(*KINDS["plain"])
    code, text, errors = script(evaluate.main, run, "--exit", "0", "--json")
    assert code == 0, errors
    cost = json.loads(text)["cost"]
    assert cost["left"] == {"sst": [1, 0, 0, 0], "para": [1, 0, 0, 0]}
    assert 0 < cost["multiply_adds"] < 0.35 and cost["seconds"] > 0
    code, text, _ = script(evaluate.main, run, "--exit", "2")
    assert "0% leave after layer 0" in text
    assert (run / "early_exit" / "predictions").is_dir()
    code, text, _ = script(evaluate.main, run, "--exit", "0", "--text", "the film is good .")
    assert code == 0 and "left after layer 0 of 0 to 3" in text
    code, text, _ = script(evaluate.main, run, "--exit", "0", "--text", "a cat", "--pair", "a dog",
                           "--json")
    found = json.loads(text)
    assert found["para"]["layer"] == 0 and "layer" not in found["sts"]


def test_shares_of_leaving_add_up(with_exits):
    session = opened(with_exits(*KINDS["pairs"]))
    session.model.early_exit = EarlyExit(0.6)
    for task, split in session.first_splits.items():
        run_split(session.model, task, split, session.device, session.autocast)
    for shares in cost_of(session.model.early_exit, session.model)["left"].values():
        assert sum(shares) == pytest.approx(1)


# ------------------------------------------------------------------------------------------ tools


def test_curve_writes_tables_and_a_picture(with_exits, script, tmp_path, pictures):
    code, text, errors = script(command.main, "curve", with_exits(*KINDS["plain"]), "--repeats", 1,
                                "--out", tmp_path)
    assert code == 0, errors
    assert "budget 25%" in text and "loss up to 0.01" in text
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 1 + 2 * 101
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    code, _, errors = script(command.main, "curve", with_exits(*KINDS["plain"]), "--limit", 1,
                             "--out", tmp_path / "one")
    assert code == 2 and "only 1 example; raise --limit" in errors


def test_training_further_drops_the_exits(with_exits, script, data, tmp_path):
    for name, flags in (("plain", ()), ("lora", ("--lora", "2"))):
        code, text, errors = script(
            train_multitask.main, "--from", with_exits(*KINDS[name]), "--data", data, "--tasks",
            "sst,para", "--steps", "1", "--out", tmp_path / name, *flags)
        assert code == 0, errors
        assert "exits are not carried into" in text
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert not [edit for edit in record["edits"] if edit["method"] == "early_exit"]
        assert not hasattr(runs.open_run(tmp_path / name)[0].bert, "exits")


@pytest.mark.parametrize("tool, arguments", [
    (laser, ("apply", "RUN", "--laser", "1:fc_in:0.3", "--factored", "--out", "OUT")),
    (compression, ("RUN", "--methods", "svd", "--ratios", "2", "--save", "OUT")),
    (pruning, ("prune", "RUN", "--remove", "0:1", "--out", "OUT")),
    (pruning, ("prune", "RUN", "--remove", "1:2", "--mask", "--out", "OUT"))])
def test_edits_of_other_methods_keep_the_exits(tool, arguments, with_exits, script, tmp_path):
    run = with_exits(*KINDS["plain"])
    named = [{"RUN": run, "OUT": tmp_path / "new"}.get(a, a) for a in arguments]
    code, _, errors = script(tool.main, *named)
    assert code == 0, errors
    assert (tmp_path / "new" / "exits.safetensors").is_file()
    code, text, errors = script(evaluate.main, tmp_path / "new", "--exit", "0.5", "--json")
    assert code == 0, errors
    assert json.loads(text)["cost"]["multiply_adds"] < 1.1


def test_tools_that_measure_the_whole_model_do_so(with_exits, trained, script, tmp_path):
    pair = trained(*KINDS["plain"]), with_exits(*KINDS["plain"])
    for tool, flags, file in (
            (pruning, ("importance", "--examples", 8), "heads.csv"),
            (laser, ("sweep", "--layers", "1", "--keep", "0.5"), "sweep.csv")):
        for n, run in enumerate(pair):
            code, _, errors = script(tool.main, flags[0], run, *flags[1:], "--out",
                                     tmp_path / str(n))
            assert code == 0, errors
        assert (tmp_path / "0" / file).read_text() == (tmp_path / "1" / file).read_text()
    code, _, errors = script(pruning.main, "report", *pair)
    assert code == 0, errors


def test_layers_are_not_removed_below_exits(with_exits, script, tmp_path):
    code, _, errors = script(pruning.main, "prune", with_exits(*KINDS["plain"]), "--layers", "2",
                             "--out", tmp_path / "o")
    assert code == 2 and "early_exit, which names layers by number" in errors


def test_a_merged_adapter_keeps_its_exits(with_exits, script, tmp_path):
    code, _, errors = script(lora.main, "merge", with_exits(*KINDS["lora-shared"]), "--out",
                             tmp_path / "o")
    assert code == 0, errors
    code, text, errors = script(evaluate.main, tmp_path / "o", "--exit", "0", "--json")
    assert code == 0 and json.loads(text)["cost"]["left"]["sst"][0] == 1, errors


def test_the_runs_own_adapter_still_fits_beside_exits(with_exits, script):
    run = with_exits(*KINDS["lora"])
    own = f"sst={run / 'adapters' / 'sst'}"
    code, text, errors = script(evaluate.main, run, "--adapter", own, "--json")
    assert code == 0, errors
    assert json.loads(text) == json.loads((run / "metrics.json").read_text())
    code, _, errors = script(evaluate.main, run, "--adapter", own, "--exit", "0.5")
    assert code == 2 and "the run's own adapter" in errors


def test_exits_are_trained_again_in_place_of_the_old(with_exits, script, tmp_path):
    code, _, errors = script(command.main, "train", with_exits(*KINDS["plain"]), "--out",
                             tmp_path / "o", "--method", "sdn", "--tasks", "para")
    assert code == 0, errors
    edits = json.loads((tmp_path / "o" / "run.json").read_text())["edits"]
    assert [(e["cascade"], e["ensemble"], list(e["tasks"])) for e in edits] == [
        (False, "none", ["para"])]


def test_exits_that_read_cls_alone_need_no_word_of_the_mean(trained, script, tmp_path):
    out, scores = tmp_path / "o", []
    assert script(command.main, "train", trained(*KINDS["plain"]), "--out", out, "--reads",
                  "cls")[0] == 0
    for _ in range(2):
        code, text, errors = script(evaluate.main, out, "--exit", "0.4", "--json")
        assert code == 0, errors
        scores.append([*json.loads(text)["cost"].items()][:2])       # multiply-adds, who left where
        record = json.loads((out / "run.json").read_text())
        assert record["edits"][0].pop("mean", False) is False            # as before there was one
        (out / "run.json").write_text(json.dumps(record))
    assert scores[0] == scores[1]


def test_states_are_computed_once_and_a_stopped_pass_goes_on(trained, script, tmp_path,
                                                             monkeypatch):
    run, batches = trained("--tasks", "sst", "--seed", "7"), []
    monkeypatch.setattr(states_module, "TOKENS", 60)
    real = states_module.layer_states
    monkeypatch.setattr(states_module, "layer_states",
                        lambda *a: (batches.append(len(a[2].labels)), real(*a))[1])

    class Stop(states_module.StopSignal):
        asked = True

    with monkeypatch.context() as patch:
        patch.setattr(states_module, "StopSignal", Stop)
        code, _, errors = script(command.main, "train", run, "--out", tmp_path / "a")
    assert code == 130 and "the same command goes on" in errors and len(batches) == 1
    assert script(command.main, "train", run, "--out", tmp_path / "a")[0] == 0
    assert sum(batches) == 40 and len(batches) > 2
    assert script(command.main, "train", run, "--out", tmp_path / "b", "--method", "sdn")[0] == 0
    assert sum(batches) == 40


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("threshold, word", [
    ("much", "--exit much"), ("-0.1", "--exit -0.1"), ("nan", "--exit nan"), ("", "--exit ")])
def test_a_threshold_that_is_none_is_refused(threshold, word, with_exits, script):
    code, _, errors = script(evaluate.main, with_exits(*KINDS["plain"]), f"--exit={threshold}")
    assert code == 2 and word in errors and "write a number from 0" in errors


def test_exit_on_a_run_without_exits_is_refused(trained, script):
    code, _, errors = script(evaluate.main, trained(*KINDS["plain"]), "--exit", "0.9")
    assert code == 2 and "has no exits" in errors and "early_exit train" in errors
    code, _, errors = script(command.main, "curve", trained(*KINDS["plain"]))
    assert code == 2 and "has no exits" in errors


@pytest.mark.parametrize("kind, flags, word", [
    ("plain", ("--tasks", "sts"), "sts is a regression"),
    ("plain", ("--tasks", "sst,sts"), "sts is a regression"),
    ("plain", ("--examples", "5"), "exits need 10"),
    ("plain", ("--examples", "-5"), "--examples is -5"),
    ("plain", ("--method", "zwt"), "invalid choice"),
    ("plain", ("--tasks", "sstt"), "did you mean sst"),
    ("plain", ("--seed", "-1"), "--seed is -1")])
def test_impossible_flags_of_train_are_refused(kind, flags, word, trained, script, tmp_path):
    code, _, errors = script(command.main, "train", trained(*KINDS[kind]), "--out", tmp_path / "o",
                             *flags)
    assert code == 2 and word in errors and not (tmp_path / "o").exists()


def test_a_run_of_regressions_has_no_exits(trained, script, tmp_path):
    code, _, errors = script(command.main, "train", trained("--tasks", "sts"), "--out",
                             tmp_path / "o")
    assert code == 2 and "sts is a regression" in errors


def test_an_encoder_of_one_layer_has_no_exits(trained, script, tmp_path):
    assert script(pruning.main, "prune", trained("--tasks", "sst"), "--layers", "1", "--examples",
                  8, "--out", tmp_path / "one")[0] == 0
    code, _, errors = script(command.main, "train", tmp_path / "one", "--out", tmp_path / "o")
    assert code == 2 and "one layer" in errors


def test_damaged_exits_are_refused_in_a_sentence(with_exits, trained, script, tmp_path):
    shutil.copytree(with_exits(*KINDS["plain"]), tmp_path / "broken")
    shutil.copy(with_exits(*KINDS["pairs"]) / "exits.safetensors", tmp_path / "broken")
    code, _, errors = script(evaluate.main, tmp_path / "broken")
    assert code == 2 and "Traceback" not in errors
