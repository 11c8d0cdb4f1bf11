"""Masks, importance and removal: equal to each other, to brute force, to the paper's integers."""

import copy
import csv
import itertools
import json
from dataclasses import replace

import pytest
import torch
from parity import tiny_batch
from torch.utils.flop_counter import FlopCounterMode

import evaluate
import lora
import train_multitask
from bert import Bert, BertConfig, Layout, Tokenizer, UserError
from common.optimization import adamw, parameter_groups
from lora import LoRALinear, accounting
from lora.targets import adapter_layers
from multitask import runs
from multitask.course import Example
from multitask.data import Batch, tokenize
from multitask.model import MultitaskModel, build_head
from multitask.tasks import TASKS
from pruning import __main__ as pruning
from pruning import (
    choose,
    importance,
    mask_heads,
    multiply_adds,
    normalize,
    ranks_by_importance,
    remove_heads,
    remove_layers,
    remove_neurons,
)
from pruning.gates import GATES
from pruning.measure import task_importance
from pruning.selection import parse_budget

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 20, "initializer_range": 0.3}
CPU = torch.device("cpu")
NAN = torch.nan


@pytest.fixture
def bert():
    torch.manual_seed(0)
    bert = Bert(BertConfig(**SMALL)).eval()
    for name, parameter in bert.named_parameters():
        if name.endswith("bias"):                            # else removing one could go unseen
            torch.nn.init.normal_(parameter, std=0.3)
    return bert


def out(bert, **more):
    result = bert(**tiny_batch(), **more)
    return torch.cat([result.last_hidden_state.flatten(), result.pooler_output.flatten()])


def mask_without(heads, layers=3):
    mask = torch.ones(layers, 4)
    for layer, off in heads.items():
        mask[layer, list(off)] = 0
    return mask


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


# ---- masks and removal

PATTERNS = [list(p) for n in range(1, 5) for p in itertools.combinations(range(4), n)]
MANY = [{0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [1, 2, 3]}, {0: [3], 1: [0, 1, 2, 3], 2: [0, 2]},
        {0: [0, 1, 2, 3], 2: [0, 1, 2, 3]}]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("heads", [{1: p} for p in PATTERNS] + [{2: p} for p in PATTERNS] + MANY,
                         ids=str)
def test_masked_heads_equal_removed_heads(bert, heads, attention, tmp_path):
    bert.use_attention(attention)
    masked, whole = out(bert, head_mask=mask_without(heads)), out(bert)
    remove_heads(bert, heads)
    same(out(bert), masked)
    assert (masked - whole).abs().max() > 1e-3
    bert.save_pretrained(tmp_path)
    assert torch.equal(out(Bert.from_pretrained(tmp_path, attention)), out(bert))


def test_the_last_layer_without_heads_still_reads_cls_alone(bert):
    batch = tiny_batch()
    remove_heads(bert, {2: [0, 1, 2, 3]})
    hidden, layout = bert.embed(**batch)
    same(bert.encode(hidden, layout, output_rows=layout.cls_rows()), bert(**batch).last_hidden_state[:, 0])


def test_a_layer_without_heads_attends_with_the_outputs_bias_alone(bert):
    attention = bert.layers[1].attention
    remove_heads(bert, {1: [0, 1, 2, 3]})
    layout = Layout(torch.ones(1, 5))
    assert torch.equal(attention(torch.randn(5, 32), layout), attention.output.bias.expand(5, 32))
    assert attention.query.weight.numel() == 0 and attention.output.weight.numel() == 0


def test_a_model_with_a_layer_without_heads_trains(bert):
    remove_heads(bert, {1: [0, 1, 2, 3], 0: [2]})
    optimizer = adamw(parameter_groups([(bert, {"max_lr": 1e-3})], 0.01))
    before = copy.deepcopy(bert.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    out(bert.train()).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in bert.state_dict().items()
               if not torch.equal(tensor, before[name])}
    assert {"layers.1.attention.output.bias", "layers.0.attention.query.weight"} <= changed
    assert all(p.isfinite().all() for p in bert.parameters())


