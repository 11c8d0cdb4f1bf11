"""Budgets, orders, ranks and costs, beside the paper's integers and torch's own counts."""

import pytest
import torch
from pruning_models import out
from torch.utils.flop_counter import FlopCounterMode

import lora
from bert import Bert, BertConfig, Layout, UserError
from lora import LoRALinear, adapters
from pruning import choose, multiply_adds, ranks_by_importance, remove_heads, remove_neurons
from pruning.cost import matrix_cost
from pruning.selection import left_after_rounds, parse_budget

NAN = torch.nan
SCORES = torch.tensor([[.9, .1, .5], [.2, NAN, .8]])


def test_each_order_removes_what_its_name_says():
    assert choose(SCORES, 3) == {0: [1], 1: [0]}
    assert choose(SCORES, 1) == {0: [1, 2], 1: [0, 2]}
    assert choose(SCORES, 3, "inverse") == {0: [0], 1: [2]}
    drawn = [choose(SCORES, 3, "random", seed=seed) for seed in range(20)]
    assert drawn[0] == choose(SCORES, 3, "random", seed=0)
    assert len({str(d) for d in drawn}) > 5
    large = torch.rand(6, 8)
    assert choose(large, 9, "random") == choose(large, 9, "random", seed=0)
    assert {sum(map(len, d.values())) for d in drawn} == {2}
    assert all(1 not in d.get(1, []) for d in drawn)         # it is gone already


def test_a_budget_for_each_layer_keeps_as_many_in_each():
    assert choose(SCORES, 2, per_layer=True) == {0: [1, 2], 1: [0]}
    assert choose(SCORES, 4, per_layer=True) == {0: [1]}     # layer 1 has two
    with pytest.raises(UserError, match="3 cannot be divided evenly among 2 layers; 2 or 4 can"):
        choose(SCORES, 3, per_layer=True)
    with pytest.raises(UserError, match="nothing would be removed"):
        choose(SCORES, 6, per_layer=True)


def test_rounds_remove_about_as_many_each():
    assert left_after_rounds(144, 100, 1) == [100]
    assert left_after_rounds(144, 100, 3) == [129, 115, 100]
    assert left_after_rounds(144, 96, 3, step=12) == [120, 108, 96]
    assert left_after_rounds(8, 6, 9) == [7, 6]              # a round that removes nothing is none


def test_a_budget_is_a_number_or_a_fraction():
    assert parse_budget("100", 144, "heads") == 100 and parse_budget("0.7", 144, "heads") == 101
    assert parse_budget("1", 144, "heads") == 1 and parse_budget("1.0", 144, "heads") == 144
    for text in ("0", "145", "1.1", "-3", "half", "0.001"):
        with pytest.raises(UserError, match="--heads"):
            parse_budget(text, 144, "heads")


def bert_base(**more):
    with torch.device("meta"):
        return Bert(BertConfig(**more))


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameters_are_the_papers_integers():
    bert, raw, norms = bert_base(), torch.rand(12, 12), 38_400
    three = ranks_by_importance(raw, high=4, matrices=("query", "key", "value"))
    varied = three | ranks_by_importance(raw, matrices=("query", "value"))
    lora.attach(bert, rank=three, adapters=("lora",), layernorms=True)
    lora.attach(bert, rank=varied, adapters=("prune",), layernorms=True)
    numbers = adapters.count(bert)
    assert numbers["base"] == 109_482_240
    assert numbers["adapters"] == {"lora": 259_584, "prune": 308_736}
    assert numbers["base"] + 259_584 - norms == 109_703_424
    lora.detach(bert)
    heads = {layer: list(range(4)) for layer in range(10)} | {10: [0, 5, 11]}
    remove_heads(bert, heads)                                # 43
    assert count(bert) == 109_482_240 - 43 * 196_800
    assert count(bert) + 308_736 - norms == 101_290_176      # adapters of the shapes before pruning
    assert count(bert_base(pruned_heads=heads)) == count(bert)


