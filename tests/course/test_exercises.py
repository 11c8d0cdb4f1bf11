"""Each exercise accepts correct solutions that differ from the project's, and no wrong one; judged
in this process. test_grade.py runs workers."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from course_variants import VARIANTS

from course.cases import make_cases
from course.drivers import DRIVERS, run_case
from course.exercises import EXERCISES, sections
from course.grade import score
from course.judge import judge
from course.mistakes import edited, known_mistakes
from course.source import with_body

SEED = 3
MISTAKES = [(exercise, *mistake) for exercise in EXERCISES for mistake in known_mistakes(exercise)]
MORE = [                                                     # without a diagnosis
    ("attention", "bert.attention.eager_attention", "query @ key", "query.float() @ key.float()"),
    ("attention", "bert.attention.eager_attention", "scores = query",
     "query *= 1.001; scores = query"),
    ("attention", "bert.attention.eager_attention", "dropout) @", "0.5) @"),
    ("add-and-norm", "bert.model.BertLayer.add_and_norm", "hidden + ", "hidden.mul_(2) / 2 + "),
    ("add-and-norm", "bert.model.BertLayer.add_and_norm", "self.output_norm(hidden",
     "self.output_norm(hidden.half().to(hidden)"),
    ("add-and-norm", "bert.model.BertLayer.attention_block", "index_select(0, output_rows.rows)",
     "index_select(0, output_rows.rows.flip(0))"),
    ("ffn", "bert.model.FeedForward.project", "return self.fc_out(activations",
     "return self.fc_out(activations.bfloat16().to(activations)"),
    ("ffn", "bert.model.FeedForward.activate", "self.fc_in(hidden",
     "self.fc_in(hidden.mul_(3) / 3"),
    ("embeddings", "bert.model.Bert.embed", "positions = self", "positions = 0.5 * self"),
    ("embeddings", "bert.model.Bert.embed", "self.position_embeddings(layout.positions)",
     "self.position_embeddings(layout.positions).detach()"),
    ("adamw", "course.adamw.adamw_step", "return weight -", "return weight.mul_(1.0) - 0 +"),
    ("adamw", "course.adamw.adamw_step", "gradient ** 2", "gradient.detach() ** 2"),
    ("masking", "pretraining.masking.Masking.__call__", "torch.where(chosen, replacement, ids)",
     "ids.copy_(torch.where(chosen, replacement, ids))"),
    ("masking", "pretraining.masking.Masking.choose", "draw <=", "draw <"),
    ("masking", "pretraining.masking.Masking.choose", "cumsum(0) - 1", "cumsum(0) * 0"),
    ("lora", "lora.layers.LoRA.delta", "self.B @ self.A", "self.B.float() @ self.A.float()"),
    ("low-rank", "laser.reduce.Decomposition.factors", "sqrt()", "clone()"),
    ("low-rank", "laser.reduce.low_rank", "svd.right[:rank]", "svd.right[-rank:]"),
    ("pcgrad", "multitask.pcgrad.coefficients", "gram[j][j]:", "gram[j][j] and i < j:"),
    ("pcgrad", "multitask.pcgrad.coefficients", "mine[j] -=", "gram[j][i] = 0.0; mine[j] -="),
    ("annealing", "multitask.schedule.annealing_exponent", "1.0 if epochs", "c if epochs"),
    ("importance", "pruning.gates.importance", "undo.enter_context(GATES", "(GATES"),
    ("importance", "pruning.gates.normalize", "raw.nan_to_num()", "raw.nan_to_num(1.0)"),
    ("head-removal", "pruning.removal.keep_columns", "old.requires_grad", "False"),
    ("head-removal", "pruning.removal.keep_rows", "old.requires_grad", "True"),
    ("exit-ensemble", "early_exit.exits.geometric", "* log_probs", "* log_probs.detach()"),
    ("exit-ensemble", "early_exit.exits.geometric", "weights.exp()", "weights.exp_()"),
    ("r-softmax", "bert.r_softmax.r_softmax", "relu_()", "abs_()"),
    ("r-softmax", "bert.r_softmax.threshold", "scores.topk", "scores.detach().topk"),
]


@pytest.fixture(scope="module")
def cases():
    return {exercise: make_cases(exercise, SEED) for exercise in EXERCISES}


def graded(exercise, cases):
    """The record of what the functions give now."""
    found = []
    for case in cases[exercise]:
        try:
            found.append(run_case(exercise, case.tensors, case.options, case.kind == "gradient"))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def test_each_exercise_has_a_section_cases_and_a_driver_in_the_tables_order():
    assert list(EXERCISES) == list(sections()) == list(DRIVERS)
    assert [number for number, _, _ in sections().values()] == list(range(1, len(EXERCISES) + 1))


@pytest.mark.parametrize("exercise", EXERCISES)
def test_every_exercise_has_three_known_mistakes_and_two_variants(exercise):
    assert len(known_mistakes(exercise)) >= 3 and len(VARIANTS[exercise]) >= 2


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_projects_own_functions_get_all_points(exercise, cases):
    record = score(exercise, cases[exercise], graded(exercise, cases))
    assert record["points"] == record["max_points"], record["feedback"]
    assert {"forward", "edge"} <= record["shares"].keys()


@pytest.mark.parametrize("exercise, function, old, new, meaning", MISTAKES)
def test_a_known_mistake_loses_points_and_is_named(exercise, function, old, new, meaning, cases):
    with edited(function, lambda text: text.replace(old, new, 1)):
        found = graded(exercise, cases)
    record = score(exercise, cases[exercise], found)
    assert record["points"] < record["max_points"]
    compared = exercise not in ("masking", "annealing") and "Error: " not in record["feedback"]
    assert not compared or "drops out" in meaning or f"It {meaning}." in record["feedback"]


@pytest.mark.parametrize("exercise, function, old, new", MORE)
def test_a_mistake_without_a_name_loses_points_too(exercise, function, old, new, cases):
    with edited(function, lambda text: text.replace(old, new, 1)):
        found = graded(exercise, cases)
    record = score(exercise, cases[exercise], found)
    assert record["points"] < record["max_points"]


@pytest.mark.parametrize("exercise, number", [
    (exercise, n) for exercise, variants in VARIANTS.items() for n in range(len(variants))])
def test_another_correct_solution_gets_all_points(exercise, number, cases):
    with ExitStack() as stack:
        for function, body in VARIANTS[exercise][number].items():
            name = function.rpartition(".")[2]
            stack.enter_context(edited(function, lambda text, name=name, body=body: with_body(
                text, [name], body)))
        found = graded(exercise, cases)
    record = score(exercise, cases[exercise], found)
    assert record["points"] == record["max_points"], record["feedback"]


def unsolved(text, name):
    return with_body(text, [name], "raise NotImplementedError")


@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_exercise_needs_no_other_one(exercise, cases):
    others = [function for other, row in EXERCISES.items() if other != exercise
              for function in row.functions] + ["bert.attention.sdpa_attention"]
    with ExitStack() as stack:
        for function in others:
            name = function.rpartition(".")[2]
            stack.enter_context(edited(function, partial(unsolved, name=name)))
        for case in cases[exercise]:
            run_case(exercise, case.tensors, case.options, case.kind == "gradient")


@pytest.mark.parametrize("exercise", EXERCISES)
def test_public_cases_are_of_every_kind_that_the_grader_has(exercise, cases):
    kinds, public = ({case.kind for case in some} for some in (
        cases[exercise], [case for case in cases[exercise] if case.public]))
    assert kinds == public
    again = make_cases(exercise, "public")
    for case, other in zip(cases[exercise], again):          # the same edges, other numbers
        for name, tensor in case.tensors.items():
            assert tensor.numel() < 10 or name == "mask" or tensor.dtype == torch.bool or (
                not tensor.equal(other.tensors[name]) or tensor.unique().numel() < 4
                or exercise == "masking")


@pytest.mark.parametrize("exercise", ["masking", "annealing"])
def test_random_results_are_judged_by_their_rules_whatever_the_seed(exercise):
    for seed in range(100, 102):
        for case in make_cases(exercise, seed):
            found = run_case(exercise, case.tensors, case.options)
            assert judge(exercise, case.tensors, case.options, found, found) is None
