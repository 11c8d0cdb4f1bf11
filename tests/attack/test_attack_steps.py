"""The attacks step by step, on a problem of five words whose score is a sum over the words."""

from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from pruning_models import small_bert

from attack import baselines
from attack.baselines import METHODS, argmax, gumbel, gumbel_noise, hotflip, sample_texts
from attack.multistep import best_candidates, entropy, multistep, optimize, quantize, relax, start
from attack.objective import Objective, margin
from attack.problem import Problem
from bert import Layout
from pretraining.model import MaskedLM


class Grid(NamedTuple):
    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    layout: Layout
    cls_rows: Layout


def problem_of(mask, example, row, column, budget, candidates=4):
    """Words at (row, column), each with its candidates: the ids from its own on."""
    mask, example, row, column = map(torch.tensor, (mask, example, row, column))
    ids, layout = torch.arange(5, 5 + mask.numel()).view(mask.shape), Layout(mask)
    return Problem(Grid(ids, torch.zeros_like(ids), layout, layout.cls_rows()),
                   torch.zeros(len(budget), dtype=torch.long), torch.arange(len(budget)),
                   torch.arange(len(mask)), torch.arange(len(row)), example, row, column,
                   ids[row, column][:, None] + torch.arange(candidates), torch.tensor(budget))


def toy(budget=(3, 2)):
    """Two examples, of three and of two words."""
    return problem_of([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1],
                      [1, 2, 3, 1, 2], budget)


BEST = torch.tensor([2, 1, 3, 3, 1])                         # candidate of each word


class Sum:
    """score = Σ weight of the words [5, 4]; the classifier errs where it is above `needed`."""

    def __init__(self, weight=None, needed=99.0):
        self.weight = torch.eye(4)[BEST] if weight is None else weight
        self.needed, self.steps, self.probabilities, self.margins_seen = needed, [], [], []

    def __call__(self, problem, probabilities, step=0):
        score = problem.total((probabilities * self.weight[problem.positions]).sum(dim=1))
        return score.detach(), self.needed - score.detach()

    def margins(self, problem, probabilities):
        return self(problem, probabilities)[1], None

    def hard_margins(self, problem, chosen):
        margins = self.margins(problem, problem.one_hot(chosen))[0]
        self.margins_seen.append(margins)
        return margins

    def gradient(self, problem, probabilities, step=0):
        self.steps.append(step)
        self.probabilities.append(probabilities.detach().clone())
        return *self(problem, probabilities), self.weight[problem.positions]


# ---- multi-step quantization


def test_the_steps_halve_down_to_the_least_and_are_numbered_on():
    goal = Sum()
    chosen, soft = multistep(goal, toy(), steps=8, least=1, lr=1.0)
    assert goal.steps == [*range(8), *range(8, 12), 12, 12, 13, 14, 14, 15]
    assert torch.equal(chosen, BEST) and (soft < 99).all()
    goal = Sum()
    multistep(goal, toy(), steps=2, least=3, lr=1.0)
    assert goal.steps == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12]


def test_an_example_is_done_as_soon_as_its_fixed_words_mislead():
    for needed, changed in ((0.5, [1, 1]), (1.0, [2, 2]), (1.5, [2, 2]), (2.5, [3, 2])):
        problem = toy()
        chosen, _ = multistep(Sum(needed=needed), problem, steps=8, least=0, lr=1.0)
        assert problem.total((chosen > 0).float()).tolist() == changed


def test_no_more_words_change_than_the_budget_allows():
    for method in (multistep, argmax):
        problem = toy(budget=(1, 2))
        chosen, _ = method(Sum(), problem, steps=8, least=0, lr=1.0)
        assert problem.total((chosen > 0).float()).tolist() == [1, 2]
        assert torch.equal(chosen[chosen > 0], BEST[chosen > 0])


