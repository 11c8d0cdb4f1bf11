"""Several LoRAs in one batch: lora/together.py's product is the plain loop over the adapters."""

import copy

import pytest
import torch
from lora_models import ALL, IDS, MASK, SMALL, close, perturb
from torch.utils._python_dispatch import TorchDispatchMode

import laser
import lora
from bert import Bert, BertConfig, Layout, UserError
from bert.linear import products_for
from bert.memory import KeptMemory
from lora import LoRALinear
from pruning import remove_heads

ATTENTION = ("query", "key", "value", "attention_output")
MIXED = [("a", 2), (None, 1), ("b", 2), ("c", 1)]
SEVERAL = [MIXED, [("c", 1), ("b", 4), ("a", 1)], [("a", 1), ("b", 1)] * 3, [("a", 2), (None, 4)],
           [("d", 2), ("a", 1), ("c", 2), ("b", 1)]]


def three_and_one(bert, targets=ATTENTION, **settings):
    """Adapters a, b, c and d of different ranks and alphas, d in fewer matrices."""
    for name, rank, alpha in (("a", 2, 6), ("b", 3, 3), ("c", 5, 1)):
        lora.attach(bert, targets, rank, (name,), alpha, **settings)
    lora.attach(bert, ("query", "value"), 4, ("d",), **settings)
    return perturb(bert, "a", "b", "c", "d")


def run(bert, adapters, few_rows=True):
    """→ outputs, and the gradients of all that trains and of the embeddings' output"""
    hidden, layout = bert.embed(IDS, Layout(MASK).with_adapters(adapters))
    hidden = hidden.detach().requires_grad_()
    out = bert.encode(hidden, layout, output_rows=layout.cls_rows() if few_rows else None)
    (out.double() * torch.sin(torch.arange(out.numel())).view(out.shape)).sum().backward()
    found = {name: p.grad for name, p in bert.named_parameters() if p.grad is not None}
    bert.zero_grad()
    return out.detach(), {"rows": hidden.grad} | found


def joined(bert, adapters, few_rows=False):
    """→ the names of the modules of each product of several adapters"""
    names = {module: name for name, module in bert.named_modules()}
    layout = Layout(MASK).with_adapters(adapters)
    layers = [(layer, few_rows) for layer in bert.layers]
    products = products_for(layers, layout, None, KeptMemory())
    return [[names[module] for module in group] for group in products]


def check_equals_the_loop(bert, adapters, monkeypatch, few_rows=True, atol=1e-9):
    if atol < 1e-6:                                # rounding adds up in three layers
        bert.double()
    out, gradients = run(bert, adapters, few_rows)
    with monkeypatch.context() as plain:
        plain.setattr(LoRALinear, "joins", staticmethod(lambda group, layout, dtype: False))
        expected, expected_gradients = run(bert, adapters, few_rows)
    close(out, expected, atol)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= atol * max(1, gradient.norm()), name
        assert gradients[name].stride() == gradient.stride()
    return gradients


@pytest.mark.parametrize("bf16", [False, True])
def test_several_adapters_train_beside_dropout(bf16, monkeypatch):
    def train():
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, bf16):
            return run(bert, MIXED)

    torch.manual_seed(0)
    bert = three_and_one(Bert(BertConfig(**SMALL)).train())
    (found, gradients), _ = train(), monkeypatch.setattr(
        LoRALinear, "joins", staticmethod(lambda *_: False))
    expected, _ = train()                                    # the same numbers are drawn
    assert (found - expected).norm() < (0.1 if bf16 else 1e-4) * expected.norm()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("few_rows", [True, False])
@pytest.mark.parametrize("adapters", SEVERAL)
def test_outputs_and_gradients_are_those_of_the_loop(bert, adapters, few_rows, monkeypatch):
    gradients = check_equals_the_loop(three_and_one(bert), adapters, monkeypatch, few_rows)
    named = {name.split(".")[-2] for name in gradients if ".adapters." in name}
    assert named == {name for name, _ in adapters} - {None}