def test_later_removals_use_the_heads_first_numbers(bert, tmp_path):
    masked = out(bert, head_mask=mask_without({0: [0, 2, 3], 2: [1]}))
    remove_heads(bert, {0: [0]})
    bert.save_pretrained(tmp_path)
    again = Bert.from_pretrained(tmp_path)
    remove_heads(again, {0: [3, 2], 2: [1]})
    same(out(again), masked)
    assert again.config.pruned_heads == {0: [0, 2, 3], 2: [1]}
    assert again.layers[0].attention.head_indices == [1]


def test_a_mask_of_a_pruned_model_counts_the_removed_heads_too(bert):
    masked = out(bert, head_mask=mask_without({0: [0, 2], 1: [1]}))
    remove_heads(bert, {0: [0], 1: [1]})
    same(out(bert, head_mask=mask_without({0: [2]})), masked)


def test_examples_of_a_batch_may_have_masks_of_their_own(bert):
    masks = torch.stack([mask_without({n % 3: [n]}) for n in range(4)])
    mixed = bert(**tiny_batch(), head_mask=masks).last_hidden_state
    for n, mask in enumerate(masks):
        same(mixed[n], bert(**tiny_batch(), head_mask=mask).last_hidden_state[n])


def test_a_mask_stays_with_the_model_until_its_heads_are_removed(bert, tmp_path):
    masked = out(bert, head_mask=mask_without({0: [1], 2: [3]}))
    mask_heads(bert, {0: [1]})
    mask_heads(bert, {2: [3]})
    same(out(bert), masked)
    same(out(bert, head_mask=mask_without({0: [1]})), masked)            # masks multiply
    bert.save_pretrained(tmp_path)
    opened = Bert.from_pretrained(tmp_path)
    same(out(opened), masked)
    remove_heads(opened, {0: [1], 2: [3]})
    assert opened.config.masked_heads == {}
    assert all(layer.attention.head_mask is None for layer in opened.layers)
    same(out(opened), masked)


def test_what_is_kept_keeps_its_numbers_and_whether_it_learns(bert):
    weight = bert.layers[0].attention.query.weight.detach().clone()
    bert.requires_grad_(False)
    remove_heads(bert, {0: [1]})
    left = bert.layers[0].attention.query
    assert torch.equal(left.weight, weight[[*range(8), *range(16, 32)]])
    assert not left.weight.requires_grad and left.out_features == 24


def test_removed_neurons_equal_neurons_that_give_nothing(bert, tmp_path):
    gone = {0: [3, 40], 2: list(range(48))}
    removed = copy.deepcopy(bert)
    with torch.no_grad():
        for layer, rows in gone.items():
            bert.layers[layer].ffn.fc_out.weight[:, rows] = 0
    remove_neurons(removed, gone)
    same(out(removed), out(bert))
    remove_neurons(removed, {0: [45]})                       # as they are now: 47 at first
    bert.layers[0].ffn.fc_out.weight.data[:, 47] = 0
    same(out(removed), out(bert))
    removed.save_pretrained(tmp_path)
    assert torch.equal(out(Bert.from_pretrained(tmp_path)), out(removed))


def test_a_walk_over_the_layers_gives_what_forward_gives_with_heads_off(bert):
    mask_heads(bert, {0: [1], 2: [3]})
    hidden, layout = bert.embed(**tiny_batch())
    for layer in bert.layers:
        hidden = layer(hidden, layout)
    assert torch.equal(layout.pad(hidden), bert(**tiny_batch()).last_hidden_state)


def test_a_removed_layer_is_skipped_and_later_ones_move_down(bert, tmp_path):
    remove_heads(bert, {0: [1], 2: [0, 3]})
    mask_heads(bert, {2: [1]})
    hidden, layout = bert.embed(**tiny_batch())
    expected = bert.layers[2](bert.layers[0](hidden, layout), layout)
    remove_layers(bert, [1])
    same(bert.encode(hidden, layout), expected)
    assert bert.config.pruned_heads == {0: [1], 1: [0, 3]} and bert.config.masked_heads == {1: [1]}
    bert.save_pretrained(tmp_path)
    assert torch.equal(out(Bert.from_pretrained(tmp_path)), out(bert))