def test_the_words_that_moved_most_may_change(monkeypatch):
    moved = torch.tensor([0.6, 0.9, 0.7, 0.8, 0.6])
    probabilities = torch.zeros(5, 4).scatter(1, BEST[:, None], moved[:, None])
    probabilities[:, 0] = 1 - moved
    given = start(toy(), 10.0), probabilities, torch.zeros(2)
    for place, method in (("attack.baselines", argmax), ("attack.multistep", multistep)):
        monkeypatch.setattr(f"{place}.relax", lambda *a: given)
        chosen, soft = method(Sum(), toy(budget=(2, 1)), steps=8, least=0, lr=1.0)
        assert torch.equal(chosen, torch.tensor([0, 1, 3, 3, 0])) and soft is given[2]


def test_samples_change_the_words_that_are_least_themselves():
    logits = 9.0 * torch.eye(4)[BEST]
    logits[:, 0] = torch.tensor([6.0, -9, 6, 6, -9])
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    chosen = sample_texts(Sum(), toy(budget=(1, 1)), logits, generators, 5)
    assert (chosen > 0).tolist() == [False, True, False, False, True]


def test_the_relaxation_starts_at_the_text_with_10():
    logits, probabilities, margins = relax(Sum(), toy(), 0, 1.0)
    assert logits.tolist() == 5 * [[10.0, 0, 0, 0]]
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    torch.testing.assert_close(margins, Sum()(toy(), probabilities)[1])


def test_fixed_words_stay_and_the_others_climb():
    fixed, chosen = torch.tensor([True, False, False, True, False]), torch.tensor([3, 0, 0, 2, 0])
    before = start(toy(), 1.0)
    goal = Sum()
    logits, probabilities = optimize(goal, toy(), before, fixed, chosen, 2, 0.1, began=5)
    assert goal.steps == [5, 6] and torch.equal(logits[fixed], before[fixed])
    assert torch.equal(probabilities[fixed], toy().one_hot(chosen)[fixed])
    climbed = (logits - before)[~fixed].gather(1, BEST[~fixed][:, None])
    torch.testing.assert_close(climbed, torch.full_like(climbed, 0.2), atol=1e-3, rtol=0)


def test_entropy_is_that_of_a_distribution():
    p = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(entropy(p), torch.tensor([2.0, 1.0, 3.0]).log())


def test_the_free_word_of_the_largest_entropy_is_fixed_at_its_best_candidate():
    logits = torch.tensor([[0.0, 0, 0, 0], [9, 0, 0, 0], [1, 1, 0, 0], [3, 0, 0, 0], [2, 0, 0, 0]])
    fixed = torch.tensor([True, False, False, False, False])
    positions, words = quantize(Sum(), toy(), logits.softmax(dim=1), fixed, 0)
    assert positions.tolist() == [2, 4] and words.tolist() == [3, 1]


def test_candidates_are_within_a_half_of_the_best_rating():
    """At P = 1 of the first: ratings 0.75, and (1 + cos)/4 with cos 0.5, −0.5 and 0."""
    p, g = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.0, 1, -1, 0]])
    for size in (1, 1e-3):
        found, near = best_candidates(p, size * g)
        assert found[0].tolist() == [0, 1, 3, 2] and near[0].tolist() == [True, True, True, False]


# ---- what it is compared with


def test_gumbel_noise_is_drawn_for_each_example_from_its_own_generator():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    found, problem = gumbel_noise(toy(), generators()), toy()
    first, second = (torch.rand(n, 4, generator=g) for n, g in zip((3, 2), generators()))
    torch.testing.assert_close(found, -(-torch.cat([first, second]).log()).log())
    alone, _ = problem.keep(torch.tensor([False, True]))
    assert torch.equal(gumbel_noise(alone, generators()), found[3:])
    wide = problem._replace(candidates=torch.zeros(5, 100_000))
    assert gumbel_noise(wide, generators()).isfinite().all()


def test_gumbel_climbs_on_samples_and_takes_the_mean_of_their_margins():
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    goal, drawn = Sum(), generators()
    chosen, soft = gumbel(goal, toy(), generators(), steps=12, lr=3.0, samples=3)
    assert goal.steps == [step for step in range(12) for _ in range(3)]
    for found in goal.probabilities[:3]:                     # before the first step of Adam
        expected = (start(toy(), 15.0) + gumbel_noise(toy(), drawn)).softmax(dim=1)
        torch.testing.assert_close(found, expected)
    last = torch.stack([goal(toy(), p)[1] for p in goal.probabilities[-3:]])
    torch.testing.assert_close(soft, last.mean(dim=0))
    assert torch.equal(chosen, BEST) and len(goal.margins_seen) == 100


