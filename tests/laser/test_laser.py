"""LASER on one matrix and in a model: ranks, errors, undo, thin matrices, how interventions are
written."""

import pytest
import torch

import laser
from bert import Tokenizer, UserError
from bert.matrices import MATRICES
from laser.interventions import Intervention, apply, format_stack, parse
from laser.reduce import Decomposition, keep_largest, low_rank, rank_of


def output(bert, tokenizer):
    with torch.no_grad():
        return bert(**tokenizer(["the film is good .", "a cat"])).last_hidden_state


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_rank_error_is_the_dropped_singular_values(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values, svd = torch.linalg.svdvals(weight.double()), Decomposition(weight)
    for rank in range(1, min(shape)):
        expected = values[rank:].square().sum().sqrt().item()
        assert torch.linalg.norm(weight - low_rank(weight, rank)).item() == pytest.approx(
            expected, rel=1e-5)
        assert svd.error(rank) == pytest.approx(expected, rel=1e-9)
        assert svd.energy(rank) == pytest.approx(1 - expected ** 2 / values.square().sum().item())
        assert torch.linalg.matrix_rank(low_rank(weight, rank)) == rank
        down, up = svd.factors(rank)
        torch.testing.assert_close(up @ down, low_rank(weight, rank))


def test_one_decomposition_serves_all_ranks_and_rows():
    draw = torch.Generator().manual_seed(0)
    weight, bias, one, two = (torch.randn(shape, generator=draw)
                              for shape in ((12, 20), (12,), (5, 20), (5, 20)))
    svd = Decomposition(weight)
    for rows in (one, two, one):
        for rank in (3, 12):
            torch.testing.assert_close(svd.product(rows, rank, bias),
                                       rows @ low_rank(weight, rank).T + bias)


def test_keep_is_the_fraction_of_the_largest_rank():
    assert [rank_of(keep, (40, 100)) for keep in (1, 0.9, 0.29, 0.025)] == [40, 36, 11, 1]
    assert rank_of(0.29, (100, 100)) == 29                   # 28.999… in floats
    assert rank_of(0.001, (40, 100)) == 1
    for keep in (0, 1.1):
        with pytest.raises(UserError, match="above 0"):
            rank_of(keep, (40, 100))


def test_magnitude_drops_the_smallest_entries():
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    kept = keep_largest(weight, 0.3)
    dropped = kept == 0
    assert int(dropped.sum()) == 1401                        # up to the 1400th, counted from 0
    assert weight[dropped].abs().max() < weight[~dropped].abs().min()
    assert torch.equal(kept[~dropped], weight[~dropped])


# -------------------------------------------------------------------------------------- in a model


def test_full_rank_changes_nothing_and_keep_one_not_a_bit(bert, checkpoint):
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    before, weight = output(bert, tokenizer), bert.layers[1].ffn.fc_in.weight
    torch.testing.assert_close(low_rank(weight, 32), weight, rtol=0, atol=1e-5)
    for variant in ("svd", "magnitude"):
        apply(bert, [Intervention(1, matrix, 1.0, variant) for matrix in MATRICES])
        assert torch.equal(bert.layers[1].ffn.fc_in.weight, weight)
        assert torch.equal(output(bert, tokenizer), before)


@pytest.mark.parametrize("factored", [False, True])
def test_undo_is_bit_exact(bert, checkpoint, factored):
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    before, state = output(bert, tokenizer), {k: v.clone() for k, v in bert.state_dict().items()}
    undo = apply(bert, parse("0:fc_out:0.3,1:query:0.2,1:fc_in:0.5:magnitude"), factored)
    assert not torch.equal(output(bert, tokenizer), before)
    undo()
    assert torch.equal(output(bert, tokenizer), before)
    assert list(state) == list(bert.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in bert.state_dict().items())


@pytest.mark.parametrize("matrix", MATRICES)
def test_only_the_named_matrix_is_touched(bert, matrix):
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    apply(bert, [Intervention(1, matrix, 0.3)])
    changed = [name for name, value in bert.state_dict().items()
               if not torch.equal(value, before[name])]
    assert changed == [f"layers.1.{MATRICES[matrix]}.weight"]


def test_factored_computes_what_the_dense_one_does_with_less(bert, checkpoint):
    tokenizer, stack = Tokenizer.from_pretrained(checkpoint), parse("0:fc_out:0.3,1:fc_in:0.9")
    undo = apply(bert, stack)
    dense = output(bert, tokenizer)
    undo()
    before = sum(p.numel() for p in bert.parameters())
    apply(bert, stack, factored=True)
    torch.testing.assert_close(output(bert, tokenizer), dense, rtol=0, atol=1e-4)
    saved = 32 * 64 - 9 * (32 + 64)                          # at rank 28 of 32 nothing is saved
    assert sum(p.numel() for p in bert.parameters()) == before - saved


@pytest.mark.parametrize("text, says", [
    ("4:fc_out:0.3", "layers 0 to 1"), ("1:fc_ot:0.3", "did you mean fc_out"),
    ("1:fc_out", "not an intervention"), ("1:fc_out:0.3:svt", "variant 'svt'"),
    ("1:fc_out:0", "--laser .* above 0"), ("1:fc_out:1.5", "--laser .* at most 1"),
    ("1:fc_out:0.3,1:fc_out:0.2", "twice"), ("1:fc_out:1", "nothing would be changed"),
    ("1:fc_out:0.3:random", "variant 'random'"), ("1:fc_out:0.3:svd:4", "not an intervention"),
    ("", "not an intervention"),
])
def test_a_wrong_intervention_is_a_sentence_and_changes_nothing(bert, text, says):
    before = list(bert.modules())
    with pytest.raises(UserError, match=says):
        apply(bert, parse(text))
    assert list(bert.modules()) == before


def test_no_intervention_and_no_saving_are_errors(bert):
    with pytest.raises(UserError, match="no intervention"):
        apply(bert, [])
    with pytest.raises(UserError, match="no smaller"):
        apply(bert, parse("1:fc_out:0.9,0:fc_in:0.3:magnitude"), factored=True)
    with pytest.raises(UserError, match="no smaller"):       # 16·(32 + 32) = 32·32
        apply(bert, parse("0:query:0.5"), factored=True)
    apply(bert, parse("1:fc_out:0.2"), factored=True)
    with pytest.raises(UserError, match="1:fc_out is a Factored, not a plain matrix"):
        apply(bert, parse("0:fc_out:0.3,1:fc_out:0.1"))


def test_parse_reads_what_format_stack_writes():
    text = "1:fc_in:0.05,1:fc_out:0.3:magnitude,10:query:0.5"
    assert format_stack(parse(text)) == text and format_stack(parse(text)[::-1]) == text


def test_the_public_names_are_there():
    assert laser.parse("1:fc_in:0.5")[0] == laser.Intervention(1, "fc_in", 0.5)
