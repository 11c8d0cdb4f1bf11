"""Adapters are peft's files: what is written opens in peft, what peft wrote opens here or is
refused by name. How many parameters are stored."""

import json

import pytest
import torch
from lora_models import IDS, SMALL, close, perturb, states
from parity import PROBES, REFERENCE, real_texts
from safetensors.torch import load_file, save_file

import lora
from bert import Bert, BertConfig, Tokenizer, UserError
from lora.adapters import count
from lora.binding import storage_table, swap
from lora.layers import AdaptedLayerNorm
from multitask.methods import settings_class
from multitask.model import build_model

Settings = settings_class()


# files

def test_a_saved_adapter_opens_with_its_layernorms_ranks_and_alpha(adapted, tmp_path):
    expected = {name: states(adapted, name) for name in "ab"}
    for name in "ab":
        assert lora.save(adapted, name, tmp_path / name) is None     # no bytes in a notebook
    lora.detach(adapted)
    for name in "ab":
        assert lora.load(adapted, tmp_path / name) == name
        assert torch.equal(states(adapted, name), expected[name])
    assert isinstance(adapted.embedding_norm, AdaptedLayerNorm)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["rank_pattern"] == {"encoder.layer.2.output.dense": 3}


@pytest.mark.parametrize("name", ["peft", "ours"])
def test_adapters_give_the_outputs_that_peft_gives_on_transformers(real_weights, real_data, name):
    """An adapter that peft wrote and one written here, on real weights (make_reference.py)."""
    bert = Bert.from_pretrained(real_weights)
    lora.load(bert, REFERENCE / "adapters" / name)
    batch = Tokenizer.from_pretrained(real_weights)(*real_texts(real_data)["single"])
    hidden = bert(**batch).last_hidden_state[batch["attention_mask"].bool()][:, ::PROBES]
    expected = load_file(REFERENCE / "adapters" / "expected.safetensors")
    close(hidden, expected[name])
    assert (expected["peft"] - expected["ours"]).abs().max() > 0.1


def test_saving_writes_the_bytes_of_the_reference_that_peft_opened(real_weights, tmp_path):
    bert, folder = Bert.from_pretrained(real_weights), REFERENCE / "adapters" / "ours"
    lora.load(bert, folder)
    lora.save(bert, "ours", tmp_path)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


def changed(folder, to, config=(), tensors=lambda tensors: None, keep_base=True):
    """A copy of an adapter with other fields or tensors."""
    to.mkdir()
    fields = json.loads((folder / "adapter_config.json").read_text()) | dict(config)
    (to / "adapter_config.json").write_text(json.dumps(fields))
    loaded = load_file(folder / "adapter_model.safetensors")
    tensors(loaded)
    save_file(loaded, to / "adapter_model.safetensors")
    return to


KEY = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize("change, says", [
    ({"config": {"peft_type": "IA3"}}, "'peft_type': 'IA3'.*; supported are .*'LORA'.*'LORA_XS'"),
    ({"config": {"use_dora": True}}, "asks for use_dora, which is not supported"),
    ({"config": {"bias": "all"}}, "asks for bias, which is not supported"),
    ({"config": {"use_rslora": True, "r": 2.5}}, r"r is 2.5; it must be a whole number from 1"),
    ({"tensors": lambda t: t.pop(KEY)}, "encoder.layer.0.attention.self.query does not .* missing"),
    ({"tensors": lambda t: t.update({KEY: torch.ones(2, 7)})}, r"of another shape: A \[2, 7\] ins"),
    ({"tensors": lambda t: t.update({KEY.replace("r.0", "r.9"): torch.ones(2, 2)})},
     r"adapts what no adapter here acts on: .*layer.9.*; the model's 3 layers have intermediate"),
])
def test_a_file_that_does_not_fit_is_refused_by_name(adapted, tmp_path, change, says):
    lora.save(adapted, "b", tmp_path / "b")
    lora.detach(adapted)
    names = list(adapted.state_dict())
    with pytest.raises(UserError, match=says):
        lora.load(adapted, changed(tmp_path / "b", tmp_path / "changed", **change))
    assert list(adapted.state_dict()) == names


def test_tensors_outside_the_encoder_are_left_out_with_a_warning(adapted, tmp_path):
    lora.save(adapted, "b", tmp_path / "b")
    expected = states(adapted, "b")
    folder = changed(tmp_path / "b", tmp_path / "c", tensors=lambda t: t.update(
        {"base_model.model.classifier.weight": torch.ones(2, 2)}))
    with pytest.warns(UserWarning, match="left out base_model.model.classifier.weight"):
        lora.load(adapted, folder)
    assert torch.equal(states(adapted, "c"), expected)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga",
                                  "PiSSA", "of-next-year"])
def test_an_initialization_that_changes_the_base_is_refused_by_name(adapted, tmp_path, init):
    lora.save(adapted, "b", tmp_path / "b")
    folder = changed(tmp_path / "b", tmp_path / "c", {"init_lora_weights": init})
    with pytest.raises(UserError, match=f"init_lora_weights '{init}'.*_conversion.*merge_and_un"):
        lora.load(adapted, folder)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal", "eva", "mica"])
