"""LoRA: adapters act on their own rows, come and go without a trace, and are peft's files."""

import copy
import json
from contextlib import nullcontext

import pytest
import torch
from parity import PROBES, REFERENCE, real_texts
from safetensors.torch import load_file, save_file
from test_multitask import NoWaiting

import evaluate as evaluate_script
import laser
import lora
import train_multitask
from bert import Bert, BertConfig, Layout, Tokenizer, UserError
from bert.checkpoint import load_bert
from common.optimization import adamw, parameter_groups
from lora import binding as adapters  # noqa: I001
from lora.__main__ import main as merge_main
from lora.accounting import count, dense, table
from lora.files import base_checksum
from lora.layers import AdaptedLayerNorm
from lora.xs import singular_factors
from multitask import runs
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import load_dev, run_split
from multitask.model import build_model
from multitask.settings import Settings
from pruning.__main__ import main as prune_main

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 20, "initializer_range": 0.3}
ALL = tuple(lora.TARGETS)
MASK = (torch.arange(9) < torch.tensor([3, 9, 5, 1, 7, 2])[:, None]).long()
IDS = torch.randint(1, 60, MASK.shape, generator=torch.Generator().manual_seed(1)) * MASK
MIXED = [("a", 2), (None, 1), ("b", 3)]
ROWS = {"a": slice(0, 2), None: slice(2, 3), "b": slice(3, 6)}


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL)).eval()


def shake(bert, *names):
    """As after training: B and R no longer zero, LayerNorms no longer the pretrained ones."""
    for name in names:
        for parameter in lora.adapter_parameters(bert, name).values():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return bert


@pytest.fixture
def adapter_layers(bert):
    """Two adapters of other matrices and ranks, one with LayerNorms of its own."""
    lora.attach(bert, ALL, 4, ("a",), alpha=8, layernorms=True)
    lora.attach(bert, rank={(0, "query"): 2, (2, "fc_out"): 3}, adapters=("b",))
    return shake(bert, "a", "b")


def states(bert, name="active", ids=IDS, mask=MASK):
    """Last hidden states, all rows served by one adapter, or by the active one."""
    if name != "active":
        mask = Layout(mask).with_adapters([(name, len(ids))])
    return bert(ids, mask).last_hidden_state


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# what an adapter does

@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_lora_changes_nothing_at_the_start(bert, kind):
    before = states(bert)
    lora.attach(bert, ALL, 4, ("a",), layernorms=True, kind=kind)
    if kind == "lora":                                       # B = 0
        assert torch.equal(states(bert), before)
    else:                                                    # R = 1e-5 · noise
        close(states(bert), before, atol=1e-3)


def test_an_adapted_layer_is_the_formula(bert):
    query = bert.layers[0].attention.query
    shake(lora.attach(bert, ("query",), 2, alpha=6), "default")
    adapter, x = bert.layers[0].attention.query.adapters["default"], torch.randn(5, 32)
    delta = 6 / 2 * adapter.B @ adapter.A
    close(bert.layers[0].attention.query(x), x @ (query.weight + delta).T + query.bias)
    close(adapter.delta(), delta)
    assert adapter.A.shape == (2, 32) and adapter.B.shape == (32, 2)


def test_dropout_acts_on_the_adapter_in_training_only(bert):
    lora.attach(bert, ("query",), 4, dropout=0.5)
    shake(bert, "default")
    layer, x = bert.layers[0].attention.query, torch.randn(5, 32)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_a_factored_matrix_takes_no_adapter(bert):
    laser.apply(bert, laser.parse("0:fc_out:0.3"), factored=True)
    with pytest.raises(UserError, match="layers.0.ffn.fc_out is a Factored"):
        lora.attach(bert, ("fc_out",))
    lora.attach(bert, ("query",))


def test_rank_may_differ_by_layer_and_matrix(adapter_layers):
    shapes = {name: list(p.shape) for name, p in lora.adapter_parameters(adapter_layers, "b").items()}
    assert shapes == {"layers.0.attention.query.adapters.b.A": [2, 32],
                      "layers.0.attention.query.adapters.b.B": [32, 2],
                      "layers.2.ffn.fc_out.adapters.b.A": [3, 48],
                      "layers.2.ffn.fc_out.adapters.b.B": [32, 3]}


# one adapter a row

def test_each_sequence_of_a_mixed_batch_has_its_own_adapter(adapter_layers):
    mixed = adapter_layers(IDS, Layout(MASK).with_adapters(MIXED)).last_hidden_state
    for name, rows in ROWS.items():
        close(mixed[rows], states(adapter_layers, name)[rows])
    assert (states(adapter_layers, "a") - states(adapter_layers, "b")).abs().max() > 0.1


@pytest.mark.parametrize("dtype, outputs, gradients", [(torch.float64, 1e-9, 1e-9),
                                                       (torch.float32, 1e-5, 1e-4)])