def test_a_configuration_with_pruned_parts_is_written_and_read(bert):
    plain = bert.config.to_dict()
    assert not {"pruned_heads", "masked_heads", "pruned_neurons"} & set(plain)
    config = BertConfig(**SMALL, pruned_heads={2: [3, 0]}, masked_heads={1: [1]},
                        pruned_neurons={0: 40})
    again = BertConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict() and again.pruned_heads == {2: [0, 3]}
    assert again.remaining_heads(2) == [1, 2] and again.ffn_size(0) == 8
    assert BertConfig.from_dict(plain | {"pruned_heads": {}}).to_dict() == plain     # older files


# ---- importance

def batches_of(sizes, dtype=torch.float32):
    """Batches of these sizes, cut out of 12 ragged sequences with labels."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(9) < torch.randint(1, 10, (12, 1), generator=generator)
    ids = torch.randint(1, 60, mask.shape, generator=generator) * mask
    labels = torch.rand(12, generator=generator).to(dtype)
    for part in torch.arange(12).split(sizes):
        layout = Layout(mask[part])
        yield Batch(ids[part], torch.zeros_like(ids[part]), layout, layout.cls_rows(), labels[part])


def losses(bert, batch, head_mask=None):
    """[B] one loss an example, which reads every token."""
    hidden, layout = bert.embed(batch.input_ids, batch.layout, batch.token_type_ids)
    states = layout.pad(bert.encode(hidden, layout, head_mask))          # [B, T, H]
    return (states.sin().sum(dim=(1, 2)) - batch.labels) ** 2


def brute_force(bert):
    """One example at a time, one head mask, autograd through everything."""
    total, tokens = 0, 0
    for batch in batches_of([1] * 12, bert.pooler.weight.dtype):
        mask = torch.ones(3, 4, dtype=bert.pooler.weight.dtype, requires_grad=True)
        losses(bert, batch, mask).sum().backward()
        total, tokens = total + mask.grad.abs().double(), tokens + len(batch.layout)
    return total / tokens


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_importance_is_brute_force_for_any_batches(bert, dtype, within):
    bert = bert.to(dtype)
    expected = brute_force(bert)
    for sizes in ([12], [5, 4, 3], [1] * 12):
        batches = list(batches_of(sizes, dtype))
        for order in (batches, batches[::-1]):
            raw = importance(bert, order, lambda batch: losses(bert, batch).sum())
            torch.testing.assert_close(raw, expected, rtol=within, atol=within * expected.max())


def test_importance_of_the_sum_is_not_the_sum_of_importance(bert):
    """The |·| of a whole batch's gradient, which a shared mask would give, is another number."""
    mask = torch.ones(3, 4, requires_grad=True)
    batch = next(batches_of([12]))
    losses(bert, batch, mask).sum().backward()
    shared = mask.grad.abs() / len(batch.layout)
    raw = importance(bert, [batch], lambda batch: losses(bert, batch).sum())
    assert (shared < 0.9 * raw).any()


def test_importance_leaves_the_model_as_it_was(bert):
    bert.layers[0].requires_grad_(False)
    query_layout = {name: p.requires_grad for name, p in bert.named_parameters()}
    importance(bert, batches_of([12]), lambda batch: losses(bert, batch).sum())
    assert {name: p.requires_grad for name, p in bert.named_parameters()} == query_layout
    assert all(p.grad is None for p in bert.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in bert.modules())


def test_neuron_importance_is_brute_force(bert):
    """ξ of a neuron scales its column of fc_out: ∂L/∂ξ = Σᵢ Wᵢ · ∂L/∂Wᵢ."""
    bert = bert.double()
    total, tokens = torch.zeros(3, 48, dtype=torch.float64), 0
    for batch in batches_of([1] * 12, torch.float64):
        bert.zero_grad()
        losses(bert, batch).sum().backward()
        total += torch.stack([(layer.ffn.fc_out.weight * layer.ffn.fc_out.weight.grad).sum(0).abs()
                              for layer in bert.layers])
        tokens += len(batch.layout)
    raw = importance(bert, batches_of([7, 5], torch.float64),
                     lambda batch: losses(bert, batch).sum(), "neurons")
    torch.testing.assert_close(raw, total / tokens, rtol=1e-9, atol=0)


def test_a_layers_gate_at_zero_is_an_encoder_without_it(bert):
    batch = next(batches_of([12]))
    hook = GATES["layers"][0](bert.layers[1], torch.zeros(12, 1))
    gated = losses(bert, batch)
    hook.remove()
    remove_layers(bert, [1])
    same(losses(bert, batch), gated)