@pytest.mark.parametrize("targets", [("query", "value"), ("key",), ("fc_in", "fc_out"), ALL])
def test_whichever_matrices_have_adapters(bert, targets, monkeypatch):
    check_equals_the_loop(three_and_one(bert, targets), MIXED, monkeypatch)


def test_query_key_and_value_are_one_product_where_their_ranks_agree(bert):
    three_and_one(bert)
    attention = "layers.0.attention."
    several = [attention + name for name in ("query", "key", "value")]
    assert joined(bert, MIXED)[:2] == [several, [attention + "output"]]
    assert joined(bert, MIXED, few_rows=True)[:2] == [several[:1], several[1:]]
    assert joined(bert, [("d", 3), (None, 3)])[0] == several         # query and value alone
    assert joined(bert, SEVERAL[-1])[:2] == [several[:1], several[1:2]]     # d is not in key


def test_ranks_may_differ_by_layer_and_matrix(bert, monkeypatch):
    """As importance → ranks makes them."""
    ranks = {(layer, matrix): 1 + (layer + number) % 4
             for layer in range(3) for number, matrix in enumerate(ATTENTION)}
    lora.attach(bert, rank=ranks, adapters=("a", "b", "c"))
    check_equals_the_loop(perturb(bert, "a", "b", "c"), MIXED, monkeypatch)
    assert [len(group) for group in joined(bert, MIXED)] == [1] * 12


def test_removed_heads(bert, monkeypatch):
    remove_heads(bert, {0: [1, 2], 1: [0, 1, 2, 3]})
    check_equals_the_loop(three_and_one(bert), MIXED, monkeypatch)
    assert {name.split(".")[1] for group in joined(bert, MIXED) for name in group} == {"0", "2"}


def test_own_layernorms_and_a_layer_cut(bert, monkeypatch):
    three_and_one(bert, layernorms=True)
    del bert.layers[1]
    check_equals_the_loop(bert, MIXED, monkeypatch)


def test_training_mode_without_the_adapters_dropout(monkeypatch):
    bert = three_and_one(Bert(BertConfig(**SMALL, hidden_dropout_prob=0.0,
                                         attention_probs_dropout_prob=0.0)).train())
    assert joined(bert, MIXED)
    check_equals_the_loop(bert, MIXED, monkeypatch)


@pytest.mark.parametrize("bf16, atol", [(False, 1e-5), (True, 2e-2)])
def test_in_fp32_and_under_bf16_autocast(bf16, atol, monkeypatch):
    bert = three_and_one(Bert(BertConfig(**SMALL | {"initializer_range": 0.1})).eval())
    for parameter in bert.layers.parameters():
        parameter.data *= 0.5
    with torch.autocast("cpu", torch.bfloat16, bf16):
        gradients = check_equals_the_loop(bert, MIXED, monkeypatch, atol=atol)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def test_inference_in_mixed_precision(bert):
    layout = Layout(MASK).with_adapters(MIXED)
    hidden, _ = three_and_one(bert).embed(IDS, layout)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = bert.encode(hidden, layout, states=(states := []))
        products = bert.with_products(layout, None, 0)[0].products
    close(states[0], bert.layers[0](hidden, layout), atol=0.1)
    assert found.isfinite().all() and len(products) == 4 * 3


def test_adapters_that_are_frozen_get_no_gradient(bert):
    three_and_one(bert)
    lora.adapters.train_only(bert, ["b"])
    assert {name.split(".")[-2] for name in run(bert, MIXED)[1] if name != "rows"} == {"b"}