@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_a_mixed_batch_trains_as_the_batches_of_each_adapter_do(bert, dtype, outputs, gradients,
                                                                kind):
    lora.attach(bert.to(dtype), ALL, 4, ("a", "b"), layernorms=True, kind=kind)
    shake(bert, "a", "b")
    weights = torch.randn(6, 32, dtype=dtype)

    def read(ids, mask, served):
        hidden, layout = bert.embed(ids, Layout(mask).with_adapters(served))
        return bert.encode(hidden, layout, output_rows=layout.cls_rows())          # [sequences, H] at [CLS]

    def run(vectors, weights):
        (vectors * weights).sum().backward()
        found = {name: p.grad for name, p in bert.named_parameters() if p.grad is not None}
        bert.zero_grad()
        return found

    together = read(IDS, MASK, MIXED)
    whole, apart = run(together, weights), {}
    for name, rows in ROWS.items():
        alone = read(IDS[rows], MASK[rows], [(name, len(IDS[rows]))])
        close(together[rows], alone, outputs)
        if name is not None:
            apart |= run(alone, weights[rows])
    assert whole.keys() == apart.keys() and {"a", "b"} <= {key.split(".")[-2] for key in whole}
    for key, gradient in whole.items():
        assert (gradient - apart[key]).norm() <= gradients * apart[key].norm(), key


def test_rows_in_any_order_are_sorted_by_adapter():
    order, served = lora.by_adapter(["b", "a", None, "b", "a", "b"])
    assert order == [0, 3, 5, 1, 4, 2] and served == [("b", 3), ("a", 2), (None, 1)]


def test_a_layout_keeps_its_adapters_wherever_it_goes():
    layout = Layout(MASK).with_adapters(MIXED)
    assert layout.served == [("a", 12), (None, 5), ("b", 10)]
    assert layout.cls_rows().served == MIXED                    # a row for each sequence
    assert layout.to("meta").served == layout.served and layout.to("meta").cell.is_meta
    with pytest.raises(UserError, match="5 sequences; the batch has 6"):
        Layout(MASK).with_adapters([("a", 5)])


# who trains

def test_frozen_weights_hold_no_gradient_and_nothing_below_the_first_adapter_is_run_back(bert):
    lora.attach(bert, rank={(1, "value"): 4}, adapters=("a",))
    hidden, layout = bert.embed(IDS, MASK)
    below = bert.layers[0](hidden, layout)
    assert not hidden.requires_grad and not below.requires_grad
    bert.encode(hidden, layout).sum().backward()
    having = {name for name, p in bert.named_parameters() if p.grad is not None}
    assert having == set(lora.adapter_parameters(bert, "a"))


