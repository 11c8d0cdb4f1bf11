"""What the judge says: one sentence with the first wrong number, and nothing wrong about a right
solution."""

import pytest
import torch

from course.drivers import VOCABULARY, run_case
from course.judge import compare, judge, show, words_of


def test_short_vectors_are_shown_whole_and_long_ones_by_their_first_wrong_number():
    right = torch.zeros(2, 20)
    wrong = right.clone()
    wrong[1, 3] = 0.25
    assert compare(right, wrong) == "at [1, 3]: 0.25 instead of 0; 1 of 40 numbers is wrong"
    wrong[1, 7] = torch.nan
    assert compare(right, wrong).endswith("2 of 40 numbers are wrong")
    assert compare(right[:1, :3], wrong[1:, 2:5]) == "[[0, 0.25, 0]] instead of [[0, 0, 0]]"
    assert compare(torch.tensor([3, 4]), torch.tensor([3, 5])) == "[3, 5] instead of [3, 4]"
    close = torch.ones(3).double()
    assert "1.0000001" in compare(close, close * 1.0000001)
    assert compare(torch.ones(3), None).startswith("there is none")


def test_a_long_list_is_cut_between_its_items():
    assert show([f"layers.{n}" for n in range(20)]).endswith("'layers.7', and 12 more]")
    assert compare([], ["weight"]) == "['weight'] instead of []"


def test_a_changed_input_is_named_and_hides_no_other_problem():
    tensors, expected = {"ids": torch.tensor([3, 4])}, {"sum": torch.tensor([7.0])}
    changed = expected | {"ids after the call": torch.tensor([3, 5])}
    expected |= {"ids after the call": tensors["ids"]}
    says = judge("ffn", tensors, {}, expected, changed)
    assert says == "your function changed the given `ids`: work on a copy"
    changed["sum"] = torch.tensor([8.0])
    says = judge("ffn", tensors, {}, expected, changed)
    assert says.endswith("Besides, perhaps because of this: sum: [8] instead of [7]")


@pytest.mark.parametrize("tokens, words", [
    ("##b a b", [[0], [1], [2]]), ("[CLS] ##c ##c c", [[1, 2], [3]]), ("[SEP] [CLS]", []),
    ("a ##b [SEP] ##b", [[0, 1], [3]])])
def test_a_piece_without_a_word_before_it_begins_one(tokens, words):
    ids = torch.tensor([VOCABULARY.index(token) for token in tokens.split()])
    assert words_of(ids, whole_word=True) == words
    options = {"whole_word": True, "seed": 4}
    for seed in range(5):
        found = run_case("masking", {"ids": ids}, options | {"seed": seed})
        assert judge("masking", {"ids": ids}, options, found, found) is None


def test_ids_that_no_vocabulary_has_are_a_sentence():
    ids = torch.arange(2, 15)
    right = run_case("masking", {"ids": ids}, {"whole_word": False, "seed": 1})
    wrong = right | {"masked ids 0": ids + 100, "masked ids 2": ids + 100}
    says = judge("masking", {"ids": ids}, {"whole_word": False}, right, wrong)
    assert says == "there is an id that the vocabulary does not have"