def test_layer_importance_is_the_losses_slope_in_the_gate(bert):
    bert = bert.double()
    step, slopes, tokens = 1e-5, torch.zeros(3, dtype=torch.float64), 0
    batch = next(batches_of([12], torch.float64))
    for number, layer in enumerate(bert.layers):
        segments = []
        for xi in (1 + step, 1 - step):
            hook = GATES["layers"][0](layer, torch.full((12, 1), xi, dtype=torch.float64))
            segments.append(losses(bert, batch))
            hook.remove()
        slopes[number] = ((segments[0] - segments[1]) / (2 * step)).abs().sum()
    tokens = len(batch.layout)
    raw = importance(bert, [batch], lambda b: losses(bert, b).sum(), "layers")
    torch.testing.assert_close(raw[:, 0].detach(), slopes.detach() / tokens, rtol=1e-6, atol=0)


def test_importance_of_a_pruned_model_has_no_number_for_what_is_gone(bert):
    kept = brute_force(bert)
    remove_heads(bert, {0: [0, 1, 2, 3], 1: [2]})
    raw = importance(bert, batches_of([12]), lambda batch: losses(bert, batch).sum())
    assert raw.isnan().tolist() == [[True] * 4, [False, False, True, False], [False] * 4]
    assert not torch.allclose(raw[2], kept[2])               # measured on the model as it is now


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_both_texts_of_a_pair_share_an_examples_gates(checkpoint, pairs):
    torch.manual_seed(0)
    bert, tokenizer = Bert.from_pretrained(checkpoint), Tokenizer.from_pretrained(checkpoint)
    model = MultitaskModel({"shared": bert}, {"para": build_head("para", "linear", 32, pairs, 0.0)},
                           pairs).eval().double()
    model.forward = lambda task, batch: model.heads[task](
        *model.vectors(task, batch).chunk(2 if pairs == "separate" else 1))
    texts = [("the cat is good .", "a dog"), ("film", "the film was not very dull ."), ("a", "the")]
    split = tokenize([Example(str(n), t, n % 2) for n, t in enumerate(texts)], tokenizer, pairs)
    split.labels = split.labels.double()
    raw = task_importance(model, "para", split, TASKS["para"].loss, CPU)
    total = tokens = 0
    for n in range(3):
        masks = [torch.ones(4, dtype=torch.float64, requires_grad=True) for _ in bert.layers]
        for layer, mask in zip(bert.layers, masks):
            layer.attention.head_mask = mask
        batch = split.batch([n])
        TASKS["para"].loss(model("para", batch), batch.labels).backward()
        gradients = torch.stack([mask.grad for mask in masks])
        total, tokens = total + gradients.abs(), tokens + len(batch.layout)
    torch.testing.assert_close(raw, total / tokens, rtol=1e-9, atol=0)


def test_normalised_importance_is_the_papers():
    raw = torch.tensor([[3., 4.], [30., 40.]])
    torch.testing.assert_close(normalize(raw, "layer"), torch.tensor([[0., 1.], [0., 1.]]))
    torch.testing.assert_close(normalize(raw, "global"), (raw - 3) / 37)
    gone = torch.tensor([[NAN, 4., 3.], [NAN, NAN, NAN]])
    torch.testing.assert_close(normalize(gone), torch.tensor([[NAN, 1., 0.], [NAN] * 3]),
                               equal_nan=True)


# ---- budgets, ranks, costs

SCORES = torch.tensor([[.9, .1, .5], [.2, NAN, .8]])


def test_each_order_removes_what_its_name_says():
    assert choose(SCORES, 3) == {0: [1], 1: [0]}
    assert choose(SCORES, 3, "inverse") == {0: [0], 1: [2]}
    drawn = [choose(SCORES, 3, "random", seed=seed) for seed in range(20)]
    assert drawn[0] == choose(SCORES, 3, "random", seed=0)
    assert len({str(d) for d in drawn}) > 5
    assert {sum(map(len, d.values())) for d in drawn} == {2}
    assert all(1 not in d.get(1, []) for d in drawn)         # it is gone already


