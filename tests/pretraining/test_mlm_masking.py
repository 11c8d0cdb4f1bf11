"""Which tokens are masked, and what they become."""

import pytest
import torch

from pretraining.masking import Masking


@pytest.mark.parametrize("whole_word", [False, True])
def test_15_percent_are_chosen_and_masked_80_10_10(tokenizer, corpus, whole_word):
    masking = Masking(tokenizer, whole_word)
    torch.manual_seed(0)
    ids, _, _ = corpus.collate(torch.arange(600))
    ids = ids.repeat(20)
    masked_ids, chosen = masking(ids)
    special = masking.special[ids]
    assert special.any() and not (chosen & special).any()
    assert torch.equal(masked_ids[~chosen], ids[~chosen])
    assert int(chosen.sum()) / int((~special).sum()) == pytest.approx(0.15, abs=1e-4)
    chosen_ids, became = ids[chosen], masked_ids[chosen]
    is_mask = became == tokenizer.mask_token_id
    kept = (became == chosen_ids).double().mean()            # by chance a random token is the same
    assert is_mask.double().mean() == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / len(masking.ordinary_ids), abs=0.02)
    assert not masking.special[became[~is_mask]].any()
    again, _ = masking(ids)
    assert not torch.equal(again, masked_ids)                    # fresh each time


def test_every_token_is_chosen_as_often(tokenizer, corpus):
    masking = Masking(tokenizer)
    ids, _, _ = corpus.collate(torch.arange(3))
    torch.manual_seed(0)
    often = torch.stack([masking.choose(ids) for _ in range(4000)]).double().mean(dim=0)
    ordinary = often[~masking.special[ids]]
    assert (often[masking.special[ids]] == 0).all()
    assert (ordinary - ordinary.mean()).abs().max() < 0.03


def test_whole_word_masks_all_pieces_or_none(tokenizer, corpus):
    ids, _, _ = corpus.collate(torch.arange(600))
    pieces = (ids == tokenizer.backend.token_to_id("##s")).nonzero().squeeze(1)
    assert len(pieces) == 200
    together = {}
    for whole_word in (True, False):
        torch.manual_seed(0)
        chosen = Masking(tokenizer, whole_word).choose(ids)
        together[whole_word] = (chosen[pieces] == chosen[pieces - 1]).double().mean()
        assert chosen[pieces].any()
    assert together[True] == 1 and together[False] < 0.9


def test_one_token_is_masked_even_in_a_short_line(tokenizer):
    ids = torch.tensor(tokenizer.encode(["cat"])[0][0])
    assert Masking(tokenizer).choose(ids).tolist() == [False, True, False]
    assert not Masking(tokenizer).choose(torch.tensor([2, 3])).any()
