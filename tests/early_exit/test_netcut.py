"""NetCut: its loss, the cut, and the command."""

import json

import pytest
import torch

import early_exit.__main__ as command
import evaluate
from bert import UserError
from early_exit import netcut_training
from early_exit.netcut import DepthHeads, netcut_loss
from multitask import runs
from multitask.evaluation import load_split


def losses():
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(4, 6, 3, generator=generator).log_softmax(dim=2)
    return log_probs, torch.randint(0, 3, (6,), generator=generator)


def test_the_loss_is_linear_in_the_mixture():
    log_probs, labels = losses()
    one, two = torch.rand(2, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    for beta in (0.0, 0.1):
        mixed = netcut_loss(log_probs, labels, 0.3 * one + 0.7 * two, beta)
        apart = [netcut_loss(log_probs, labels, alpha, beta) for alpha in (one, two)]
        torch.testing.assert_close(mixed, 0.3 * apart[0] + 0.7 * apart[1])


def test_the_loss_of_one_head_is_its_cross_entropy_and_its_depth():
    log_probs, labels = losses()
    for k in range(4):
        alpha = torch.eye(4)[k]
        expected = torch.nn.functional.nll_loss(log_probs[k], labels) + 0.1 * (k + 1)
        torch.testing.assert_close(netcut_loss(log_probs, labels, alpha, 0.1), expected)


@pytest.mark.parametrize("flags", [("--tasks", "sst,para"),
                                   ("--tasks", "sst,para", "--pooling", "mean"),
                                   ("--tasks", "sst,para", "--pairs", "separate", "--head", "mlp")])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_cut_network_answers_as_the_uncut_one_at_that_depth(flags, depth, trained):
    model, tokenizer, settings, _ = runs.open_run(trained(*flags))
    heads = DepthHeads(model.eval())
    torch.manual_seed(0)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    heads.w.data[depth - 1] = 9
    task = settings.task_names[-1]
    split = load_split(task, "dev", settings.data, tokenizer, settings)
    batch = split.batch(range(len(split)))
    with torch.no_grad():
        uncut = heads.eval()(model, task, batch)[depth - 1]
        netcut_training.cut(model, heads, {})
        z = model.eval()(task, batch)
    assert len(model.bert.layers) == depth
    cut = (z.log_softmax(dim=1) if z.size(1) > 1 else
           torch.cat([-z, z], dim=1).sigmoid().log())
    torch.testing.assert_close(cut, uncut, atol=1e-5, rtol=1e-5)


def netcut(script, run, out, *flags):
    return script(command.main, "netcut", run, "--out", out, "--epochs", 2, "--depth-lr", 2, *flags)


def test_a_costly_layer_leaves_one_and_the_run_opens_scores_and_is_ordinary(
        trained, script, tmp_path, pictures):
    code, text, errors = netcut(script, trained("--tasks", "sst"), tmp_path / "one", "--beta", 9)
    assert code == 0, errors
    assert "1 of 4 layers stay; one head was chosen" in text
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert [edit["method"] for edit in record["edits"]] == ["pruning"]
    assert record["edits"][0]["netcut"]["beta"] == 9
    assert max(record["edits"][0]["netcut"]["alpha"]) > 0.99
    config = json.loads((tmp_path / "one" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    code, scores, _ = script(evaluate.main, tmp_path / "one", "--json")
    assert json.loads(scores) == json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert (tmp_path / "one" / "early_exit" / "netcut.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "one.netcut").exists()


def test_a_stopped_netcut_goes_on_as_if_it_had_not_been_stopped(trained, script, tmp_path,
                                                                monkeypatch):
    run = trained("--tasks", "sst")
    assert netcut(script, run, tmp_path / "whole", "--beta", 0.5)[0] == 0

    class Stop(netcut_training.StopSignal):
        asks = 0

        @property
        def asked(self):
            Stop.asks += 1
            return Stop.asks >= 7

    with monkeypatch.context() as patch:
        patch.setattr(netcut_training, "StopSignal", Stop)
        code, _, errors = netcut(script, run, tmp_path / "out", "--beta", 0.5)
    assert code == 130 or (tmp_path / "out.netcut").exists(), errors
    code, _, errors = netcut(script, run, tmp_path / "out", "--beta", 0.6)
    assert code == 2 and "--beta 0.5" in errors
    code, _, errors = netcut(script, run, tmp_path / "out", "--beta", 0.5)
    assert code == 0, errors
    assert ((tmp_path / "out" / "metrics.json").read_bytes()
            == (tmp_path / "whole" / "metrics.json").read_bytes())
    found = [json.loads((tmp_path / name / "run.json").read_text())["edits"][0]["netcut"]["alpha"]
             for name in ("out", "whole")]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("flags, word", [
    (("--beta", "-1"), "--beta is -1.0; it must be 0 or more"),
    (("--beta", "nan"), "--beta is nan"),
    (("--depth-warmup", "1"), "below 1"),
    (("--epochs", "0"), "lower layers need training"),
    (("--beta", "much"), "invalid float value")])
def test_impossible_flags_are_refused_in_a_sentence(flags, word, trained, script, tmp_path):
    code, _, errors = script(command.main, "netcut", trained("--tasks", "sst"), "--out",
                             tmp_path / "o", *flags)
    assert code == 2 and word in errors and "Traceback" not in errors
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flags, word", [
    (("--tasks", "sst,para,sts"), "sts is a regression"),
    (("--tasks", "sst,para", "--lora", "2"), "merge adapters"),
    (("--tasks", "sst,para", "--encoders", "separate"), "an encoder for each task")])
def test_runs_that_cannot_be_cut_are_refused_in_a_sentence(flags, word, trained, script, tmp_path):
    code, _, errors = script(command.main, "netcut", trained(*flags), "--out", tmp_path / "o")
    assert code == 2 and word in errors


def test_a_run_with_exits_is_not_cut(with_exits, script, tmp_path):
    code, _, errors = script(command.main, "netcut", with_exits("--tasks", "sst"), "--out",
                             tmp_path / "o")
    assert code == 2 and "early_exit" in errors


def test_depth_heads_refuse_an_encoder_for_each_task(trained):
    model = runs.open_run(trained("--tasks", "sst,para", "--encoders", "separate"))[0]
    with pytest.raises(UserError, match="an encoder for each task"):
        DepthHeads(model)