def test_a_budget_for_each_layer_keeps_as_many_in_each():
    assert choose(SCORES, 2, per_layer=True) == {0: [1, 2], 1: [0]}
    assert choose(SCORES, 4, per_layer=True) == {0: [1]}     # layer 1 has but two
    with pytest.raises(UserError, match="3 cannot be divided evenly among 2 layers; 2 or 4 can"):
        choose(SCORES, 3, per_layer=True)


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
    numbers = accounting.count(bert)
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
    lora.attach(bert, rank={(0, "query"): 2, (0, "output"): 3, (1, "key"): 2}, adapters=("a",))
    assert accounting.count(bert)["adapters"]["a"] == 2 * (32 + 24) + 3 * (24 + 32) + 2 * 64


def test_the_most_important_layers_get_the_higher_rank():
    raw = torch.tensor([[1., 9.], [2., 2.], [NAN, 8.], [NAN, NAN]])
    ranks = ranks_by_importance(raw, blocks=2, matrices=("query", "output"))
    assert ranks == {(0, "query"): 8, (0, "output"): 8, (1, "query"): 4, (1, "output"): 4,
                     (2, "query"): 8, (2, "output"): 8, (3, "query"): 4, (3, "output"): 4}


@pytest.mark.parametrize("read", ["cls", "mean", "pooler"])
def test_multiply_adds_are_those_torch_counts(bert, read):
    """On sequences of one length, where no grid holds padding."""
    remove_heads(bert, {0: [1, 2], 1: [0, 1, 2, 3]})
    remove_neurons(bert, {0: [5], 2: [0, 1]})
    bert.use_attention("eager")
    hidden, layout = bert.embed(torch.ones(3, 7, dtype=torch.long))
    with FlopCounterMode(display=False) as counter:
        first = bert.encode(hidden, layout, output_rows=None if read == "mean" else layout.cls_rows())
        if read == "pooler":
            bert.pool(first)
    assert multiply_adds(bert, [7, 7, 7], read) == counter.get_total_flops() / 2


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
        assert multiply_adds(bert, [7, 7, 7], "mean", name) + pooler == (
            counter.get_total_flops() / 2)


def test_multiply_adds_of_a_batch_are_the_sum_of_its_sequences(bert):
    assert multiply_adds(bert, [3, 9]) == multiply_adds(bert, [3]) + multiply_adds(bert, [9])


# ---- mistakes

MISTAKES = {
    "a layer that is not there": (lambda b: remove_heads(b, {3: [0]}), "no layer 3", "0 to 2"),
    "a head that is not there": (lambda b: remove_heads(b, {1: [4]}), "no head 4", "0 to 3"),
    "a head that is gone": (lambda b: [remove_heads(b, {1: [2]}) for _ in "ab"], "removed already"),
    "no head": (lambda b: remove_heads(b, {}), "no head is named"),
    "all heads": (lambda b: remove_heads(b, dict.fromkeys(range(3), range(4))), "all heads"),
    "all masked": (lambda b: mask_heads(b, dict.fromkeys(range(3), range(4))), "all heads"),
    "a neuron that is not there": (lambda b: remove_neurons(b, {0: [48]}), "neurons 0 to 47"),
    "a neuron twice": (lambda b: remove_neurons(b, {0: [1, 1]}), "twice"),
    "no neuron": (lambda b: remove_neurons(b, {0: []}), "no neuron"),
    "all layers": (lambda b: remove_layers(b, [0, 1, 2]), "all of the 3 layers"),
    "no layer": (lambda b: remove_layers(b, []), "none of the 3 layers"),
    "a layer outside": (lambda b: remove_layers(b, [-1]), "no layer -1"),
    "no head by layers": (lambda b: [remove_heads(b, dict.fromkeys(range(2), range(4))),
                                     remove_layers(b, [2])], "tokens could no longer meet"),
    "only heads that are off": (lambda b: [mask_heads(b, {0: [0]}), remove_heads(
        b, {0: [1, 2, 3], 1: range(4), 2: range(4)})], "removed or switched off"),
    "a mask of words": (lambda b: out(b, head_mask="all"), "a tensor of numbers"),
    "another order": (lambda b: choose(torch.rand(3, 4), 3, "best"), "order 'best' is unknown"),
    "another kind": (lambda b: importance(b, [], None, "head"), "no kind of part 'head'"),
    "a mask too short": (lambda b: out(b, head_mask=torch.ones(2, 4)), "3 layers, 4 heads"),
    "a mask without layers": (lambda b: out(b, head_mask=torch.ones(4)), "3 layers, 4 heads"),
    "masks of another batch": (lambda b: out(b, head_mask=torch.ones(3, 3, 4)), "4 in the batch"),
    "no example": (lambda b: importance(b, [], None), "at least one example"),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_an_impossible_removal_is_a_sentence(bert, case):
    act, *words = case
    with pytest.raises(UserError) as error:
        act(bert)
    assert all(word in str(error.value) for word in words), error.value


def test_a_refused_removal_changes_nothing(bert):
    before, config = copy.deepcopy(bert.state_dict()), copy.deepcopy(bert.config)
    for heads in ({0: [1], 9: [0]}, {0: [1], 1: [7]}, dict.fromkeys(range(3), range(4))):
        with pytest.raises(UserError):
            remove_heads(bert, heads)
    assert bert.config == config and bert.edits == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())


