"""Adapters act on their own rows, are attached and detached without a trace, and merge."""

import copy

import pytest
import torch
from lora_models import ALL, IDS, MASK, SMALL, close, perturb, states
from safetensors.torch import load_file

import laser
import lora
from bert import Bert, BertConfig, Layout, UserError
from bert.checkpoint import load_bert
from common.optimization import adamw, parameter_groups
from lora.files import base_fingerprint
from lora.kinds import make_adapter
from lora.layers import AdapterLayer, singular_factors

MIXED = [("a", 2), (None, 1), ("b", 3)]
ROWS = {"a": slice(0, 2), None: slice(2, 3), "b": slice(3, 6)}


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
    perturb(lora.attach(bert, ("query",), 2, alpha=6), "default")
    adapter, x = bert.layers[0].attention.query.adapters["default"], torch.randn(5, 32)
    delta = 6 / 2 * adapter.B @ adapter.A
    close(bert.layers[0].attention.query(x), x @ (query.weight + delta).T + query.bias)
    close(adapter.delta(), delta)
    assert adapter.A.shape == (2, 32) and adapter.B.shape == (32, 2)


def test_a_starts_with_the_variance_of_one_over_its_inputs():
    weight = torch.zeros(4, 400, dtype=torch.float64)
    torch.manual_seed(0)
    a = make_adapter("lora", weight, 100, 1, 0.0).A
    assert a.shape == (100, 400) and a.dtype == weight.dtype
    assert float(a.detach().var()) * 400 == pytest.approx(1, rel=0.05)


def test_without_a_dropout_training_is_not_random(bert):
    lora.attach(bert)
    layer, x = perturb(bert, "default").layers[0].attention.query.train(), torch.randn(5, 32)
    assert layer.adapters["default"].rank == layer.adapters["default"].alpha == 8
    assert torch.equal(layer(x), layer(x))


def test_dropout_acts_on_the_adapter_in_training_only(bert):
    lora.attach(bert, ("query",), 4, dropout=0.5)
    perturb(bert, "default")
    layer, x = bert.layers[0].attention.query, torch.randn(5, 32)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_a_factored_matrix_takes_no_adapter(bert):
    laser.apply(bert, laser.parse("0:fc_out:0.3"), factored=True)
    with pytest.raises(UserError, match="layers.0.ffn.fc_out is a Factored"):
        lora.attach(bert, ("fc_out",))
    lora.attach(bert, ("query",))


def test_a_rank_may_be_as_large_as_the_largest_side_of_a_matrix(bert):
    lora.attach(bert, ("fc_in",), rank=48)
    assert bert.layers[0].ffn.fc_in.adapters["default"].B.shape == (48, 48)


def test_rank_may_differ_by_layer_and_matrix(adapted):
    shapes = {name: list(p.shape) for name, p in lora.adapter_parameters(adapted, "b").items()}
    assert shapes == {"layers.0.attention.query.adapters.b.A": [2, 32],
                      "layers.0.attention.query.adapters.b.B": [32, 2],
                      "layers.2.ffn.fc_out.adapters.b.A": [3, 48],
                      "layers.2.ffn.fc_out.adapters.b.B": [32, 3]}


@pytest.mark.parametrize("kind, size", [("lora", 4 * (32 + 48)), ("xs", 4 * (32 + 4 + 48))])
def test_multiply_adds_are_those_of_the_base_and_the_adapter_that_serves(bert, kind, size):
    lora.attach(bert, ("fc_in",), 4, ("a", "b"), layernorms=True, kind=kind)
    lora.attach(bert, ("query",), 2, ("c",))
    layer = bert.layers[0].ffn.fc_in
    assert layer.multiply_adds() == layer.multiply_adds("b") == 32 * 48 + size
    assert layer.multiply_adds("c") == 32 * 48
    assert bert.embedding_norm.multiply_adds("a") == 0
    lora.merge(bert, "a")
    assert layer.multiply_adds() == 32 * 48


def test_matrices_are_those_an_adapter_has_without_its_layernorms(adapted):
    assert list(lora.adapters.matrices(adapted, "b")) == [(0, "query"), (2, "fc_out")]
    a = lora.adapters.matrices(adapted, "a")
    assert set(a) == {(layer, matrix) for layer in range(3) for matrix in ALL}
    assert all(isinstance(module, lora.LoRA) for module in a.values())


# one adapter a row

def test_each_sequence_of_a_mixed_batch_has_its_own_adapter(adapted):
    mixed = adapted(IDS, Layout(MASK).with_adapters(MIXED)).last_hidden_state
    for name, rows in ROWS.items():
        close(mixed[rows], states(adapted, name)[rows])
    assert (states(adapted, "a") - states(adapted, "b")).abs().max() > 0.1


