"""Importance by gates: equal to brute force, for heads, neurons and layers, for any batches."""

import pytest
import torch
from pruning_models import batches_of, losses, same

from bert import Bert, Tokenizer, UserError
from multitask.course import Example
from multitask.data import tokenize
from multitask.model import MultitaskModel, build_head
from multitask.tasks import TASKS
from pruning import (
    importance,
    multiply_adds,
    normalize,
    remove_heads,
    remove_layers,
    remove_neurons,
)
from pruning.gates import GATES, zero_importance
from pruning.measure import task_importance

CPU = torch.device("cpu")
NAN = torch.nan


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
    trainable = {name: p.requires_grad for name, p in bert.named_parameters()}
    importance(bert, batches_of([12]), lambda batch: losses(bert, batch).sum())
    assert {name: p.requires_grad for name, p in bert.named_parameters()} == trainable
    assert all(p.grad is None for p in bert.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in bert.modules())


def test_weights_take_no_gradients_while_importance_is_measured(bert):
    def loss(batch):
        assert not any(p.requires_grad for p in bert.parameters())
        return losses(bert, batch).sum()

    importance(bert, batches_of([7, 5]), loss)
    assert all(p.requires_grad for p in bert.parameters())

    def failing(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        importance(bert, batches_of([12]), failing)
    assert all(p.requires_grad for p in bert.parameters())
    assert not any(m._forward_pre_hooks for m in bert.modules())


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
    hook = GATES["layers"](bert.layers[1], torch.zeros(12, 1))
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
            hook = GATES["layers"](layer, torch.full((12, 1), xi, dtype=torch.float64))
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
    torch.testing.assert_close(zero_importance(bert.config, "heads"), raw * 0, equal_nan=True)
    assert not torch.allclose(raw[2], kept[2])               # measured on the model as it is now
    remove_neurons(bert, {2: range(48)})
    raw = importance(bert, batches_of([12]), lambda batch: losses(bert, batch).sum(), "layers")
    assert (raw > 0).all()                                   # a layer without neurons is a layer


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


def test_normalized_importance_is_the_papers():
    raw = torch.tensor([[3., 4.], [30., 40.]])
    torch.testing.assert_close(normalize(raw, "layer"), torch.tensor([[0., 1.], [0., 1.]]))
    torch.testing.assert_close(normalize(raw, "global"), (raw - 3) / 37)
    gone = torch.tensor([[NAN, 4., 3.], [NAN, NAN, NAN]])
    torch.testing.assert_close(normalize(gone), torch.tensor([[NAN, 1., 0.], [NAN] * 3]),
                               equal_nan=True)
    layers = torch.tensor([[1.], [3.], [2.]])                # one part a layer: the global norm
    torch.testing.assert_close(normalize(layers, "layer"), torch.tensor([[0.], [1.], [.5]]))


class Experts(torch.nn.Module):
    """Any module in the place of the feed-forward network."""

    def forward(self, hidden, layout):
        return 0 * hidden


def test_neurons_of_a_replaced_feed_forward_network_are_refused(bert):
    bert.layers[1].ffn = Experts()
    batches = list(batches_of([12]))
    for act in (lambda: importance(bert, batches, lambda b: losses(bert, b).sum(), "neurons"),
                lambda: remove_neurons(bert, {0: [1], 1: [1]}), lambda: multiply_adds(bert, [5])):
        with pytest.raises(UserError, match="of layer 1 is a Experts, not a FeedForward"):
            act()
    assert not any(module._forward_pre_hooks for module in bert.modules())
    assert bert.layers[0].ffn.fc_in.out_features == 48
    raw = importance(bert, batches, lambda batch: losses(bert, batch).sum())
    assert (raw > 0).all()                                   # heads are as they were
    before = Bert(bert.config)
    bert.layers[1].ffn.multiply_adds = lambda adapter: 2 * 32 * 48       # it gives its own cost
    assert multiply_adds(bert, [5]) == multiply_adds(before, [5])