def test_the_first_text_that_misleads_is_taken_or_the_best():
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    goal, problem = Sum(torch.rand(5, 4, generator=generators[0]), needed=9.0), toy()
    chosen = sample_texts(goal, problem, torch.zeros(5, 4), generators, 20)
    lowest = torch.stack(goal.margins_seen).amin(dim=0)
    assert len(goal.margins_seen) == 20
    torch.testing.assert_close(goal.hard_margins(problem, chosen), lowest)
    goal.needed, goal.margins_seen = 1.0, []
    chosen = sample_texts(goal, problem, torch.zeros(5, 4), generators, 20)
    assert len(goal.margins_seen) < 20 and (goal.hard_margins(problem, chosen) < 0).all()
    still = Sum(torch.zeros(5, 4), needed=0.0)               # a margin of 0 does not mislead
    sample_texts(still, problem, torch.zeros(5, 4), generators, 20)
    assert len(still.margins_seen) == 20


def test_hotflip_takes_the_greatest_promise_first():
    weight = torch.tensor([[0, 3, 1, 1], [9, 9, 11, 9], [0, 0, 0, 4], [2, 0, 0, 1], [0, 1, 5, 0]])
    for budget, needed, expected in (
            ((1, 1), 99.0, [0, 0, 3, 0, 2]), ((2, 2), 99.0, [1, 0, 3, 3, 2]),
            ((3, 2), 15.5, [1, 0, 3, 3, 2]), ((3, 2), 16.0, [1, 2, 3, 3, 2]),
            ((3, 2), 6.5, [0, 0, 0, 0, 2])):
        chosen, soft = hotflip(Sum(weight.float(), needed), toy(budget), steps=0)
        assert chosen.tolist() == expected and soft.isnan().all()


def test_each_method_has_its_weight_of_similarity_and_its_rate():
    assert {name: row[1:] for name, row in METHODS.items()} == {
        "multistep": (20, 1), "argmax": (20, 1), "gumbel": (1, 0.3), "hotflip": (0, 0)}
    assert baselines.METHODS["gumbel"][0] is gumbel


# ---- problems


def test_a_word_that_stays_spends_no_budget():
    problem = toy(budget=(1, 1))
    found = problem.within_budget(torch.tensor([0, 2, 1, 1, 3]), torch.tensor([9.0, 5, 1, 1, 2]))
    assert found.tolist() == [0, 2, 0, 0, 3]


def test_the_highest_score_of_each_example_is_found():
    assert toy().top_positions(torch.tensor([-5.0, -3, -4, -9, -8])).tolist() == [1, 4]