@pytest.mark.parametrize("dtype, outputs, gradients", [(torch.float64, 1e-9, 1e-9),
                                                       (torch.float32, 1e-5, 1e-4)])
@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_a_mixed_batch_trains_as_the_batches_of_each_adapter_do(bert, dtype, outputs, gradients,
                                                                kind):
    lora.attach(bert.to(dtype), ALL, 4, ("a", "b"), layernorms=True, kind=kind)
    perturb(bert, "a", "b")
    weights = torch.randn(6, 32, dtype=dtype)

    def read(ids, mask, served):
        hidden, layout = bert.embed(ids, Layout(mask).with_adapters(served))
        return bert.encode(hidden, layout, output_rows=layout.cls_rows())    # [sequences, H]

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


def test_selections_and_copies_of_a_layout_keep_its_adapters():
    layout = Layout(MASK).with_adapters(MIXED)
    assert layout.adapter_rows == [("a", 12), (None, 5), ("b", 10)]
    assert layout.cls_rows().adapter_rows == MIXED                    # a row for each sequence
    moved = layout.to("meta")
    assert moved.adapter_rows == layout.adapter_rows and moved.flat_index.is_meta
    with pytest.raises(UserError, match="for 5 of 6 sequences"):
        Layout(MASK).with_adapters([("a", 5)])


def test_without_the_active_adapter_the_base_serves_and_without_another_nothing_changes(adapted):
    base, a = states(adapted, None), states(adapted)
    lora.detach(adapted, "b")
    assert torch.equal(states(adapted), a)
    lora.attach(adapted, rank=1, adapters=("c",))
    lora.detach(adapted, "a")
    assert torch.equal(states(adapted), base)


# which parameters train

def test_frozen_weights_get_no_gradient_and_backward_stops_at_the_first_adapter(bert):
    lora.attach(bert, rank={(1, "value"): 4}, adapters=("a",))
    hidden, layout = bert.embed(IDS, MASK)
    below = bert.layers[0](hidden, layout)
    assert not hidden.requires_grad and not below.requires_grad
    bert.encode(hidden, layout).sum().backward()
    having = {name for name, p in bert.named_parameters() if p.grad is not None}
    assert having == set(lora.adapter_parameters(bert, "a"))


@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_the_optimizer_does_not_change_an_adapter_without_gradients(bert, kind):
    lora.attach(bert, ALL, 4, ("a", "b"), layernorms=True, kind=kind)
    perturb(bert, "a", "b")
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


def test_train_only_trains_the_named_adapters(adapted):
    lora.adapters.train_only(adapted, ["b"])
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == set(lora.adapter_parameters(adapted, "b"))
    lora.attach(adapted, ("key",), 2, ("c",))                # adds one and leaves the others alone
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {*lora.adapter_parameters(adapted, "b"),
                       *lora.adapter_parameters(adapted, "c")}


# attach, detach, merge

def test_attaching_and_detaching_leave_the_other_adapters_unchanged(adapted):
    a, b, base = (states(adapted, name) for name in ("a", "b", None))
    lora.attach(adapted, ALL, 8, ("c",), layernorms=True)
    perturb(adapted, "c")
    assert torch.equal(states(adapted, "a"), a) and torch.equal(states(adapted, "b"), b)
    lora.detach(adapted, "a")
    assert torch.equal(states(adapted, "b"), b) and lora.adapter_names(adapted) == ["b", "c"]
    lora.detach(adapted)
    assert torch.equal(states(adapted), base) and lora.adapter_names(adapted) == []
    assert not any(isinstance(module, AdapterLayer) for module in adapted.modules())
    assert all(parameter.requires_grad for parameter in adapted.parameters())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_merging_thrice_is_merging_once_and_is_undone_bit_for_bit(bert, mode, kind):
    lora.attach(bert, ALL, 4, ("a", "b"), layernorms=True, kind=kind)
    perturb(bert, "a", "b")
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
    weight = "layers.0.ffn.fc_in.base.weight"
    assert not torch.equal(once[weight], before[weight])
    lora.unmerge(bert)
    lora.unmerge(bert)
    assert all(torch.equal(bert.state_dict()[key], before[key]) for key in before)


def test_merge_and_detach_leave_a_plain_bert(adapted, tmp_path):
    expected = states(adapted, "a")
    lora.merge(adapted, "a")
    lora.detach(adapted)
    adapted.save_pretrained(tmp_path)
    close(states(Bert.from_pretrained(tmp_path)), expected, atol=3e-5)       # sums of another order