@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_an_adapter_idle_in_a_step_is_untouched_by_the_optimizer(bert, kind):
    lora.attach(bert, ALL, 4, ("a", "b"), layernorms=True, kind=kind)
    shake(bert, "a", "b")
    optimizer = adamw(parameter_groups([(bert, {"max_lr": 1.0})], 0.1))
    for group in optimizer.param_groups:
        group["lr"] = 0.1

    def step(*names):
        before = copy.deepcopy(bert.state_dict())
        for name in names:
            (states(bert, name) ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {key for key, value in bert.state_dict().items()
                if not torch.equal(value, before[key])}

    step("a", "b")                                           # both now have momentum
    b = list(lora.adapter_parameters(bert, "b").values())
    kept = copy.deepcopy([optimizer.state[p] for p in b])
    assert step("a") <= set(lora.adapter_parameters(bert, "a"))
    assert str([optimizer.state[p] for p in b]) == str(kept)


def test_only_the_adapters_that_are_named_train(adapter_layers):
    lora.train_only(adapter_layers, ["b"])
    trained = {name for name, p in adapter_layers.named_parameters() if p.requires_grad}
    assert trained == set(lora.adapter_parameters(adapter_layers, "b"))
    lora.attach(adapter_layers, ("key",), 2, ("c",))                # adds one and leaves the others alone
    trained = {name for name, p in adapter_layers.named_parameters() if p.requires_grad}
    assert trained == {*lora.adapter_parameters(adapter_layers, "b"), *lora.adapter_parameters(adapter_layers, "c")}


# come and go

def test_adapters_come_and_go_without_touching_the_others(adapter_layers):
    a, b, base = (states(adapter_layers, name) for name in ("a", "b", None))
    lora.attach(adapter_layers, ALL, 8, ("c",), layernorms=True)
    shake(adapter_layers, "c")
    assert torch.equal(states(adapter_layers, "a"), a) and torch.equal(states(adapter_layers, "b"), b)
    lora.detach(adapter_layers, "a")
    assert torch.equal(states(adapter_layers, "b"), b) and lora.adapter_names(adapter_layers) == ["b", "c"]
    lora.detach(adapter_layers)
    assert torch.equal(states(adapter_layers), base) and lora.adapter_names(adapter_layers) == []
    assert {type(m).__name__ for m in adapter_layers.modules()}.isdisjoint({"LoRALinear", "AdaptedNorm"})
    assert all(parameter.requires_grad for parameter in adapter_layers.parameters())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_merging_is_explicit_the_same_thrice_as_once_and_undone_to_the_bit(bert, mode, kind):
    lora.attach(bert, ALL, 4, ("a", "b"), layernorms=True, kind=kind)
    shake(bert, "a", "b")
    before, expected = copy.deepcopy(bert.state_dict()), states(bert, "a")
    lora.merge(bert, "a")
    once = copy.deepcopy(bert.state_dict())
    close(states(bert), expected)
    getattr(bert, mode)()
    lora.merge(bert, "b")                                    # starts from W₀ again
    lora.merge(bert, "a")
    lora.merge(bert, "a")
    after = bert.state_dict()
    assert all(torch.equal(after[key], once[key]) for key in once)
    assert not torch.equal(once["layers.0.ffn.fc_in.base.weight"], before["layers.0.ffn.fc_in.base.weight"])
    lora.unmerge(bert)
    lora.unmerge(bert)
    assert all(torch.equal(bert.state_dict()[key], before[key]) for key in before)


def test_merge_and_detach_leave_a_plain_bert(adapter_layers, tmp_path):
    expected = states(adapter_layers, "a")
    lora.merge(adapter_layers, "a")
    lora.detach(adapter_layers)
    adapter_layers.save_pretrained(tmp_path)
    close(states(Bert.from_pretrained(tmp_path)), expected)


def test_a_merged_adapter_does_not_act_twice_nor_another_beside_it(adapter_layers):
    lora.merge(adapter_layers, "a")
    for wrong in (lambda: states(adapter_layers, "b"), lambda: states(adapter_layers, None),
                  lambda: lora.detach(adapter_layers, "a"), lambda: lora.attach(adapter_layers, adapters=("c",)),
                  lambda: base_checksum(adapter_layers)):
        with pytest.raises(UserError, match="unmerge first"):
            wrong()


@pytest.mark.parametrize("wrong, says", [
    (lambda bert: states(bert, "aa"), r"no adapter 'aa' \(did you mean a\?\); attached are: a, b"),
    (lambda bert: lora.activate(bert, "c"), "no adapter 'c'; attached are: a, b"),
    (lambda bert: lora.merge(bert, "c"), "attached are: a, b"),
    (lambda bert: lora.detach(bert, "c"), "attached are: a, b"),
    (lambda bert: lora.train_only(bert, ["c"]), "attached are: a, b"),
    (lambda bert: lora.save(bert, "c", "nowhere"), "attached are: a, b"),
    (lambda bert: lora.attach(bert, adapters=("a",)), "there is an adapter 'a' already"),
    (lambda bert: lora.attach(bert, adapters=("x.y",)), "cannot be called 'x.y'"),
    (lambda bert: lora.attach(bert, adapters=("items",)), "cannot be called 'items'"),
    (lambda bert: lora.attach(bert, adapters="c"), "lists of names"),
    (lambda bert: lora.attach(bert, ("quary",), adapters=("c",)),
     r"no target 'quary' \(did you mean query\?\); a layer has query, key, value, output"),
    (lambda bert: lora.attach(bert, (), adapters=("c",)), "nothing would be trained"),
    (lambda bert: lora.attach(bert, rank={(3, "key"): 1}, adapters=("c",)), "layers 0 to 2"),
    (lambda bert: lora.attach(bert, rank=0, adapters=("c",)), "the rank of query in layer 0 is 0"),
    (lambda bert: lora.attach(bert, dropout=1.0, adapters=("c",)), "dropout is 1.0"),
    (lambda bert: lora.attach(bert, rank=33, adapters=("c",), kind="xs"), "rank 33 is more"),
    (lambda bert: lora.attach(bert, adapters=("c",), kind="xs-uot"),
     r"no kind of adapter 'xs-uot' \(did you mean xs-out\?\); there are lora, xs, xs-out"),
])
def test_a_mistake_is_a_sentence_and_changes_nothing(adapter_layers, wrong, says):
    before = list(adapter_layers.state_dict())
    with pytest.raises(UserError, match=says):
        wrong(adapter_layers)
    assert list(adapter_layers.state_dict()) == before


# LoRA-XS

def test_xs_factors_are_the_closest_matrix_with_fixed_signs():
    torch.manual_seed(0)
    weight = torch.randn(20, 30)
    u, s, vh = torch.linalg.svd(weight)
    for sigma in ("in", "out"):
        a, b = singular_factors(weight, 5, sigma)
        close(b @ a, (u[:, :5] * s[:5]) @ vh[:5])
        assert (b.gather(0, b.abs().argmax(dim=0, keepdim=True)) > 0).all()
        close((a if sigma == "in" else b.T).norm(dim=1), s[:5])
        close((b.T if sigma == "in" else a).norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("kind", ["xs", "xs-out"])
def test_xs_stores_r_alone_and_is_rebuilt_exactly(bert, tmp_path, kind):
    shake(lora.attach(bert, ("query", "fc_out"), 4, ("a",), alpha=8, kind=kind), "a")
    trained = lora.adapter_parameters(bert, "a")
    assert [list(p.shape) for p in trained.values()] == [[4, 4]] * 6
    expected = states(bert)
    lora.save(bert, "a", tmp_path / "xs")
    stored = load_file(tmp_path / "xs" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == 6 * 4 * 4
    lora.detach(bert)
    lora.load(bert, tmp_path / "xs")
    assert torch.equal(states(bert), expected) and lora.adapter_names(bert) == ["xs"]


# files

def test_an_adapter_opens_again_with_all_that_belongs_to_it(adapter_layers, tmp_path):
    expected = {name: states(adapter_layers, name) for name in "ab"}
    for name in "ab":
        lora.save(adapter_layers, name, tmp_path / name)
    lora.detach(adapter_layers)
    for name in "ab":
        assert lora.load(adapter_layers, tmp_path / name) == name
        assert torch.equal(states(adapter_layers, name), expected[name])
    assert isinstance(adapter_layers.embedding_norm, AdaptedLayerNorm)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["rank_pattern"] == {"encoder.layer.2.output.dense": 3}


@pytest.mark.parametrize("name", ["peft", "ours"])
def test_adapters_give_the_outputs_that_peft_gives_on_transformers(real_weights, real_data, name):
    """Of peft's file and of ours, on real weights; see tests/make_reference.py."""
    bert = Bert.from_pretrained(real_weights)
    lora.load(bert, REFERENCE / "adapters" / name)
    batch = Tokenizer.from_pretrained(real_weights)(*real_texts(real_data)["single"])
    hidden = bert(**batch).last_hidden_state[batch["attention_mask"].bool()][:, ::PROBES]
    expected = load_file(REFERENCE / "adapters" / "expected.safetensors")
    close(hidden, expected[name])
    assert (expected["peft"] - expected["ours"]).abs().max() > 0.1


def test_what_peft_opened_is_what_is_written_today(real_weights, tmp_path):
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
    ({"config": {"peft_type": "IA3"}}, "of type 'IA3', and only LORA and LORA_XS are built"),
    ({"config": {"use_dora": True}}, "asks for use_dora, which is not built here"),
    ({"config": {"bias": "all"}}, "asks for trained biases"),
    ({"config": {"use_rslora": True, "r": 2.5}}, r"is damaged, or describes no adapter .*ranks"),
    ({"tensors": lambda t: t.pop(KEY)}, "for encoder.layer.0.attention.self.query it has"),
    ({"tensors": lambda t: t.update({KEY: torch.ones(2, 7)})}, r"'A': \[2, 7\]"),
    ({"tensors": lambda t: t.update({KEY.replace("r.0", "r.9"): torch.ones(2, 2)})},
     r"adapts what no adapter here acts on: .*layer.9.*; the model's 3 layers have attention.self"),
])
def test_a_file_that_does_not_fit_is_refused_by_name(adapter_layers, tmp_path, change, says):
    lora.save(adapter_layers, "b", tmp_path / "b")
    lora.detach(adapter_layers)
    names = list(adapter_layers.state_dict())
    with pytest.raises(UserError, match=says):
        lora.load(adapter_layers, changed(tmp_path / "b", tmp_path / "changed", **change))
    assert list(adapter_layers.state_dict()) == names


def test_what_is_not_the_encoders_is_left_out_with_a_note(adapter_layers, tmp_path):
    lora.save(adapter_layers, "b", tmp_path / "b")
    expected = states(adapter_layers, "b")
    folder = changed(tmp_path / "b", tmp_path / "c", tensors=lambda t: t.update(
        {"base_model.model.classifier.weight": torch.ones(2, 2)}))
    with pytest.warns(UserWarning, match="left out base_model.model.classifier.weight"):
        lora.load(adapter_layers, folder)
    assert torch.equal(states(adapter_layers, "c"), expected)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga",
                                  "PiSSA", "of-next-year"])
