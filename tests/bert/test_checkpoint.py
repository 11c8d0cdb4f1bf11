"""Checkpoints: every form is read, what does not fit is named, what is written opens elsewhere."""

import json

import pytest
import torch
from hub import hub_of, load_by_name
from parity import REFERENCE, tiny_batch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bert import Bert, BertConfig, UserError
from bert.checkpoint import pretraining_heads


def copy_of(folder, to, change=lambda weights: None, **config):
    """A copy of a checkpoint with changed weights or configuration."""
    to.mkdir(exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(fields))
    return to


def test_saved_model_opens_again_with_equal_outputs(tmp_path):
    bert = Bert.from_pretrained(REFERENCE / "gelu")
    assert bert.save_pretrained(str(tmp_path)) is None       # no bytes in a notebook
    again = Bert.from_pretrained(str(tmp_path))
    assert torch.equal(bert(**tiny_batch())[0], again(**tiny_batch())[0])


def test_saved_files_are_those_transformers_wrote(tmp_path):
    Bert.from_pretrained(REFERENCE / "gelu").save_pretrained(tmp_path)
    theirs, ours = (load_file(f / "model.safetensors") for f in (REFERENCE / "gelu", tmp_path))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    before, after = (json.loads((folder / "config.json").read_text())
                     for folder in (REFERENCE / "gelu", tmp_path))
    assert {name: after[name] for name in before} == before  # unknown fields are kept


def test_saved_real_model_opens_in_transformers(real_weights, tmp_path):
    transformers = pytest.importorskip("transformers")
    bert, batch = Bert.from_pretrained(real_weights), tiny_batch()
    bert.config.extra["torch_dtype"] = "float16"             # of the file it was read from
    bert.save_pretrained(tmp_path)
    theirs, ours = transformers.BertModel.from_pretrained(tmp_path).eval()(**batch), bert(**batch)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(theirs.last_hidden_state[mask], ours.last_hidden_state[mask],
                               atol=2e-5, rtol=0)
    torch.testing.assert_close(theirs.pooler_output, ours.pooler_output, atol=2e-5, rtol=0)


def test_pretraining_heads_are_readable_on_request():
    heads = pretraining_heads(REFERENCE / "one_wide_head")
    assert heads["cls.predictions.transform.LayerNorm.weight"].shape == (16,)    # was: gamma
    assert {"cls.predictions.bias", "cls.seq_relationship.weight"} < set(heads)
    assert pretraining_heads(REFERENCE / "gelu") == {}


def rename_one(old, new):
    return lambda weights: weights.update({new: weights.pop(old)})


@pytest.mark.parametrize("change, says", [
    (lambda w: w.pop("pooler.dense.bias"), "missing pooler.dense.bias"),
    (lambda w: w.update({"crf.weight": torch.ones(2)}), "unexpected crf.weight"),
    (rename_one("embeddings.LayerNorm.bias", "embeddings.LayerNorm.betas"),
     "missing embeddings.LayerNorm.bias"),
    (lambda w: w.update({"pooler.dense.bias": torch.ones(3)}),
     r"pooler.dense.bias \[3\] instead of \[16\]"),
    (lambda w: w.update({"embeddings.LayerNorm.gamma": torch.ones(16)}), "twice"),
    (lambda w: w.update({"my.gamma.rays": torch.ones(1)}), "unexpected my.gamma.rays"),
])
def test_what_does_not_fit_is_an_error_that_names_it(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        Bert.from_pretrained(copy_of(REFERENCE / "gelu", tmp_path, change))


def test_another_number_of_layers_is_named(tmp_path):
    query = "encoder.layer.2.attention.self.query.weight"
    with pytest.raises(UserError, match=f"missing {query}.* and 11 more"):
        Bert.from_pretrained(copy_of(REFERENCE / "gelu", tmp_path, num_hidden_layers=3))
    with pytest.raises(UserError, match="unexpected encoder.layer.1"):
        Bert.from_pretrained(copy_of(REFERENCE / "gelu", tmp_path, num_hidden_layers=1))


@pytest.mark.parametrize("field, value", [
    ("num_attention_heads", 5), ("hidden_act", "swish"), ("hidden_size", "16"),
    ("position_embedding_type", "relative_key"), ("model_type", "roberta"), ("is_decoder", True),
    ("num_hidden_layers", 0), ("hidden_dropout_prob", 1.5), ("layer_norm_eps", float("nan")),
    ("vocab_size", True),
])
def test_an_impossible_configuration_is_refused_by_name(tmp_path, field, value):
    with pytest.raises(UserError, match=f"config.json: {field}"):
        Bert.from_pretrained(copy_of(REFERENCE / "gelu", tmp_path, **{field: value}))


def test_half_precision_weights_are_read_as_fp32(tmp_path):
    def halve(weights):
        weights.update({name: tensor.half() for name, tensor in weights.items()})

    bert = Bert.from_pretrained(copy_of(REFERENCE / "gelu", tmp_path, halve))
    assert {p.dtype for p in bert.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
def test_the_configuration_names_the_dtype_that_the_file_holds(tmp_path, dtype):
    bert = Bert.from_pretrained(REFERENCE / "gelu").to(dtype)
    bert.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["dtype"] == str(dtype).removeprefix("torch.")
    bert.embedding_norm.float()                              # mixed: what holds all of it
    bert.save_pretrained(tmp_path)
    wide = torch.promote_types(dtype, torch.float32)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["dtype"] == str(wide).removeprefix("torch.")


def test_what_transformers_could_not_open_is_not_written(tmp_path):
    bert = Bert.from_pretrained(REFERENCE / "gelu")
    bert.layers[0].ffn.fc_in = torch.nn.Sequential(bert.layers[0].ffn.fc_in)
    with pytest.raises(UserError, match="missing encoder.layer.0.intermediate.dense.weight"):
        bert.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_loading_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    bert = Bert.from_pretrained(REFERENCE / "gelu")
    assert torch.equal(before, torch.get_rng_state())
    assert not bert.training and all(p.requires_grad for p in bert.parameters())


def test_a_new_model_starts_as_bert_does():
    torch.manual_seed(0)
    bert = Bert(BertConfig(vocab_size=500, hidden_size=64, num_attention_heads=4))
    assert abs(bert.word_embeddings.weight.std() - 0.02) < 0.001
    assert not bert.layers[0].ffn.fc_in.bias.any() and bert.embedding_norm.weight.eq(1).all()


@pytest.fixture(scope="module")
def hub(checkpoint):
    with hub_of(checkpoint) as address:
        yield address


def test_hub_model_is_fetched_once_and_then_opens_offline(hub, tmp_path):
    first = load_by_name("someone/small-bert", HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert first.stdout == "32 31\n", first.stderr
    offline = load_by_name("someone/small-bert", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path),
                           HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout == "32 31\n", offline.stderr


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}],
                         ids=["no such model", "offline"])
def test_hub_model_that_cannot_be_had_is_one_sentence(hub, tmp_path, environment):
    process = load_by_name("someone/smal-bert",
                           **{"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)} | environment)
    assert process.returncode == 1 and "'someone/smal-bert'" in process.stderr
    assert "Traceback" not in process.stderr and process.stderr.count("\n") == 1