def test_detached_saves_the_pretrained_modules_only(adapted, tmp_path):
    base = states(adapted, None)
    with lora.adapters.detached(adapted):
        adapted.save_pretrained(tmp_path)
    assert torch.equal(states(load_bert(Bert, tmp_path, "sdpa")), base)
    assert lora.adapter_names(adapted) == ["a", "b"]


def test_no_adapter_acts_beside_a_merged_one(adapted):
    lora.merge(adapted, "a")
    for wrong in (lambda: states(adapted, "b"), lambda: states(adapted, None),
                  lambda: lora.detach(adapted, "a"), lambda: lora.attach(adapted, adapters=("c",)),
                  lambda: base_fingerprint(adapted)):
        with pytest.raises(UserError, match="unmerge first"):
            wrong()


@pytest.mark.parametrize("wrong, says", [
    (lambda bert: states(bert, "aa"), r"no adapter 'aa' \(did you mean a\?\); there are a, b"),
    (lambda bert: lora.adapters.activate(bert, "c"), "no adapter 'c'; there are a, b"),
    (lambda bert: lora.merge(bert, "c"), "there are a, b"),
    (lambda bert: lora.detach(bert, "c"), "there are a, b"),
    (lambda bert: lora.adapters.train_only(bert, ["c"]), "there are a, b"),
    (lambda bert: lora.save(bert, "c", "nowhere"), "there are a, b"),
    (lambda bert: lora.attach(bert, adapters=("a",)), "there is an adapter 'a' already"),
    (lambda bert: lora.attach(bert, adapters=()), "adapters is empty"),
    (lambda bert: lora.attach(bert, adapters=("x.y",)), "cannot be called 'x.y'"),
    (lambda bert: lora.attach(bert, adapters=("items",)), "cannot be called 'items'"),
    (lambda bert: lora.attach(bert, adapters="c"), "lists of names"),
    (lambda bert: lora.attach(bert, ("quary",), adapters=("c",)),
     r"no matrix 'quary' \(did you mean query\?\); there are fc_in, fc_out, query, key, value"),
    (lambda bert: lora.attach(bert, (), adapters=("c",)), "nothing would be trained"),
    (lambda bert: lora.attach(bert, rank={(3, "key"): 1}, adapters=("c",)), "layers 0 to 2"),
    (lambda bert: lora.attach(bert, rank=0, adapters=("c",)), "the rank of query in layer 0 is 0"),
    (lambda bert: lora.attach(bert, rank=2.5, adapters=("c",)), "in layer 0 is 2.5; choose 1"),
    (lambda bert: lora.attach(bert, rank=49, adapters=("c",)), "49 is more than any matrix"),
    (lambda bert: lora.attach(bert, dropout=1.0, adapters=("c",)), "dropout is 1.0"),
    (lambda bert: lora.attach(bert, rank=33, adapters=("c",), kind="xs"), "rank 33 is more"),
    (lambda bert: lora.attach(bert, adapters=("c",), kind="xs-uot"),
     r"no kind of adapter 'xs-uot' \(did you mean xs-out\?\); there are lora, xs, xs-out"),
])
def test_a_mistake_is_a_sentence_and_changes_nothing(adapted, wrong, says):
    before = list(adapted.state_dict())
    with pytest.raises(UserError, match=says):
        wrong(adapted)
    assert list(adapted.state_dict()) == before


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


def test_a_model_without_values_takes_xs_adapters_too():
    with torch.device("meta"):
        bert = Bert(BertConfig(**SMALL))
    lora.attach(bert, ("query",), 4, kind="xs")
    assert bert.layers[0].attention.query.adapters["default"].A.shape == (4, 32)


@pytest.mark.parametrize("kind", ["xs", "xs-out"])
def test_xs_stores_r_alone_and_is_rebuilt_exactly(bert, tmp_path, kind):
    perturb(lora.attach(bert, ("query", "fc_out"), 4, ("a",), alpha=8, kind=kind), "a")
    trained = lora.adapter_parameters(bert, "a")
    assert [list(p.shape) for p in trained.values()] == [[4, 4]] * 6
    expected = states(bert)
    lora.save(bert, "a", tmp_path / "xs")
    stored = load_file(tmp_path / "xs" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == 6 * 4 * 4
    lora.detach(bert)
    lora.load(bert, tmp_path / "xs")
    assert torch.equal(states(bert), expected) and lora.adapter_names(bert) == ["xs"]

