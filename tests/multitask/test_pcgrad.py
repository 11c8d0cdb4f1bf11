"""Gradient surgery against the algorithm written down naively, and in a training run."""

import itertools
import json

import pytest
import torch

import train_multitask
from multitask.pcgrad import coefficients, cosines, draw_orders, gram_matrices, pcgrad, pop_grads

SHAPES = ((5, 7), (11,), (2, 3, 4))


def random_gradients(tasks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
            for _ in range(tasks)]


def naive(vectors, orders):
    """The paper's algorithm 1, a vector a task, as written there; the sum."""
    projected = [vector.clone() for vector in vectors]
    for i, others in enumerate(orders):
        for j in others:
            dot = projected[i] @ vectors[j]
            if dot < 0:
                projected[i] -= dot / (vectors[j] @ vectors[j]) * vectors[j]
    return sum(projected)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def all_orders(tasks):
    """Every order in which each task may meet the others, or for many tasks some of them."""
    if tasks > 3:
        return [draw_orders(tasks, seed, 1) for seed in range(30)]
    others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    return itertools.product(*(list(map(list, itertools.permutations(o))) for o in others))


@pytest.mark.parametrize("tasks", range(2, 7))
def test_whole_vector_surgery_is_the_papers_algorithm(tasks):
    gradients = random_gradients(tasks)
    for orders in all_orders(tasks):
        combined, _ = pcgrad(gradients, orders)
        expected = naive([flat(own) for own in gradients], orders)
        torch.testing.assert_close(flat(combined), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("tasks", range(2, 7))
def test_surgery_weight_by_weight_is_the_algorithm_on_each_tensor(tasks):
    gradients = random_gradients(tasks)
    for orders in all_orders(tasks):
        combined, _ = pcgrad(gradients, orders, per_tensor=True)
        for tensor, own in zip(combined, zip(*gradients)):
            expected = naive([g.flatten() for g in own], orders)
            torch.testing.assert_close(tensor.flatten(), expected, atol=1e-10, rtol=0)


def test_with_one_tensor_both_modes_agree():
    gradients = [own[:1] for own in random_gradients(4)]
    orders = draw_orders(4, 0, 1)
    (whole,), _ = pcgrad(gradients, orders)
    (each,), _ = pcgrad(gradients, orders, per_tensor=True)
    assert torch.equal(whole, each)


def test_textbook_conflict():
    """(1, .5) against (−1, .5): each loses its part against the other."""
    gradients = [[torch.tensor([1.0, 0.5])], [torch.tensor([-1.0, 0.5])]]
    (total,), _ = pcgrad(gradients, [[1], [0]])
    torch.testing.assert_close(total, torch.tensor([0.0, 1.6]))


def test_a_gradient_too_small_to_have_a_length_conflicts_with_nothing():
    gradients = [[torch.tensor([1.0, 2.0])], [torch.tensor([-1e-25, 0.0])]]
    combined, _ = pcgrad(gradients, [[1], [0]])
    torch.testing.assert_close(combined[0], torch.tensor([1.0, 2.0]))


def test_the_size_of_gradients_does_not_matter():
    gradients = random_gradients(4)
    small = [[1e-4 * tensor for tensor in own] for own in gradients]
    orders = draw_orders(4, 0, 1)
    for whole, scaled in zip(pcgrad(gradients, orders)[0], pcgrad(small, orders)[0]):
        torch.testing.assert_close(scaled, 1e-4 * whole)


def test_gradients_that_agree_are_added_and_left_as_they_were():
    gradients = [[torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 1.0])]]
    (total,), grams = pcgrad(gradients, [[1], [0]])
    assert total.tolist() == [4.0, 3.0] and gradients[0][0].tolist() == [1.0, 2.0]
    assert grams[0].tolist() == [[5.0, 5.0], [5.0, 10.0]]


def test_reusing_memory_changes_nothing_but_the_first_gradient():
    gradients = random_gradients(3)
    expected, _ = pcgrad(gradients, draw_orders(3, 0, 1))
    firsts = list(gradients[0])
    combined, _ = pcgrad(gradients, draw_orders(3, 0, 1), reuse=True)
    for a, b, first in zip(expected, combined, firsts):
        assert torch.equal(a, b) and b is first