def test_adapters_of_pruned_matrices_are_smaller(bert):
    remove_heads(bert, {0: [0]})
    lora.attach(bert, rank={(0, "query"): 2, (0, "attention_output"): 3, (1, "key"): 2},
                adapters=("a",))
    size, base = 2 * (32 + 24) + 3 * (24 + 32) + 2 * 64, count(Bert(bert.config))
    assert adapters.count(bert) == {"base": base, "heads": 0, "adapters": {"a": size},
                                    "incremental": size, "bundled": base + size}
    assert adapters.count(bert, heads=10)["bundled"] == base + size + 10


def test_the_most_important_layers_get_the_higher_rank():
    raw = torch.tensor([[1., 9.], [2., 2.], [NAN, 8.], [NAN, NAN]])
    ranks = ranks_by_importance(raw, blocks=2, matrices=("query", "key"))
    assert ranks == {(0, "query"): 8, (0, "key"): 8, (1, "query"): 4, (1, "key"): 4,
                     (2, "query"): 8, (2, "key"): 8, (3, "query"): 4, (3, "key"): 4}


@pytest.mark.parametrize("output_rows", [None, [1, 1, 1]])
def test_multiply_adds_are_those_torch_counts(bert, output_rows):
    """On sequences of one length, where no grid holds padding."""
    remove_heads(bert, {0: [1, 2], 1: [0, 1, 2, 3]})
    remove_neurons(bert, {0: [5], 2: [0, 1]})
    bert.use_attention("eager")
    hidden, layout = bert.embed(torch.ones(3, 7, dtype=torch.long))
    with FlopCounterMode(display=False) as counter:
        cls = bert.encode(hidden, layout, output_rows=output_rows and layout.cls_rows())
        if output_rows:
            bert.pool(cls)
    pooler = 3 * matrix_cost(bert.pooler) if output_rows else 0
    assert multiply_adds(bert, [7, 7, 7], output_rows) + pooler == counter.get_total_flops() / 2


@pytest.mark.parametrize("kind", ["lora", "xs"])
def test_multiply_adds_are_those_of_the_adapter_that_serves(bert, kind):
    lora.attach(bert, ("query", "fc_in"), 4, ("a",), kind=kind)
    lora.attach(bert, ("value",), 2, ("b",), kind=kind)
    bert.use_attention("eager")
    for name in "ab":
        layout = Layout(torch.ones(3, 7)).with_adapters([(name, 3)])
        with FlopCounterMode(display=False) as counter:
            bert(torch.ones(3, 7, dtype=torch.long), layout)
        pooler = 3 * 32 * 32
        assert multiply_adds(bert, [7, 7, 7], adapter=name) + pooler == (
            counter.get_total_flops() / 2)


def test_multiply_adds_of_a_batch_are_the_sum_of_its_sequences(bert):
    for rows in (None, [1]):
        apart = [multiply_adds(bert, [length], rows) for length in (3, 9)]
        assert multiply_adds(bert, [3, 9], rows and 2 * rows) == sum(apart)


def test_the_cost_counts_the_rows_that_the_walk_computes(bert):
    """As of a model that computes [CLS] alone from its second layer on."""
    whole, cls = multiply_adds(bert, [5]), multiply_adds(bert, [5], [1])
    walk = bert.walk

    def shorter(output_rows=None, start=0):
        for number, layer, _ in walk(output_rows, start):
            yield number, layer, output_rows if number > 0 else None

    bert.walk = shorter
    assert whole - multiply_adds(bert, [5], [1]) == 2 * (whole - cls)


def test_a_matrix_without_heads_has_no_adapter(bert):
    remove_heads(bert, {1: [0, 1, 2, 3]})
    before = out(bert)
    lora.attach(bert, ("query", "attention_output", "fc_in"), rank=2)
    adapted = [name for name, module in bert.named_modules() if isinstance(module, LoRALinear)]
    assert [name.split(".")[1] for name in adapted if "fc_in" not in name] == ["0", "0", "2", "2"]
    assert torch.equal(out(bert), before)
