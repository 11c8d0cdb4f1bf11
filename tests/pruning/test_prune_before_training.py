"""--mask-heads, --keep-heads and --lora-top: what a run does before its first step."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import evaluate
import train_multitask
from bert import UserError
from lora import LoRALinear
from multitask import runs
from multitask.preparation import load_model
from pruning import remove_layers
from pruning.binding import prepare


def test_heads_go_and_ranks_vary_before_training(checkpoint, data, script, tmp_path):
    """glue-prune-lora, here on another task: the most important heads stay, the third of the layers
    whose heads matter most has adapters of rank 8, LayerNorms train, and all of it opens again."""
    code, text, errors = script(train_multitask.main, "--recipe", "glue-prune-lora", "--bert",
                                checkpoint, "--data", data, "--tasks", "sst", "--keep-heads", "3",
                                "--epochs", "0", "--steps", "2", "--out", tmp_path / "run")
    assert code == 0, errors
    assert "3 heads stay" in text
    bert = runs.open_run(tmp_path / "run")[0].bert
    assert sum(layer.attention.num_heads for layer in bert.layers) == 3
    assert [edit["method"] for edit in bert.edits] == ["pruning", "lora"]
    ranks = {name: module.adapters["sst"].rank for name, module in bert.named_modules()
             if isinstance(module, LoRALinear)}
    with_heads = [n for n, layer in enumerate(bert.layers) if layer.attention.num_heads]
    assert len(ranks) == 4 * len(with_heads) and 8 in ranks.values()
    for layer in with_heads:
        assert len({rank for name, rank in ranks.items() if f"layers.{layer}." in name}) == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    matrices = sum(rank * sum(bert.get_submodule(name).base.weight.shape)
                   for name, rank in ranks.items())
    assert record["parameters"]["trained"] == (32 * 5 + 5) + 5 * 2 * 32 + matrices
    code, scores, _ = script(evaluate.main, tmp_path / "run", "--json")
    assert json.loads(scores) == json.loads((tmp_path / "run" / "metrics.json").read_text())
    _, settings, _ = runs.read_settings(tmp_path / "run")    # a resumed run measures nothing
    again, _ = load_model(replace(settings, data="gone"), torch.device("cpu"), record["edits"])
    shapes = [p.shape for p in again.bert.parameters()]
    assert shapes == [p.shape for p in bert.parameters()] and again.bert.edits == record["edits"]


def test_heads_are_switched_off_by_a_setting_of_a_run(checkpoint, data, script, tmp_path):
    code, _, errors = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--tasks",
                             "sst", "--mask-heads", "0:1,3 1:0", "--steps", "1", "--out",
                             tmp_path / "run")
    assert code == 0, errors
    bert = runs.open_run(tmp_path / "run")[0].bert
    assert bert.config.masked_heads == {0: [1, 3], 1: [0]}
    assert bert.layers[0].attention.num_heads == 4


@pytest.mark.parametrize(("flags", "says"), [
    (("--mask-heads", "0:9"), "no head 9"), (("--mask-heads", "1"), "a whole layer"),
    (("--mask-heads", "first"), "--mask-heads 'first'"),
    (("--keep-heads", "9"), "--keep-heads 9"), (("--keep-heads", "8"), "nothing would be removed"),
    (("--keep-heads", "few"), "--keep-heads few"),
    (("--keep-heads", "4", "--encoders", "separate"), "leave out --encoders separate"),
    (("--lora-top", "8"), "needs --lora")])
def test_an_impossible_start_is_a_sentence(checkpoint, data, script, tmp_path, flags, says):
    code, _, errors = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--out",
                             tmp_path / "run", *flags)
    assert code == 2 and says in errors and not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [("--keep-heads", "4"), ("--lora", "2", "--lora-top", "4")])
def test_a_run_that_chose_heads_goes_on_to_the_same_bytes(checkpoint, data, script, tmp_path,
                                                          monkeypatch, flags):
    def train(name):
        return script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", "6",
                      "--save-every", "2", "--out", tmp_path / name, *flags)

    assert train("whole")[0] == 0
    real, steps = torch.optim.AdamW.step, []

    def stopping(self, *arguments):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    assert train("part")[0] == 130
    monkeypatch.undo()
    code, _, err = script(train_multitask.main, "--resume", tmp_path / "part")
    assert code == 0, err
    for file in ("metrics.json", "heads.safetensors", "model/model.safetensors"):
        assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_resumed_run_finds_its_heads_among_the_edits_of_other_methods(bert):
    """LASER's edit has no kind: a run that was made of a reduced one and removes heads resumes."""
    edits = [{"method": "laser", "interventions": "0:fc_in:0.5", "ranks": {}},
             {"method": "pruning", "kind": "remove_heads", "heads": {"0": [1]}}]
    model = SimpleNamespace(bert=bert, encoders={"shared": bert})
    settings = SimpleNamespace(mask_heads="", keep_heads="0.9")
    prepare(model, None, settings, torch.device("cpu"), edits)
    assert bert.config.pruned_heads == {0: [1]}


def test_layers_of_a_reduced_encoder_stay(bert):
    """Layers would be renumbered, and LASER's edit refers to them by number."""
    bert.edits = [{"method": "laser", "interventions": "0:fc_in:0.5", "ranks": {}}]
    with pytest.raises(UserError, match="laser"):
        remove_layers(bert, [1])
