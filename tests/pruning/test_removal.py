"""Removed parts: equal to masked ones, saved and opened again, and what is refused."""

import copy
import itertools
import json

import pytest
import torch
from parity import tiny_batch
from pruning_models import SMALL, mask_without, out, same

from bert import Bert, BertConfig, Layout, UserError
from bert.matrices import get_linear
from common.optimization import adamw, parameter_groups
from pruning import choose, importance, mask_heads, remove_heads, remove_layers, remove_neurons

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
    cls = bert.encode(hidden, layout, output_rows=layout.cls_rows())
    same(cls, bert(**batch).last_hidden_state[:, 0])


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


def test_later_removals_use_the_original_numbers_of_heads(bert, tmp_path):
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


def test_heads_that_stay_keep_their_weights_and_whether_they_train(bert):
    weight = bert.layers[0].attention.query.weight.detach().clone()
    bert.requires_grad_(False)
    remove_heads(bert, {0: [1]})
    left = bert.layers[0].attention.query
    assert torch.equal(left.weight, weight[[*range(8), *range(16, 32)]])
    assert not left.weight.requires_grad and left.out_features == 24


def test_removed_neurons_equal_neurons_with_zero_weights(bert, tmp_path):
    gone = {0: [3, 40], 2: list(range(48))}
    removed = copy.deepcopy(bert)
    with torch.no_grad():
        for layer, rows in gone.items():
            bert.layers[layer].ffn.fc_out.weight[:, rows] = 0
    remove_neurons(removed, gone)
    same(out(removed), out(bert))
    remove_neurons(removed, {0: [45]})                       # as they are now: originally 47
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


MISTAKES = {
    "a layer that is not there": (lambda b: remove_heads(b, {3: [0]}), "no layer 3", "0, 1, 2"),
    "a head that is not there": (lambda b: remove_heads(b, {1: [4]}), "no head 4", "0, 1, 2, 3"),
    "a head that is gone": (lambda b: [remove_heads(b, {1: [2]}) for _ in "ab"], "no head 2",
                            "it has 0, 1, 3"),
    "no head": (lambda b: remove_heads(b, {}), "no head is named"),
    "all heads": (lambda b: remove_heads(b, dict.fromkeys(range(3), range(4))), "all heads"),
    "all masked": (lambda b: mask_heads(b, dict.fromkeys(range(3), range(4))), "all heads"),
    "a neuron that is not there": (lambda b: remove_neurons(b, {0: [48]}), "no neuron 48"),
    "a neuron twice": (lambda b: remove_neurons(b, {0: [1, 1]}), "twice"),
    "no neuron": (lambda b: remove_neurons(b, {0: []}), "no neuron"),
    "all layers": (lambda b: remove_layers(b, [0, 1, 2]), "all of the 3 layers"),
    "no layer": (lambda b: remove_layers(b, []), "no layer is named"),
    "a layer outside": (lambda b: remove_layers(b, [-1]), "no layer -1"),
    "no head by layers": (lambda b: [remove_heads(b, dict.fromkeys(range(2), range(4))),
                                     remove_layers(b, [2])], "no longer attend to each other"),
    "only heads that are off": (lambda b: [mask_heads(b, {0: [0]}), remove_heads(
        b, {0: [1, 2, 3], 1: range(4), 2: range(4)})], "removed or switched off"),
    "a mask of words": (lambda b: out(b, head_mask="all"), "is a str; it must be a tensor"),
    "another order": (lambda b: choose(torch.rand(3, 4), 3, "best"), "no order 'best'"),
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
    class Factored(torch.nn.Module):
        pass

    bert.layers[0].attention.query = bert.layers[0].ffn.fc_in = Factored()
    for act in (lambda: remove_heads(bert, {0: [1]}), lambda: remove_neurons(bert, {0: [1]})):
        with pytest.raises(UserError, match="is a Factored, not a plain matrix"):
            act()


def test_an_emptied_matrix_is_refused_by_name(bert):
    remove_heads(bert, {1: [0, 1, 2, 3]})
    assert get_linear(bert, 0, "query") is bert.layers[0].attention.query
    for matrix in ("query", "attention_output"):
        with pytest.raises(UserError, match=f"1:{matrix} is empty, because all heads"):
            get_linear(bert, 1, matrix)


def test_layers_stay_if_another_edit_refers_to_them_by_number(bert):
    bert.edits = [{"method": "laser", "kind": "factor"}]
    with pytest.raises(UserError, match="after laser"):
        remove_layers(bert, [0])


@pytest.mark.parametrize("fields", [
    {"pruned_heads": {3: [0]}}, {"pruned_heads": {0: [4]}}, {"pruned_heads": {0: 1}},
    {"pruned_heads": [0]}, {"masked_heads": {"x": [0]}}, {"pruned_neurons": {0: 49}},
    {"pruned_neurons": {0: [1]}}])
def test_an_impossible_configuration_is_a_sentence(fields):
    with pytest.raises(UserError, match=f"{next(iter(fields))} is .*; it must give layers"):
        BertConfig(**SMALL, **fields)