def test_kept_examples_keep_both_their_texts_on_a_smaller_grid():
    mask = [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    problem = problem_of(mask, [0, 0, 1, 2], [3, 3, 4, 5], [1, 2, 1, 1], [2, 1, 1])
    kept, words = problem.keep(torch.tensor([False, True, True]))
    assert words.tolist() == [False, False, True, True]
    assert kept.sequences.tolist() == [1, 2, 4, 5] and kept.numbers.tolist() == [1, 2]
    assert torch.equal(kept.batch.input_ids, problem.batch.input_ids[[1, 2, 4, 5], :3])
    assert kept.batch.layout.mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert (kept.example.tolist(), kept.row.tolist()) == ([0, 1], [2, 3])
    assert (kept.column.tolist(), kept.budget.tolist()) == ([1, 1], [1, 1])
    assert torch.equal(kept.candidates, problem.candidates[2:])


# ---- the score


def test_a_margin_is_to_the_best_other_class():
    logits = torch.tensor([[1.0, 3, 2], [1, 3, 2], [4, -1, 1]])
    assert margin(logits, torch.tensor([0, 1, 0])).tolist() == [-2, 1, 3]


class Embeddings:
    """Stands for a victim whose states are the embeddings, and which cannot be misled."""

    autocast = nullcontext

    def __init__(self, embeddings):
        self.embeddings = embeddings

    def __call__(self, batch, embeds):
        return torch.tensor([[1.0, 0.0]]).repeat(2, 1), embeds[batch.layout.mask]


def test_similarity_is_the_weighted_recall_of_bertscore():
    generator = torch.Generator().manual_seed(0)
    vectors, idf = torch.randn(40, 6, generator=generator), torch.rand(40, generator=generator)
    problem = toy()
    new = torch.tensor([1, 0, 2, 3, 0])
    ids = problem.batch.input_ids.clone()
    ids[problem.row, problem.column] = problem.candidates.gather(1, new[:, None]).squeeze(1)
    goal = Objective(Embeddings(vectors), problem, idf, 2.0, 1.0, kappa=3.0)
    score, margins = goal(problem, problem.one_hot(new))
    for n, length in enumerate((5, 4)):
        old = problem.batch.input_ids[n, :length]
        cosines = torch.cosine_similarity(vectors[old][:, None], vectors[ids[n, :length]][None],
                                          dim=2)
        recall = (idf[old] * cosines.amax(dim=1)).sum() / idf[old].sum()
        assert float(score[n]) == pytest.approx(2 * float(recall) - 4, abs=1e-5)
    assert margins.tolist() == [1, 1] and goal.passes.tolist() == [[2, 0], [2, 0]]
    alone = Objective(Embeddings(vectors), problem, idf, 0.0, 0.0)
    assert alone(problem, problem.one_hot(new))[0].tolist() == [-6, -6]
    goal.gradient(problem, problem.one_hot(new))
    assert alone.passes.tolist() == [[1, 0]] * 2 and goal.passes.tolist() == [[3, 1]] * 2


def test_the_similarity_of_a_pair_is_the_mean_of_its_two_texts():
    vectors = torch.eye(20)
    problem = problem_of([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], [0, 1], [2, 3], [1, 1],
                         [1, 1])                             # of the second texts one word each
    goal = Objective(Embeddings(vectors), problem, torch.ones(20), 6.0, 0.0)
    score, _ = goal(problem, problem.one_hot(torch.tensor([3, 3])))
    torch.testing.assert_close(score, torch.tensor([6 * (1 + 2 / 3) / 2, 6 * (1 + 1 / 2) / 2]) - 6)


def test_fluency_is_the_log_probability_of_every_sixth_word_by_turns():
    lm = MaskedLM(small_bert()).eval().requires_grad_(False)
    torch.nn.init.normal_(lm.head.bias)
    problem = problem_of([[1] * 9, [1] * 8 + [0]], [0] * 7 + [1] * 3, [0] * 7 + [1] * 3,
                         [*range(1, 8), 1, 2, 3], [3, 3])
    victim = Embeddings(torch.randn(60, 32))
    goal = Objective(victim, problem, torch.ones(60), 1.0, 2.0, lm=lm, has_head=True, mask_id=4)
    original = problem.one_hot(torch.zeros(10, dtype=torch.long))
    for step, columns in ((1, (1, 7)), (2, (2,)), (7, (1, 7)), (5, (5,))):
        ids, grid = problem.batch.input_ids.clone(), problem.batch.layout.mask
        masked = [(row, column) for row, column in zip(problem.row.tolist(),
                  problem.column.tolist()) if column in columns]
        for row, column in masked:
            ids[row, column] = 4
        hidden = lm.bert(ids, attention_mask=grid.long()).last_hidden_state
        log_p = lm.head(hidden, lm.bert.word_embeddings.weight).log_softmax(dim=2)
        expected = [1 - 6 + 2 * 6 * sum(
            float(log_p[row, column, problem.batch.input_ids[row, column]])
            for row, column in masked if row == n) for n in range(2)]
        assert goal(problem, original, step)[0].tolist() == pytest.approx(expected, abs=1e-3)
    assert goal.passes[:, 0].tolist() == [4 * 2 + 3, 4 * 2 + 3]          # 3 references
    headless = Objective(victim, problem, torch.ones(60), 1.0, 2.0, lm=lm, mask_id=4)
    assert headless(problem, original)[0].tolist() == pytest.approx([-5, -5], abs=1e-4)