def test_what_no_task_reaches_keeps_no_gradient():
    gradients = [[None, torch.ones(2), None], [None, -torch.ones(2), torch.ones(3)]]
    combined, _ = pcgrad(gradients, [[1], [0]])
    assert combined[0] is None
    torch.testing.assert_close(combined[1], torch.full((2,), 0.6))       # 1 − 2/5, and −1 + 2/2
    torch.testing.assert_close(combined[2], torch.full((3,), 1.4))       # 2/5, and 1


def test_a_task_without_gradient_changes_nothing():
    assert coefficients([[4.0, 0.0], [0.0, 0.0]], [[1], [0]]) == [1.0, 1.0]


def test_long_gradients_have_the_same_products_in_pieces():
    gradients = [[torch.randn(300, 1000)], [torch.randn(300, 1000)]]
    rows = torch.stack([own[0].flatten() for own in gradients]).double()
    torch.testing.assert_close(gram_matrices(gradients)[0], rows @ rows.T, rtol=1e-4, atol=1e-2)


def test_cosines_are_those_of_the_whole_gradients():
    gradients = random_gradients(3)
    a, b = flat(gradients[0]), flat(gradients[2])
    measured = cosines(gram_matrices(gradients), ["sst", "para", "sts"])
    assert list(measured) == ["sst·para", "sst·sts", "para·sts"]
    assert measured["sst·sts"] == pytest.approx(((a @ b) / a.norm() / b.norm()).item())


def test_orders_are_drawn_from_the_seed_and_the_step():
    assert draw_orders(5, 1, 2) == draw_orders(5, 1, 2) != draw_orders(5, 1, 3)
    assert all(sorted([i, *others]) == list(range(5)) for i, others in
               enumerate(draw_orders(5, 1, 2)))


def test_orders_are_those_of_earlier_versions():
    """… so that a run that was stopped goes on as it would have gone on."""
    assert draw_orders(4, 2, 3) == [[1, 3, 2], [2, 3, 0], [1, 3, 0], [1, 2, 0]]
    zeros = torch.zeros(1, 2, 2, dtype=torch.float64)
    assert cosines(zeros, ["a", "b"]) == {"a·b": 0.0}        # without a gradient


def test_taking_a_gradient_leaves_none():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    assert pop_grads([weight])[0].tolist() == [1.0, 2.0] and weight.grad is None


FLAGS = ("--device", "cpu", "--tasks", "sst,para,sts", "--batch-size", 8, "--steps", 3, "--clip",
         0, "--lr", 0.01, "--head-lr", 0.01, "--warmup", 0, "--log-every", 1)


def run(checkpoint, data, out, *more):
    train_multitask.main([str(a) for a in ("--bert", checkpoint, "--data", data, "--out", out,
                                           *FLAGS, *more)])
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("more", [(), ("--accumulate", 2), ("--precision", "bf16")])
@pytest.mark.parametrize("mode", ["pcgrad", "pcgrad-tensor"])
def test_a_run_logs_how_its_tasks_conflict(checkpoint, data, tmp_path, mode, more):
    lines = run(checkpoint, data, tmp_path / "run", "--surgery", mode, *more)
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 3
    for line in steps:
        assert set(line["cosine"]) == {"sst·para", "sst·sts", "para·sts"}
        assert all(-1 <= value <= 1 for value in line["cosine"].values())
        assert {pair: float(value < 0) for pair, value in line["cosine"].items()} == (
            line["conflict"])
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


def test_heads_gradients_come_out_untouched(checkpoint, data, tmp_path, monkeypatch):
    """After one step from the same start, heads are the same bits with surgery and without."""
    from multitask.runs import open_run

    for name, more in (("plain", ()), ("cut", ("--surgery", "pcgrad"))):
        run(checkpoint, data, tmp_path / name, "--steps", 1, *more)
    plain, cut = (open_run(tmp_path / name)[0] for name in ("plain", "cut"))
    for a, b in zip(plain.heads.parameters(), cut.heads.parameters()):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b)
               for a, b in zip(plain.bert.parameters(), cut.bert.parameters()))


@pytest.mark.parametrize("more", [("--tasks", "sst"), ("--train-tasks", "sst"), ("--freeze",),
                                  ("--encoders", "separate"), ("--sampling", "annealed")])
def test_surgery_where_nothing_can_conflict_is_a_sentence(checkpoint, data, tmp_path, script, more):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--out",
                          tmp_path / "run", "--surgery", "pcgrad", *more)
    assert code == 2 and "--surgery compares" in err and not (tmp_path / "run").exists()
