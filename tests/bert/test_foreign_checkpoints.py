"""Checkpoints as other code writes them: without a pooler, with a task's head, in shards, with
prefixes. Each opens with the numbers that transformers has."""

import json
import warnings

import pytest
import torch
from hub import hub_of, load_by_name
from parity import REFERENCE, tiny_batch
from safetensors.torch import load_file, save_file

import evaluate
import train_multitask
from bert import Bert, UserError
from bert.checkpoint import pretraining_heads
from pretraining.model import MaskedLM, save_checkpoint

GELU = REFERENCE / "gelu"


def opened(folder):
    """→ the model, and the texts of the warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bert = Bert.from_pretrained(folder)
    return bert, [str(warning.message) for warning in seen]


def write(folder, tensors, source=GELU):
    """A checkpoint of `tensors` in pytorch_model.bin, with the configuration of `source`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def write_shards(folder, tensors, kind="safetensors", source=GELU):
    """The same in two shards and their index → the index's path."""
    write(folder, {}, source)
    (folder / "pytorch_model.bin").unlink()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    save = save_file if kind == "safetensors" else torch.save
    where = {}
    for number in (1, 2):
        file, names = f"{stem}-0000{number}-of-00002.{kind}", sorted(tensors)[number - 1::2]
        save({name: tensors[name] for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


NO_POOLER, HEAD = "holds no pooler", "holds a task's head, "
WRITERS = {                                                  # class of transformers → the warnings
    "BertModel": (),
    "BertForPreTraining": (),
    "BertForMaskedLM": (NO_POOLER,),
    "BertForTokenClassification": (NO_POOLER, HEAD + "classifier.*"),
    "BertForQuestionAnswering": (NO_POOLER, HEAD + "qa_outputs.*"),
    "BertForSequenceClassification": (HEAD + "classifier.*",),
    "BertForMultipleChoice": (HEAD + "classifier.*",),
    "BertForNextSentencePrediction": (),
}


@pytest.mark.parametrize("shard", ["20KB", "1GB"], ids=["sharded", "whole"])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_transformers_writes_opens_with_its_numbers(writer, shard, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2,
                                     num_attention_heads=4, intermediate_size=48,
                                     initializer_range=0.3)
    theirs = getattr(transformers, writer)(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    bert, messages = opened(tmp_path)
    assert len(messages) == len(WRITERS[writer])
    assert all(text in message for text, message in zip(WRITERS[writer], messages))
    batch = tiny_batch()
    mask, encoder = batch["attention_mask"].bool(), getattr(theirs, "bert", theirs)
    expected, found = encoder(**batch), bert(**batch)
    torch.testing.assert_close(found[0][mask], expected[0][mask], atol=2e-5, rtol=0)
    assert (found.pooler_output is None) == (expected.pooler_output is None)
    if found.pooler_output is not None:
        torch.testing.assert_close(found[1], expected[1], atol=2e-5, rtol=0)


def prefixed(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


FORMS = {
    **{prefix: prefixed(prefix) for prefix in
       ("module.", "model.", "bert.", "model.bert.", "module.bert.", "module.model.bert.")},
    "state_dict": lambda tensors: {"epoch": 3, "state_dict": tensors, "args": {"lr": 0.1}},
    "state_dict with prefix": lambda tensors: {"state_dict": prefixed("model.")(tensors)},
}


@pytest.mark.parametrize("form", FORMS)
def test_prefixes_and_training_states_open_with_the_reference_outputs(form, tmp_path):
    tensors = load_file(GELU / "model.safetensors")
    bert, messages = opened(write(tmp_path, FORMS[form](tensors)))
    expected = load_file(GELU / "expected.safetensors")
    batch = tiny_batch(bert.config.type_vocab_size)
    found = bert(**batch)
    torch.testing.assert_close(found[0][batch["attention_mask"].bool()],
                               expected[f"hidden.{bert.config.num_hidden_layers}"],
                               atol=2e-5, rtol=0)
    torch.testing.assert_close(found.pooler_output, expected["pooler"], atol=2e-5, rtol=0)
    assert not messages


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_of_both_formats_open_as_the_whole_file(kind, tmp_path):
    write_shards(tmp_path, load_file(GELU / "model.safetensors"), kind)
    assert torch.equal(Bert.from_pretrained(tmp_path)(**tiny_batch())[0],
                       Bert.from_pretrained(GELU)(**tiny_batch())[0])


def remap(change):
    """Change the weight_map of an index."""
    def rewrite(index):
        values = json.loads(index.read_text())
        change(values["weight_map"])
        index.write_text(json.dumps(values))
    return rewrite


BIAS, FIRST = "pooler.dense.bias", "model-00001-of-00002.safetensors"
WRONG_SHARDS = {
    "a shard is missing": (lambda index: (index.parent / FIRST).unlink(), f"no {FIRST}"),
    "a shard is cut short": (lambda index: (index.parent / FIRST).write_bytes(b"\x09"), FIRST),
    "a tensor lies in the other shard": (
        remap(lambda where: where.update({name: FIRST for name in where})), "lacks", FIRST),
    "a tensor is not listed": (remap(lambda where: where.pop(BIAS)), f"holds {BIAS}", "no file"),
    "a tensor is only listed": (remap(lambda where: where.update(extra=FIRST)), "lacks extra"),
    "a file of the folder above": (remap(lambda where: where.update({BIAS: f"../{FIRST}"})),
                                   f"'../{FIRST}'", "same folder"),
    "a file with its whole path": (remap(lambda where: where.update({BIAS: "/etc/x.bin"})),
                                   "'/etc/x.bin'"),
    "a file with a backslash": (remap(lambda where: where.update({BIAS: "..\\x.bin"})), "same"),
    "another kind of file": (remap(lambda where: where.update({BIAS: "config.json"})),
                             "'config.json'"),
    "a file that is a number": (remap(lambda where: where.update({BIAS: 3})),
                                "is 3; it must be a text"),
    "no map": (lambda index: index.write_text("{}"), "weight_map"),
    "no JSON": (lambda index: index.write_text("{"), "not a JSON file"),
}


@pytest.mark.parametrize("case", WRONG_SHARDS)
def test_shards_that_do_not_fit_their_index_are_refused(case, tmp_path):
    spoil, *words = WRONG_SHARDS[case]
    spoil(write_shards(tmp_path, load_file(GELU / "model.safetensors")))
    with pytest.raises(UserError) as refusal:
        Bert.from_pretrained(tmp_path)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_come_from_the_hub(kind, checkpoint, tmp_path):
    served = tmp_path / "served"
    write_shards(served, load_file(checkpoint / "model.safetensors"), kind, source=checkpoint)
    (served / "vocab.txt").write_bytes((checkpoint / "vocab.txt").read_bytes())
    with hub_of(served) as address:
        place = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        fetched = load_by_name("someone/small-bert", **place)
        assert fetched.stdout == "32 31\n", fetched.stderr
    offline = load_by_name("someone/small-bert", HF_HUB_OFFLINE="1", **place)
    assert offline.stdout == "32 31\n", offline.stderr


# ---- without a pooler


@pytest.fixture
def without_pooler(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    folder = write(tmp_path / "bare", {name: tensor for name, tensor in tensors.items()
                                       if not name.startswith("pooler.")}, checkpoint)
    (folder / "vocab.txt").write_bytes((checkpoint / "vocab.txt").read_bytes())
    return folder


def test_a_new_pooler_is_an_error_only_where_it_is_read(without_pooler, checkpoint):
    before = torch.get_rng_state()
    bert, messages = opened(without_pooler)
    assert len(messages) == 1 and NO_POOLER in messages[0]
    assert torch.equal(before, torch.get_rng_state())        # loading draws no random numbers
    batch = {name: tensor % 2 for name, tensor in tiny_batch().items()}
    whole, found = Bert.from_pretrained(checkpoint)(**batch), bert(**batch)
    assert torch.equal(whole[0], found[0]) and found.pooler_output is None
    with pytest.raises(UserError, match="--pooling cls"):
        bert.pool(found[0][:, 0])
    assert abs(bert.pooler.weight.std() - bert.config.initializer_range) < 0.002
    bert.pooler_is_new = False                               # to be trained
    assert bert(**batch).pooler_output.shape == (4, 32)


def test_a_new_pooler_is_not_written(without_pooler, tmp_path):
    bert, _ = opened(without_pooler)
    bert.save_pretrained(tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert names and not any(name.startswith("pooler") for name in names)
    again, messages = opened(tmp_path / "saved")
    assert NO_POOLER in messages[0] and again.pooler_is_new
    assert all(map(torch.equal, bert.state_dict().values(), again.state_dict().values()))
    transformers = pytest.importorskip("transformers")
    batch = {name: tensor % 2 for name, tensor in tiny_batch().items()}
    theirs = transformers.BertModel.from_pretrained(tmp_path / "saved").eval()(**batch)
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(theirs[0][mask], again(**batch)[0][mask], atol=2e-5, rtol=0)


def test_pretraining_that_goes_on_writes_no_new_pooler(without_pooler, tmp_path):
    bert, _ = opened(without_pooler)
    save_checkpoint(tmp_path / "more", MaskedLM(bert), {})
    names = load_file(tmp_path / "more" / "model.safetensors").keys()
    assert names and not any("pooler" in name for name in names)


def test_a_run_without_a_pooler_opens_again_and_none_may_read_it(without_pooler, data, tmp_path,
                                                                 script):
    def train(read):
        return script(train_multitask.main, "--bert", without_pooler, "--data", data, "--tasks",
                      "sst", "--steps", 2, "--limit", 16, "--pooling", read, "--device", "cpu",
                      "--out", tmp_path / read)

    code, _, err = train("pooler")
    assert code == 2 and "holds no pooler" in err and "--pooling cls" in err
    assert not (tmp_path / "pooler").exists()
    assert train("cls")[0] == 0
    scores = json.loads((tmp_path / "cls" / "metrics.json").read_text())
    assert script(evaluate.main, tmp_path / "cls", "--data", data, "--device", "cpu")[0] == 0
    assert json.loads((tmp_path / "cls" / "metrics.json").read_text()) == scores
    saved = load_file(tmp_path / "cls" / "model" / "model.safetensors")
    assert not any(name.startswith("pooler") for name in saved)


def test_half_a_pooler_and_an_unknown_head_are_still_errors(tmp_path):
    tensors = load_file(GELU / "model.safetensors")
    with pytest.raises(UserError, match="unexpected regressor.weight"):
        Bert.from_pretrained(write(tmp_path, tensors | {"regressor.weight": torch.ones(1)}))
    del tensors["pooler.dense.bias"]
    with pytest.raises(UserError, match="missing pooler.dense.bias"):
        Bert.from_pretrained(write(tmp_path, tensors))


def test_a_task_head_is_no_pretraining_head(tmp_path):
    tensors = load_file(GELU / "model.safetensors")
    write(tmp_path, tensors | {"classifier.weight": torch.ones(1), "cls.x": torch.ones(1)})
    assert pretraining_heads(tmp_path).keys() == {"cls.x"}