def test_an_initialisation_that_changes_the_base_is_refused_by_name(adapter_layers, tmp_path, init):
    lora.save(adapter_layers, "b", tmp_path / "b")
    folder = changed(tmp_path / "b", tmp_path / "c", {"init_lora_weights": init})
    with pytest.raises(UserError, match=f"init_lora_weights '{init}'.*_conversion.*merge_and_un"):
        lora.load(adapter_layers, folder)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal", "eva", "mica"])
def test_an_initialisation_that_leaves_the_base_as_it_is_opens(adapter_layers, tmp_path, init):
    lora.save(adapter_layers, "b", tmp_path / "b")
    lora.load(adapter_layers, changed(tmp_path / "b", tmp_path / "c", {"init_lora_weights": init}))
    assert torch.equal(states(adapter_layers, "c"), states(adapter_layers, "b"))


@pytest.mark.parametrize("peft_type", ["LOHA", "LOKR", "IA3", "VERA", "OFT", "PREFIX_TUNING"])
def test_an_adapter_of_another_kind_is_refused_for_what_it_is(bert, tmp_path, peft_type):
    """The files of other kinds have no lora_alpha: that is not what is wrong with them."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type, "r": 8}))
    save_file({"base_model.model.x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"of type '{peft_type}', and only LORA and LORA_XS"):
        lora.load(bert, tmp_path)


def test_xs_with_random_factors_is_refused(adapter_layers, tmp_path):
    lora.attach(adapter_layers, ("query",), 2, ("x",), kind="xs")
    lora.save(adapter_layers, "x", tmp_path / "x")
    folder = changed(tmp_path / "x", tmp_path / "y", {"init": "random"})
    with pytest.raises(UserError, match="'init': 'random'.*built here have .*'sigma': 'in'"):
        lora.load(adapter_layers, folder)


@pytest.mark.parametrize("more", ["pooler.dense.lora_A.weight", "bert.pooler.dense.weight"])
@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_an_adapter_of_the_pooler_is_left_out_unless_it_is_read(checkpoint, tmp_path, pooling,
                                                                more):
    model = build_model(Bert.from_pretrained(checkpoint), Settings(pooling=pooling))
    lora.attach(model.bert, ("query",), 2, ("a",))
    lora.save(shake(model.bert, "a"), "a", tmp_path / "a")
    folder = changed(tmp_path / "a", tmp_path / "b", tensors=lambda t: t.update(
        {f"base_model.model.{more}": torch.ones(2, 2)}))
    if pooling == "pooler":
        with pytest.raises(UserError, match="adapts the pooler, which the heads of this model rea"):
            adapters.swap(model, "sst", folder)
        return
    with pytest.warns(UserWarning, match=f"left out base_model.model.{more}.*pooler_output is"):
        adapters.swap(model, "sst", folder)
    assert torch.equal(states(model.bert, "sst-swapped", IDS % 20),
                       states(model.bert, "a", IDS % 20))


@pytest.mark.parametrize("more", ["encoder.layer.0.intermediate.dense.weight",
                                  "embeddings.word_embeddings.weight"])
def test_weights_trained_whole_are_refused(adapter_layers, tmp_path, more):
    """peft's modules_to_save: left out, the encoder would be another."""
    lora.save(adapter_layers, "b", tmp_path / "b")
    folder = changed(tmp_path / "b", tmp_path / "c", tensors=lambda t: t.update(
        {f"base_model.model.bert.{more}": torch.ones(2, 2)}))
    with pytest.raises(UserError, match=f"no adapter here acts on: base_model.model.bert.{more}"):
        lora.load(adapter_layers, folder)


