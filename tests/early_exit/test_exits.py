"""The exits themselves: cascade, ensemble, and leaving, on small random tensors."""

import math

import pytest
import torch

from early_exit import training
from early_exit.exits import ENSEMBLES, METHODS, Exits, as_outputs, log_probabilities
from early_exit.leaving import answers, exit_layers
from early_exit.training import train_exits


def some_exits(outputs=3, **how):
    torch.manual_seed(1)
    exits = Exits(4, 4, outputs, **how)
    for parameter in (*exits.weights, exits.biases):
        torch.nn.init.normal_(parameter)
    return exits


def states(n=6, width=8):
    return torch.randn(n, 4, width, generator=torch.Generator().manual_seed(2))


def test_the_geometric_ensemble_is_the_papers_formula():
    exits = some_exits()
    log_p = exits.all_logits(states()).log_softmax(dim=2)
    for m, log_q in enumerate(exits(states())):
        product = torch.ones(6, 3)
        for j in range(m + 1):
            product *= log_p[j].exp() ** (exits.weights[m][j].exp() / (m + 1))
        q = product * exits.biases[m].exp()
        torch.testing.assert_close(log_q.exp(), q / q.sum(dim=1, keepdim=True))


def test_the_arithmetic_ensemble_is_a_mean_of_probabilities():
    log_p = torch.randn(3, 5, 2).log_softmax(dim=2)
    found = ENSEMBLES["arithmetic"](log_p, torch.zeros(3), torch.zeros(2))
    torch.testing.assert_close(found.exp(), log_p.exp().mean(dim=0))


def test_the_weights_of_the_ensemble_are_positive():
    log_p = torch.tensor([[[0.9, 0.1]]]).log()
    for w in (-5.0, 0.0, 5.0):
        assert ENSEMBLES["geometric"](log_p, torch.tensor([w]), torch.zeros(2)).argmax() == 0


def test_an_exit_reads_the_one_before_and_does_not_train_it():
    exits = some_exits(cascade=True, ensemble="none")
    exits(states())[2].sum().backward()
    assert exits.classifiers[2].weight.grad.abs().sum() > 0
    for earlier in (exits.classifiers[1].weight, exits.classifiers[0].weight):
        assert earlier.grad is None or not earlier.grad.any()
    assert exits.norms[2].weight.grad.abs().sum() > 0
    before = exits(states()).detach()
    exits.classifiers[0].bias.data += torch.tensor([3.0, 0.0, 0.0])
    assert not torch.allclose(exits(states())[1], before[1])


@pytest.mark.parametrize("method", METHODS)
def test_an_exit_sees_only_layers_below_it(method):
    cascade, ensemble = METHODS[method]
    exits = some_exits(cascade=cascade, ensemble=ensemble)
    changed = states()
    changed[:, 2:] += 1
    torch.testing.assert_close(exits(changed)[:2], exits(states())[:2])
    assert not torch.allclose(exits(changed)[2], exits(states())[2])


def test_plain_exits_do_not_depend_on_each_other():
    exits, changed = some_exits(cascade=False, ensemble="none"), states()
    changed[:, 0] += 1
    torch.testing.assert_close(exits(changed)[1:], exits(states())[1:])


def test_exits_read_vectors_of_mean_0_and_variance_about_1():
    exits, x = Exits(4, 4, 3), 5 + states(200)
    x[:, :, 0] = 7.0                                         # a dead feature
    x[:, 3] = 2.0                                            # a dead layer
    exits.standardize(x)
    variance = x.var(dim=0, correction=0)
    torch.testing.assert_close(exits.means, x.mean(dim=0))
    expected = 1 / (variance + 0.01 * variance.mean(dim=1)[:, None]).sqrt()
    torch.testing.assert_close(exits.scales[:3], expected[:3])
    assert exits.scales[3].tolist() == pytest.approx([1e6] * 8)
    seen = (x - exits.means) * exits.scales
    assert (seen[:, :3, 1:].var(dim=0, correction=0) - 1).abs().max() < 0.02


def test_an_ensemble_starts_as_about_the_mean():
    exits = Exits(12, 8, 3)
    assert max(weights.abs().max() for weights in exits.weights) < 0.05