def test_what_is_no_plain_matrix_is_not_cut(bert):
    class AdapterLayer(torch.nn.Module):
        pass

    bert.layers[0].attention.query = bert.layers[0].ffn.fc_in = AdapterLayer()
    for act in (lambda: remove_heads(bert, {0: [1]}), lambda: remove_neurons(bert, {0: [1]})):
        with pytest.raises(UserError, match="is a Adapted, not a plain matrix"):
            act()


def test_layers_stay_where_another_edit_knows_them_by_number(bert):
    bert.edits = [{"kind": "factor"}]
    with pytest.raises(UserError, match="after factor"):
        remove_layers(bert, [0])


@pytest.mark.parametrize("fields", [
    {"pruned_heads": {3: [0]}}, {"pruned_heads": {0: [4]}}, {"pruned_heads": {0: 1}},
    {"pruned_heads": [0]}, {"masked_heads": {"x": [0]}}, {"pruned_neurons": {0: 49}},
    {"pruned_neurons": {0: [1]}}])
def test_an_impossible_configuration_is_a_sentence(fields):
    with pytest.raises(UserError, match=f"{next(iter(fields))} is .*; it must give layers"):
        BertConfig(**SMALL, **fields)


# ---- runs

@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruning") / "first"
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(folder),
                          "--batch-size", "8", "--steps", "4", "--lr", "1e-3",
                          "--tasks", "sst,para"])
    return folder


def test_importance_of_a_run_is_a_table_and_a_picture(run, script, tmp_path):
    code, text, _ = script(pruning.main, "importance", run, "--examples", 8, "--out", tmp_path)
    assert code == 0 and "layers whose heads matter most" in text
    with open(tmp_path / "heads.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["sst"] * 8 + ["para"] * 8 + ["sum"] * 8
    for task in ("sst", "para", "sum"):
        values = [float(row["importance"]) for row in rows if row["task"] == task]
        assert min(values) == 0 and max(values) == 1
    assert all(float(row["raw"]) > 0 for row in rows if row["task"] != "sum")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["neurons", "layers"])
def test_neurons_and_layers_have_importance_too(run, script, tmp_path, kind):
    code, *_ = script(pruning.main, "importance", run, "--of", kind, "--examples", 4, "--tasks",
                      "para", "--out", tmp_path)
    lines = (tmp_path / f"{kind}.csv").read_text().splitlines()
    assert code == 0 and len(lines) == 1 + {"neurons": 128, "layers": 2}[kind]


def pruned(script, run, to, *flags):
    code, text, errors = script(pruning.main, "prune", run, "--out", to, "--examples", 8, *flags)
    assert code == 0, errors
    return json.loads((to / "run.json").read_text()), runs.open_run(to)[0].bert, text


def test_a_pruned_run_opens_scores_and_trains_on(run, script, data, tmp_path):
    record, bert, text = pruned(script, run, tmp_path / "small", "--heads", "5")
    assert sum(layer.attention.num_heads for layer in bert.layers) == 5
    assert [edit["kind"] for edit in record["edits"]] == ["remove_heads"]
    assert json.loads((tmp_path / "small" / "model" / "config.json").read_text())["pruned_heads"]
    code, scores, _ = script(evaluate.main, tmp_path / "small", "--json")
    assert code == 0
    assert json.loads(scores) == json.loads((tmp_path / "small" / "metrics.json").read_text())
    code, *_ = script(train_multitask.main, "--from", tmp_path / "small", "--data", data, "--tasks",
                      "sst,para", "--steps", "1", "--out", tmp_path / "on")
    on = runs.open_run(tmp_path / "on")[0].bert
    assert code == 0 and on.config.pruned_heads == bert.config.pruned_heads
    assert on.edits == record["edits"]
    record, again, _ = pruned(script, tmp_path / "on", tmp_path / "smaller", "--heads", "2")
    assert sum(layer.attention.num_heads for layer in again.layers) == 2 and len(record["edits"]) == 2