def test_a_second_derivative_is_refused(bert):
    layout = Layout(MASK).with_adapters(MIXED)
    hidden = bert.embed(IDS, layout)[0].detach().requires_grad_()
    out = three_and_one(bert).encode(hidden, layout)
    first, = torch.autograd.grad(out.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# where the loop stays

@pytest.mark.parametrize("change", ["one adapter", "dropout", "xs", "base's hook", "adapter's hook",
                                    "own hook", "unfrozen", "patched", "another kind", "dense"])
def test_the_loop_stays_where_a_product_would_not_be_the_same(bert, change, monkeypatch):
    lora.attach(bert, ("query",), 2, ("a", "b"), dropout=0.5 * (change == "dropout"))
    if change == "xs":
        lora.attach(bert, ("query",), 2, ("c",), kind="xs")
    layer, adapters = bert.layers[0].attention.query, [("a", 3), ("b", 3)]
    assert change == "xs" or ["layers.0.attention.query", "layers.0.attention.key",
                              "layers.0.attention.value"] in joined(bert, adapters)
    if change == "one adapter":
        adapters = [("a", 6)]
    elif change == "xs":
        adapters = [("a", 3), ("c", 3)]
    elif change == "dropout":
        bert.train()
    elif change.endswith("hook"):
        hooked = {"base's hook": layer.base, "own hook": layer}.get(change, layer.adapters["b"])
        hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    elif change == "unfrozen":
        layer.base.weight.requires_grad_()
    elif change == "patched":
        monkeypatch.setattr(layer.base, "forward", lambda rows, layout: rows)
    elif change == "another kind":
        layer.adapters["b"].__class__ = type("Scaled", (lora.LoRA,), {})
    layout = Layout(MASK) if change != "dense" else bert.embed(IDS, MASK, dense=True)[1]
    layout = layout.with_adapters(adapters)
    assert not LoRALinear.joins((layer,), layout, None)
    assert bert.encode(*bert.embed(IDS, layout)).isfinite().all()


def test_a_hook_on_a_base_is_called_once_for_all_rows(bert):
    three_and_one(bert)
    seen = []
    bert.layers[0].attention.key.base.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0])))
    run(bert, MIXED)
    assert seen == [MASK.sum()]


def test_factored_matrices_beside_adapters(bert, monkeypatch):
    laser.apply(bert, laser.parse("0:key:0.3"), factored=True)
    for name, rank in (("a", 2), ("b", 3), ("c", 4)):
        lora.attach(bert, ("query", "value"), rank, (name,))
    check_equals_the_loop(perturb(bert, "a", "b", "c"), MIXED, monkeypatch)


def test_a_merged_adapter_is_refused_beside_another_and_serves_alone(bert):
    three_and_one(bert)
    expected, _ = run(bert, [("a", 3), ("a", 3)])
    lora.merge(bert, "a")
    close(run(bert, [("a", 3), ("a", 3)])[0], expected, atol=3e-5)           # sums of another order
    with pytest.raises(UserError, match="unmerge first"):
        run(bert, MIXED)


def test_layers_that_are_walked_one_by_one(bert):
    three_and_one(bert)
    hidden, layout = bert.embed(IDS, Layout(MASK).with_adapters(MIXED))
    expected = bert.encode(hidden, layout)
    for _, layer, _ in bert.walk():
        hidden = layer(hidden, layout)
    close(hidden, expected)


def test_inference_on_a_cpu_copies_no_weights(bert):
    layout = Layout(MASK).with_adapters(MIXED)
    with torch.no_grad():
        assert three_and_one(bert).with_products(layout, None, 0)[0].products == {}


# how many operations

class Operations(TorchDispatchMode):
    """Counts operations, without views, bare allocations and what has no kernel."""

    NONE = ("view", "aten.t.", "transpose", "detach", "unsqueeze", "expand", "alias", "aten.split",
            "permute", "squeeze", "slice", "select.int", "as_strided", "unbind", "empty",
            "lift_fresh")

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.total += not any(name in str(function) for name in self.NONE)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bf16", [False, True])
def test_three_adapters_take_at_most_1_3_times_the_operations_of_none(bf16):
    plain = Bert(BertConfig(**SMALL | {"num_hidden_layers": 12}))
    adapted = lora.attach(copy.deepcopy(plain), ATTENTION, 8, ("a", "b", "c"))
    counts = []
    for bert, adapters in ((plain, None), (adapted, [("a", 2), ("b", 2), ("c", 2)])):
        layout = Layout(MASK).with_adapters(adapters)
        few = layout.cls_rows()
        with torch.autocast("cpu", torch.bfloat16, bf16), Operations() as operations:
            bert.encode(*bert.embed(IDS, layout), output_rows=few)
        counts.append(operations.total)
    assert counts[1] <= 1.3 * counts[0], counts