def test_an_initialization_that_keeps_the_base_opens(adapted, tmp_path, init):
    lora.save(adapted, "b", tmp_path / "b")
    lora.load(adapted, changed(tmp_path / "b", tmp_path / "c", {"init_lora_weights": init}))
    assert torch.equal(states(adapted, "c"), states(adapted, "b"))


@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR", "IA3", "VERA", "OFT", "PREFIX_TUNING"])
def test_an_adapter_of_another_type_is_refused_by_its_type(bert, tmp_path, peft_type):
    """Files of other types have no lora_alpha; the message names the type all the same."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type, "r": 8}))
    save_file({"base_model.model.x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"'peft_type': '{peft_type}'.*; supported are .*'LORA'"):
        lora.load(bert, tmp_path)


def test_xs_with_random_factors_is_refused(adapted, tmp_path):
    lora.attach(adapted, ("query",), 2, ("x",), kind="xs")
    lora.save(adapted, "x", tmp_path / "x")
    folder = changed(tmp_path / "x", tmp_path / "y", {"init": "random"})
    with pytest.raises(UserError, match="'init': 'random'.*supported are .*'sigma': 'in'"):
        lora.load(adapted, folder)


@pytest.mark.parametrize("more", ["pooler.dense.lora_A.weight", "bert.pooler.dense.weight"])
@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_an_adapter_of_the_pooler_is_left_out_unless_it_is_read(checkpoint, tmp_path, pooling,
                                                                more):
    model = build_model(Bert.from_pretrained(checkpoint), Settings(pooling=pooling))
    lora.attach(model.bert, ("query",), 2, ("a",))
    lora.save(perturb(model.bert, "a"), "a", tmp_path / "a")
    folder = changed(tmp_path / "a", tmp_path / "b", tensors=lambda t: t.update(
        {f"base_model.model.{more}": torch.ones(2, 2)}))
    if pooling == "pooler":
        with pytest.raises(UserError, match="adapts the pooler, which the heads of this model rea"):
            swap(model, "sst", folder)
        return
    with pytest.warns(UserWarning, match=f"left out base_model.model.{more}.*pooler_output is"):
        swap(model, "sst", folder)
    assert torch.equal(states(model.bert, "sst-swapped", IDS % 20),
                       states(model.bert, "a", IDS % 20))


@pytest.mark.parametrize("more", ["encoder.layer.0.intermediate.dense.weight",
                                  "embeddings.word_embeddings.weight"])
def test_weights_that_peft_trained_without_lora_are_refused(adapted, tmp_path, more):
    """peft's modules_to_save: without them the outputs would be wrong."""
    lora.save(adapted, "b", tmp_path / "b")
    folder = changed(tmp_path / "b", tmp_path / "c", tensors=lambda t: t.update(
        {f"base_model.model.bert.{more}": torch.ones(2, 2)}))
    with pytest.raises(UserError, match=f"no adapter here acts on: base_model.model.bert.{more}"):
        lora.load(adapted, folder)


def test_an_adapter_loads_on_no_other_base(adapted, tmp_path):
    lora.save(adapted, "b", tmp_path / "b")
    torch.manual_seed(5)
    with pytest.raises(UserError, match="trained on another base"):
        lora.load(Bert(BertConfig(**SMALL)), tmp_path / "b")

# what it costs

@pytest.fixture
def bert_base():
    with torch.device("meta"):
        return Bert(BertConfig())


def test_the_papers_counts_are_exact(bert_base):
    heads = 1_775_623            # of linear layers 768 → 768 → 5 and twice 1536 → 384 → 1
    targets = ("query", "key", "value", "attention_output")
    lora.attach(bert_base, targets, 15, ("sst", "para", "sts"))
    counts = count(bert_base, heads)
    assert counts == {"base": 109_482_240, "heads": 1_775_623, "incremental": 5_093_383,
                      "bundled": 114_575_623,
                      "adapters": dict.fromkeys(("sst", "para", "sts"), 1_105_920)}
    assert "adapter sts 1,105,920 4,423,680 1.01%" in " ".join(storage_table(counts).split())
    lora.detach(bert_base, "sst")
    lora.detach(bert_base, "para")
    assert count(bert_base, heads)["incremental"] == 2_881_543


def test_matrices_and_layernorms_are_counted_together(bert_base):
    lora.attach(bert_base, ("query", "key", "value"), 4, ("a",), layernorms=True)
    assert count(bert_base)["adapters"] == {"a": 259_584}


@pytest.mark.parametrize("rank", [4, 25])
def test_xs_costs_its_rank_squared_a_matrix(bert_base, rank):
    targets = ("query", "value", "attention_output", "fc_out")
    lora.attach(bert_base, targets, rank, ("a",), kind="xs")
    assert count(bert_base, 9) == {
        "base": 109_482_240, "heads": 9, "adapters": {"a": rank ** 2 * 48},
        "incremental": rank ** 2 * 48 + 9, "bundled": 109_482_240 + rank ** 2 * 48 + 9}