def test_an_adapter_loads_on_no_other_base(adapter_layers, tmp_path):
    lora.save(adapter_layers, "b", tmp_path / "b")
    torch.manual_seed(5)
    with pytest.raises(UserError, match="trained on another base"):
        lora.load(Bert(BertConfig(**SMALL)), tmp_path / "b")


# what it costs

@pytest.fixture
def bert_base():
    with torch.device("meta"):
        return Bert(BertConfig())


def test_the_papers_counts_are_exact(bert_base):
    heads = dense(768, 768, 5) + 2 * dense(1536, 384, 1)
    assert heads == 1_775_623
    lora.attach(bert_base, ("query", "key", "value", "attention_output"), 15, ("sst", "para", "sts"))
    counts = count(bert_base, heads)
    assert counts == {"base": 109_482_240, "heads": 1_775_623, "incremental": 5_093_383,
                      "bundled": 114_575_623,
                      "adapters": dict.fromkeys(("sst", "para", "sts"), 1_105_920)}
    assert "adapter sts 1,105,920 4,423,680 1.01%" in " ".join(table(counts).split())
    lora.detach(bert_base, "sst")
    lora.detach(bert_base, "para")
    assert count(bert_base, heads)["incremental"] == 2_881_543


def test_low_rank_and_all_layernorms_are_counted_together(bert_base):
    lora.attach(bert_base, ("query", "key", "value"), 4, ("a",), layernorms=True)
    assert count(bert_base)["adapters"] == {"a": 259_584}


@pytest.mark.parametrize("rank", [4, 25])
def test_xs_costs_its_rank_squared_a_matrix(bert_base, rank):
    lora.attach(bert_base, ("query", "value", "attention_output", "fc_out"), rank, ("a",), kind="xs")
    assert count(bert_base, torch.nn.Linear(2, 3)) == {
        "base": 109_482_240, "heads": 9, "adapters": {"a": rank ** 2 * 48},
        "incremental": rank ** 2 * 48 + 9, "bundled": 109_482_240 + rank ** 2 * 48 + 9}


# in a run

TEXTS = [("the cat is good .", "a dog was bad ."), ("a film .", "the car is very fine ."),
         ("not dull .", "a book and a song"), ("a poor meal", "the house ?")]


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_one_pass_for_all_tasks_gives_what_a_pass_for_each_gives(checkpoint, pairs):
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    model = build_model(Bert.from_pretrained(checkpoint), Settings(pairs=pairs)).eval()
    adapters.attach(model, Settings(pairs=pairs, lora=4, adapters="sst=a,para=b,sts=a",
                                    lora_norms=True))
    shake(model.bert, "a", "b")
    batches = {task: tokenize([Example("", texts[:count], 1.0) for texts in TEXTS], tokenizer,
                              pairs).batch(range(4 - count))
               for task, count in (("sst", 1), ("para", 2), ("sts", 2))}
    together = adapters.mixed(model, batches, torch.device("cpu"))
    assert together.keys() == batches.keys()
    for task, outputs in together.items():
        close(outputs, model(task, batches[task]))