def test_the_cost_of_exits_is_their_matrices_and_their_mixing():
    plain, cascade = (Exits(4, 4, 3, cascade=c, ensemble="none") for c in (False, True))
    assert [plain.multiply_adds(m) for m in range(3)] == [24, 48, 72]
    assert [cascade.multiply_adds(m) for m in range(3)] == [24, 24 + 33, 24 + 2 * 33]
    mixed = Exits(4, 4, 1, segments=2, cascade=False)        # of 1, 1 + 2, 1 + 2 + 3 exits
    assert [mixed.multiply_adds(m) for m in range(3)] == [32 + 2, 64 + 3 * 2, 96 + 6 * 2]


def test_without_the_mean_an_exit_reads_cls_alone():
    exits, x = Exits(4, 2, 3, segments=2, mean=False).requires_grad_(False), states(20)
    exits.standardize(x)                 # [CLS], mean, of two sequences: 2 numbers each
    assert exits.means.tolist() == x[:, :, [0, 1, 4, 5]].mean(dim=0).tolist()
    before = exits(x)
    x[:, :, [2, 3, 6, 7]] += 1
    assert torch.equal(exits(x), before)
    x[:, :, 5] += 1
    assert not torch.allclose(exits(x), before)


def test_one_output_is_two_classes():
    z = torch.tensor([[2.0], [-1.0]])
    log_p = log_probabilities(z)
    torch.testing.assert_close(log_p.exp()[:, 1:], z.sigmoid())
    torch.testing.assert_close(as_outputs(log_p, 1), z)
    assert some_exits(outputs=1)(states()).shape == (4, 6, 2)


def test_an_example_leaves_at_the_first_confident_exit():
    p = torch.tensor([[0.6, 0.95, 0.5], [0.8, 0.5, 0.5]])                    # [M, n] of class 0
    log_q = torch.stack([p, 1 - p], dim=2).log()
    assert exit_layers(log_q, 0.9).tolist() == [2, 0, 2]
    assert exit_layers(log_q, 0.7).tolist() == [1, 0, 2]
    assert exit_layers(log_q, 0.0).tolist() == [0, 0, 0]
    assert exit_layers(log_q[:, 2:], float(log_q[0, 2, 0].exp())).tolist() == [2]    # not above
    assert exit_layers(log_q, 1.0).tolist() == exit_layers(log_q, 1.5).tolist() == [2, 2, 2]
    final = torch.full((3, 2), math.log(0.5))
    found = answers(log_q, final, exit_layers(log_q, 0.7)).exp()
    torch.testing.assert_close(found[:, 0], torch.tensor([0.8, 0.95, 0.5]))


def separable(n=400):
    """States that differ little from text to text: labels are learned only if they
    are standardized."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, 8, generator=generator)
    return 0.05 + 1e-3 * x, (x[:, :, 0].sum(dim=1) > 0).float()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method, monkeypatch):
    monkeypatch.setattr(training, "LR", 1e-2)                # 400 examples are few steps
    cascade, ensemble = METHODS[method]
    x, y = separable()
    exits = train_exits(x, y, 2, cascade=cascade, ensemble=ensemble)
    accuracy = (exits(x).argmax(dim=2) == y).float().mean(dim=1)             # [M]
    assert accuracy[0] > 0.55
    if cascade and ensemble == "geometric":
        assert accuracy[3] > 0.7                             # it has seen all four


def test_the_ensemble_is_fitted_on_examples_that_the_exits_were_not_trained_on():
    x, y = separable(100)
    first = train_exits(x, y, 2, held_out=0.2)
    other = y.clone()
    other[80:] = 1 - other[80:]
    second = train_exits(x, other, 2, held_out=0.2)
    for a, b in zip(first.exit_parameters(), second.exit_parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(first.weights[3], second.weights[3])
    other = y.clone()
    other[:80] = 1 - other[:80]
    assert not torch.equal(train_exits(x, other, 2).classifiers[0].weight,
                           first.classifiers[0].weight)


def test_equal_seeds_train_equal_exits():
    x, y = separable(64)
    first, second = (train_exits(x, y, 2, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