def test_a_masked_run_scores_as_the_pruned_one(run, script, tmp_path):
    _, small, _ = pruned(script, run, tmp_path / "small", "--heads", "0.5")
    record, masked, _ = pruned(script, run, tmp_path / "masked", "--heads", "0.5", "--mask")
    assert masked.config.masked_heads == small.config.pruned_heads
    assert masked.layers[0].attention.num_heads == 4 and record["edits"][0]["kind"] == "mask_heads"
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())
              for name in ("small", "masked")]
    assert scores[0] == scores[1]
    _, fewer, _ = pruned(script, tmp_path / "masked", tmp_path / "fewer", "--heads", "3", "--mask")
    assert sum(map(len, fewer.config.masked_heads.values())) == 5


def test_rounds_measure_anew(run, script, tmp_path):
    record, bert, text = pruned(script, run, tmp_path / "small", "--heads", "2", "--rounds", "3")
    assert text.splitlines()[:3] == [f"{n} of 8 heads are left" for n in (6, 4, 2)]
    assert len(record["edits"]) == 3 and sum(la.attention.num_heads for la in bert.layers) == 2


@pytest.mark.parametrize(("flags", "heads", "neurons", "layers"), [
    (("--neurons", "0.5"), 8, 64, 2), (("--layers", "1"), 4, 64, 1),
    (("--heads", "4", "--per-layer", "--order", "random"), 4, 128, 2),
    (("--heads", "2", "--per-layer", "--rounds", "9"), 2, 128, 2),
    (("--remove", "0:1,3", "--remove", "1:0"), 5, 128, 2), (("--remove", "1"), 4, 64, 1)])
def test_every_kind_of_budget_is_met(run, script, tmp_path, flags, heads, neurons, layers):
    _, bert, _ = pruned(script, run, tmp_path / "small", *flags)
    assert sum(layer.attention.num_heads for layer in bert.layers) == heads
    assert sum(layer.ffn.fc_in.out_features for layer in bert.layers) == neurons
    assert len(bert.layers) == layers