@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    """A run with two adapters, LayerNorms among them."""
    return train(tmp_path_factory.mktemp("runs") / "lora", checkpoint, data)


def train(folder, checkpoint, data, *more):
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(folder),
                          "--batch-size", "8", "--epochs", "2", "--lora", "2", "--lora-norms",
                          "--adapters", "sst=a,para=b,sts=b", *map(str, more)])
    return folder


GOES_ON = ("--lora", "2", "--lora-norms", "--adapters", "sst=a,para=b,sts=b")


def predictions(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_keeps_its_adapters_and_heads_and_opens_again(run, checkpoint, script):
    assert json.loads((run / "run.json").read_text())["edits"] == [
        {"kind": "lora", "adapters": {"sst": "a", "para": "b", "sts": "b"}}]
    names = {"adapter_config.json", "adapter_model.safetensors", "heads.safetensors"}
    for adapter, tasks in (("a", {"sst"}), ("b", {"para", "sts"})):
        folder = run / "adapters" / adapter
        assert {file.name for file in folder.iterdir()} == names
        assert {key.split(".")[0] for key in load_file(folder / "heads.safetensors")} == tasks
    base, saved = (Bert.from_pretrained(f).state_dict() for f in (checkpoint, run / "model"))
    assert all(torch.equal(base[key], saved[key]) for key in base)       # it is frozen
    code, out, _ = script(evaluate_script.main, run, "--json")
    assert code == 0 and json.loads(out) == json.loads((run / "metrics.json").read_text())


def test_one_tasks_adapter_is_swapped_and_the_others_answer_as_before(run, checkpoint, data, script,
                                                                      tmp_path):
    other = train(tmp_path / "other", checkpoint, data, "--seed", "7", "--lr", "0.1")
    before = predictions(run / "predictions")
    swap = f"sts={other / 'adapters' / 'b'}"
    code, out, err = script(evaluate_script.main, run, "--adapter", swap,
                            "--predictions", tmp_path / "p")
    assert code == 0 and "sts: the adapter in" in out and "and its head" in out, err
    after = predictions(tmp_path / "p")
    differ = {name for name in after if after[name] != before[name]}
    assert differ == {"sts-dev-output.csv"}
    assert after["sts-dev-output.csv"] == predictions(other / "predictions")["sts-dev-output.csv"]
    code, out, _ = script(evaluate_script.main, run, "--adapter", swap)
    assert code == 0 and "only to a --predictions FOLDER" in out
    assert predictions(run / "predictions") == before


@pytest.mark.parametrize("kind", ["lora", "xs-out"])
def test_a_merged_run_computes_the_same_and_can_be_pruned(checkpoint, data, script, tmp_path, kind):
    run = train(tmp_path / "run", checkpoint, data, "--lora-kind", kind, "--lora", "4")
    merged, pruned = tmp_path / "merged", tmp_path / "pruned"
    code, out, err = script(merge_main, "merge", run, "--task", "sts", "--out", merged)
    assert code == 0 and f"run: {merged}" in out, err
    before, tokenizer, settings, _ = runs.open_run(run)
    after, _, _, record = runs.open_run(merged)
    assert record["edits"] == [] and list(after.heads) == ["para", "sts"]     # b served both
    for task, splits in load_dev(after.heads, settings, tokenizer).items():
        close(run_split(after, task, splits["dev"], torch.device("cpu"), nullcontext),
              run_split(before, task, splits["dev"], torch.device("cpu"), nullcontext))
    code, _, err = script(prune_main, "prune", merged, "--remove", "0:1", "--out", pruned)
    assert code == 0, err
    assert runs.open_run(pruned)[3]["edits"] == [{"kind": "remove_heads", "heads": {"0": [1]}}]


@pytest.mark.parametrize("task, says", [
    ((), "has adapters for sst, para, sts, and an encoder can hold only one"),
    (("--task", "stss"), "no task 'stss' (did you mean sts?)"),
])
def test_a_merge_that_cannot_be_is_a_sentence(run, script, tmp_path, task, says):
    code, _, err = script(merge_main, "merge", run, "--out", tmp_path / "x", *task)
    assert code == 2 and says in err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("swap, says", [
    ("sts", "write task=folder"), ("cat=x", "the run has no task 'cat'; it has sst, para, sts"),
    ("sts={run}/adapters/a", "has no head for sts; it has one for sst"),
    ("sts=./nowhere", "is not a folder"), ("sst={run}/model", "holds no adapter_config.json"),
])
def test_a_wrong_swap_is_a_sentence(run, script, swap, says):
    code, _, err = script(evaluate_script.main, run, "--adapter", swap.format(run=run))
    assert code == 2 and says in err and "Traceback" not in err


def test_the_base_stays_frozen_where_adapters_go_on(run):
    settings = Settings(from_run=str(run), lora=2, adapters="sst=a,para=b,sts=b", lora_norms=True)
    model, _ = train_multitask.load_model(settings, torch.device("cpu"))
    assert all(".adapters." in name for name, p in model.bert.named_parameters() if p.requires_grad)


def test_one_adapter_is_updated_or_added_without_retraining_the_rest(run, data, script, tmp_path):
    code, out, err = script(train_multitask.main, "--from", run, "--data", data, "--lora", "2",
                            "--adapters", "sst=a,para=b,sts=c", "--train-tasks", "sts", "--steps", "2",
                            "--out", tmp_path / "more")
    assert code == 0 and "a: its adapter in the run" in out, err
    for adapter in "ab":
        file = f"adapters/{adapter}/adapter_model.safetensors"
        assert (tmp_path / "more" / file).read_bytes() == (run / file).read_bytes()
    assert {f.name for f in (tmp_path / "more" / "adapters").iterdir()} == {"a", "b", "c"}
    before = predictions(run / "predictions")
    after = predictions(tmp_path / "more" / "predictions")
    assert {name for name in after if after[name] != before[name]} == {"sts-dev-output.csv"}


def test_a_stopped_run_goes_on_to_the_same_bytes(checkpoint, data, script, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", checkpoint, data, "--lora-kind", "xs", "--save-every", "3")
    real, steps = torch.optim.AdamW.step, []

    def stopping(self, *arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", checkpoint, data, "--lora-kind", "xs", "--save-every", "3")
    monkeypatch.undo()
    assert script(train_multitask.main, "--resume", tmp_path / "part")[0] == 0
    for file in ("metrics.json", "heads.safetensors", "adapters/b/adapter_model.safetensors"):
        assert (tmp_path / "part" / file).read_bytes() == (whole / file).read_bytes()


def test_a_save_that_was_broken_off_is_noticed(run, tmp_path):
    import shutil
    folder = shutil.copytree(run, tmp_path / "broken")
    shutil.copy(folder / "adapters/a/adapter_model.safetensors",
                folder / "adapters/b/adapter_model.safetensors")
    with pytest.raises(UserError, match="stopped while it was saved"):
        runs.open_run(folder)


@pytest.mark.parametrize("flags, says", [
    (("--lora", "2", "--encoders", "separate"), "leave out --encoders separate"),
    (("--lora", "2", "--freeze"), "leave out --encoders separate and --freeze"),
    (("--lora", "2", "--adapters", "sst=a"), "task=adapter for each task (sst, para, sts)"),
    (("--lora", "2", "--lora-targets", "query,kye"), "no matrix 'kye' (did you mean key?)"),
    (("--lora", "2", "--surgery", "pcgrad"), "with one encoder, or with one adapter"),
    (("--lora", "33", "--lora-kind", "xs"), "rank 33 is more than a matrix of [32, 32] has"),
    (("--lora", "2", "--adapters", "shared", "--task-lr", "sst=1"), "share nothing"),
])
def test_settings_that_cannot_work_are_refused(checkpoint, data, script, tmp_path, flags, says):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--out", tmp_path / "run", *flags)
    assert code == 2 and says in err and not (tmp_path / "run").exists()


def test_a_runs_adapters_are_not_dropped_without_a_word(run, data, script, tmp_path):
    code, _, err = script(train_multitask.main, "--from", run, "--data", data,
                          "--out", tmp_path / "x")
    assert code == 2 and "the run has adapters (a, b), which only --lora goes on with" in err


@pytest.mark.parametrize("flags, says", [
    (("--lora", "16"), "--lora 16 --lora-norms"),
    (("--lora-kind", "xs"), "--lora 2 --lora-kind xs --lora-norms"),
    (("--lora-targets", "fc_in"), "--lora 2 --lora-targets fc_in --lora-norms"),
    (("--lora-top", "4"), "--lora 2 --lora-norms --lora-top 4"),
    (("--lora-alpha", "4"), "--lora 2 --lora-alpha 4.0 --lora-norms"),
    (("--lora-dropout", "0.5"), "--lora 2 --lora-dropout 0.5 --lora-norms"),
    (("--no-lora-norms",), "--lora 2"),
])
def test_an_adapter_goes_on_only_as_what_it_is(run, data, script, tmp_path, flags, says):
    code, _, err = script(train_multitask.main, "--from", run, "--data", data, "--steps", "1",
                          *GOES_ON, "--out", tmp_path / "x", *flags)
    assert code == 2 and not (tmp_path / "x").exists()
    assert (f"adapter a goes on as it is, which is --lora 2 --lora-norms, and the flags say {says};"
            in err)


@pytest.mark.parametrize("flags, wrong", [
    (("--lora-kind", "xs-out", "--lora-alpha", "8"), ("--lora-kind", "xs", "--lora-alpha", "8")),
    (("--lora-dropout", "0.1", "--lora-targets", "key,value"),
     ("--lora-dropout", "0.1", "--lora-targets", "key,value,query")),
    (("--lora-top", "4"), ()),
])
def test_an_adapter_goes_on_with_its_own_flags(checkpoint, data, script, tmp_path, flags, wrong):
    """The same targets in another order are its own flags too, and --lora-top measures nothing."""
    run = train(tmp_path / "run", checkpoint, data, "--steps", "1", *flags)
    again = [",".join(reversed(flag.split(","))) for flag in flags]
    for given, code in ((again, 0), (wrong, 2)):
        done, _, err = script(train_multitask.main, "--from", run, "--data", data, "--steps", "1",
                              *GOES_ON, "--out", tmp_path / f"code{code}", *given)
        assert done == code, err
    ranks = [[edit.get("ranks") for edit in runs.read_record(folder)[0]["edits"]]
             for folder in (run, tmp_path / "code0")]
    assert sorted(ranks[0][0] or ()) == sorted(ranks[1][0] or ())


@pytest.mark.parametrize("flags", [
    ("--lora-kind", "xs"), ("--lora-norms",), ("--adapters", "shared"), ("--lora-dropout", "0.1"),
    ("--lora-alpha", "8"), ("--lora-targets", "query"), ("--lora-top", "4"),
    ("--recipe", "lora-xs", "--lora", "0"),
])
def test_a_flag_of_adapters_without_lora_is_an_error(checkpoint, data, script, tmp_path, flags):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--out", tmp_path / "run", *flags)
    assert code == 2 and f"{flags[0]}: without --lora there are no" in err.replace(
        "--lora-targets, --lora-kind", "--recipe") and not (tmp_path / "run").exists()


def test_defaults_of_adapters_may_be_given_without_lora(checkpoint, data, script, tmp_path):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--out", tmp_path / "run", "--lora-kind", "lora", "--no-lora-norms",
                          "--lora-dropout", "0")
    assert code == 0, err


def test_a_merged_run_describes_no_adapters(run, script, tmp_path):
    assert script(merge_main, "merge", run, "--task", "sts", "--out", tmp_path / "merged")[0] == 0
    settings = runs.read_record(tmp_path / "merged")[1]
    settings.check_adapter_flags()
    assert (settings.lora, settings.adapters, settings.lora_norms) == (0, "separate", False)


@pytest.mark.parametrize("apart", [("--lora", "2"), ("--encoders", "separate")])
def test_a_task_that_is_not_learnt_is_kept_all_the_same(checkpoint, data, script, tmp_path, apart):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--train-tasks", "sst,sts", "--out", tmp_path / "run", *apart)
    assert code == 0, err
    assert set(runs.open_run(tmp_path / "run")[0].heads) == {"sst", "para", "sts"}


@pytest.mark.parametrize("surgery", ["pcgrad", "pcgrad-tensor"])
def test_gradient_surgery_works_on_an_adapter_that_tasks_share(checkpoint, data, tmp_path, surgery):
    folder = train(tmp_path / "run", checkpoint, data, "--surgery", surgery)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    cosines = next(line["cosine"] for line in lines if "cosine" in line)
    assert cosines["sst·para"] == 0 and cosines["para·sts"] != 0         # sst has its own adapter


def test_no_operation_of_a_step_with_adapters_waits_for_the_device(checkpoint):
    settings = Settings(lora=4, lora_norms=True)
    model = build_model(Bert.from_pretrained(checkpoint), settings).train()
    adapters.attach(model, settings)
    batch = tokenize([Example("", texts[:1], 1.0) for texts in TEXTS],
                     Tokenizer.from_pretrained(checkpoint)).batch(range(4))
    mixed = batch.layout.with_adapters([("sst", 1), ("para", 3)])
    with NoWaiting():
        model("sst", batch).sum().backward()
        model.bert.encode(model.bert.embed(batch.input_ids, mixed)[0], mixed).sum().backward()
    assert {name.split(".")[-2] for name, p in model.named_parameters()
            if p.grad is not None and "adapters" in name} == {"sst", "para"}


def test_learning_rates_of_adapters_and_heads_differ_and_r_does_not_decay(checkpoint):
    from multitask.schedule import default_lr, make_schedule, trained_modules
    for kind, decay in (("lora", 0.01), ("xs", 0.0)):
        settings = Settings(lora=4, lora_kind=kind, head_lr=0.5)
        model = build_model(Bert.from_pretrained(checkpoint), settings)
        adapters.attach(model, settings)
        schedule = make_schedule(settings, dict.fromkeys(settings.trained_tasks, 40), 1)
        parts = trained_modules(model, settings, schedule, default_lr(model, settings))
        groups = adamw(parameter_groups(parts, 0.01)).param_groups
        assert {group["max_lr"] for group in groups} == {0.5, default_lr(model, settings)}
        for group in groups:
            if group["max_lr"] != 0.5:
                assert group["weight_decay"] == decay
        assert sum(p.numel() for group in groups for p in group["params"]) == sum(
            p.numel() for p in model.parameters() if p.requires_grad)


def test_save_bert_sees_the_pretrained_modules_only(adapter_layers, tmp_path):
    base = states(adapter_layers, None)
    with lora.detached(adapter_layers):
        adapter_layers.save_pretrained(tmp_path)
    assert torch.equal(states(load_bert(Bert, tmp_path, "sdpa")), base)
    assert lora.adapter_names(adapter_layers) == ["a", "b"]