REFUSED = {
    "no command": (("prone",), "did you mean prune?"),
    "no budget": (("prune", "RUN"), "--heads", "required"),
    "two budgets": (("prune", "RUN", "--heads", "2", "--layers", "1"), "not allowed with"),
    "all heads kept": (("prune", "RUN", "--heads", "8"), "nothing would be removed"),
    "no head kept": (("prune", "RUN", "--heads", "0"), "--heads 0", "1 to 8"),
    "uneven": (("prune", "RUN", "--heads", "3", "--per-layer"), "2 or 4 can"),
    "masked layers": (("prune", "RUN", "--layers", "1", "--mask"), "--mask"),
    "a layer outside": (("prune", "RUN", "--remove", "7:0"), "no layer 7"),
    "a head outside": (("prune", "RUN", "--remove", "0:9"), "no head 9"),
    "all heads": (("prune", "RUN", "--remove", "0:0,1,2,3", "--remove", "1:0,1,2,3"), "all heads"),
    "a layer masked": (("prune", "RUN", "--remove", "1", "--mask"), "is a layer"),
    "an order for what is named": (("prune", "RUN", "--remove", "1", "--order", "random"),
                                   "--remove says what goes"),
    "no number": (("prune", "RUN", "--remove", "a:b"), "--remove 'a:b'"),
    "task unknown": (("importance", "RUN", "--tasks", "sts"), "no task 'sts'", "sst, para"),
    "no run": (("importance", "nowhere"), "nowhere", "run.json"),
    "negative examples": (("importance", "RUN", "--examples", "-1"), "--examples"),
    "a typo": (("importance", "RUN", "--example", "3"), "did you mean --examples?"),
    "in its own place": (("prune", "RUN", "--heads", "2", "--out", "RUN", "--overwrite"),
                         "would be replaced"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_a_sentence_and_leaves_no_run(run, script, tmp_path, case):
    given, *words = case
    arguments = [str(run) if a == "RUN" else a for a in given]
    if given[0] == "prune" and "--out" not in given:
        arguments += ["--out", tmp_path / "new"]
    before = (run / "run.json").read_bytes()
    code, _, errors = script(pruning.main, *arguments)
    assert code == 2 and errors.splitlines()[-1].count("error: ") == 1
    assert all(word in errors for word in words), errors
    assert not (tmp_path / "new").exists() and (run / "run.json").read_bytes() == before


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
    assert [edit["kind"] for edit in bert.edits] == ["remove_heads", "lora"]
    ranks = {place: module.adapters["sst"].rank for place, module in adapter_layers(bert).items()
             if isinstance(module, LoRALinear)}
    with_heads = [n for n, layer in enumerate(bert.layers) if layer.attention.num_heads]
    assert len(ranks) == 4 * len(with_heads) and 8 in ranks.values()
    for layer in with_heads:
        assert len({rank for place, rank in ranks.items() if f"layers.{layer}." in place}) == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    matrices = sum(rank * sum(bert.get_submodule(place).base.weight.shape)
                   for place, rank in ranks.items())
    assert record["parameters"]["trained"] == (32 * 5 + 5) + 5 * 2 * 32 + matrices
    code, scores, _ = script(evaluate.main, tmp_path / "run", "--json")
    assert json.loads(scores) == json.loads((tmp_path / "run" / "metrics.json").read_text())
    _, settings = runs.read_record(tmp_path / "run")         # a run that goes on measures nothing
    again, _ = train_multitask.load_model(replace(settings, data="gone"), CPU, record["edits"])
    shapes = [p.shape for p in again.bert.parameters()]
    assert shapes == [p.shape for p in bert.parameters()] and again.bert.edits == record["edits"]


def test_a_matrix_without_heads_has_no_adapter(bert):
    remove_heads(bert, {1: [0, 1, 2, 3]})
    before = out(bert)
    lora.attach(bert, ("query", "output", "fc_in"), rank=2)
    assert [place.split(".")[1] for place in adapter_layers(bert) if "fc_in" not in place] == [
        "0", "0", "2", "2"]
    assert torch.equal(out(bert), before)


def test_heads_are_switched_off_by_a_setting_of_a_run(checkpoint, data, script, tmp_path):
    code, _, errors = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--tasks",
                             "sst", "--mask-heads", "0:1,3 1:0", "--steps", "1", "--out",
                             tmp_path / "run")
    assert code == 0, errors
    bert = runs.open_run(tmp_path / "run")[0].bert
    assert bert.config.masked_heads == {0: [1, 3], 1: [0]} and bert.layers[0].attention.num_heads == 4


@pytest.mark.parametrize(("flags", "says"), [
    (("--mask-heads", "0:9"), "no head 9"), (("--mask-heads", "1"), "a whole layer"),
    (("--mask-heads", "first"), "--mask-heads 'first'"),
    (("--keep-heads", "9"), "--keep-heads 9"), (("--keep-heads", "8"), "nothing would be removed"),
    (("--keep-heads", "few"), "--keep-heads few"),
    (("--keep-heads", "4", "--encoders", "separate"), "leave out --encoders separate"),
    (("--lora-top", "8"), "add --lora")])
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


def test_the_report_sets_runs_side_by_side(run, script, tmp_path):
    pruned(script, run, tmp_path / "small", "--heads", "4")
    code, text, _ = script(pruning.main, "report", run, tmp_path / "small",
                           "--csv", tmp_path / "table.csv")
    assert code == 0
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    small = "small"
    assert float(rows["parameters"][run.name]) - float(rows["parameters"][small]) == 4 * (
        4 * 32 * 8 + 3 * 8)
    assert float(rows["multiply-adds"][small]) < float(rows["multiply-adds"][run.name])
    step = "time a step, the first = 1"
    assert float(rows[step][run.name]) == 1 and rows[step][small] == ""      # it was not trained
    assert float(rows["examples/s"][small]) > 0 and rows["trained"][small] == "0"
    assert "paper" not in text                               # it has other tasks
