"""Which tokens are masked, and what they become."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from bert import UserError
from pretraining import masking as masking_module
from pretraining.distillation import TeacherTargets
from pretraining.masking import HeldOut, Masking


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


def test_every_ordinary_token_can_take_a_masked_ones_place(tokenizer):
    masking = Masking(tokenizer)
    assert len(masking.special) == tokenizer.vocab_size
    assert masking.ordinary_ids.tolist() == list(range(5, tokenizer.vocab_size))


# ---- held-out lines


@pytest.fixture
def held_out(tokenizer, corpus, monkeypatch):
    monkeypatch.setattr(masking_module, "EVAL_TOKENS", 40)   # several batches
    return HeldOut(corpus, torch.arange(24), torch.arange(24, 600), Masking(tokenizer))


class Table:
    """Stands for a MaskedLM: an id's logits and states are its rows of two tables."""

    def __init__(self, vocabulary):
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.randn(vocabulary, vocabulary, generator=generator)
        self.states = torch.randn(vocabulary, 6, generator=generator)

    def eval(self):
        return self

    def __call__(self, batch, all_rows=False):
        return self.logits[batch.ids[batch.output_rows.rows]], self.states[batch.ids]

    def distillation_head(self, vectors):
        return vectors, vectors[0][:, 0]


def test_the_baseline_predicts_the_commonest_ordinary_token(corpus, held_out, tokenizer):
    ids = corpus.collate(torch.arange(24, 600))[0].tolist()
    commonest, _ = Counter(i for i in ids if i >= 5).most_common(1)[0]
    labels = torch.cat([batch.labels for batch in held_out.batches]).tolist()
    assert held_out.tokens == len(labels) > 0
    assert held_out.baseline == pytest.approx(labels.count(commonest) / len(labels))
    again = HeldOut(corpus, torch.arange(24), torch.arange(24, 600), Masking(tokenizer))
    for one, other in zip(held_out.batches, again.batches):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.labels, other.labels)


def test_scores_are_means_over_all_masked_tokens(held_out, tokenizer):
    model, cpu = Table(tokenizer.vocab_size), torch.device("cpu")
    logits = torch.cat([model(batch)[0] for batch in held_out.batches])
    labels = torch.cat([batch.labels for batch in held_out.batches])
    found = held_out.scores(model, None, cpu, nullcontext)
    assert len(held_out.batches) > 2 and found == {
        "masked_lm_loss": pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5),
        "masked_accuracy": pytest.approx(float((logits.argmax(dim=1) == labels).double().mean())),
        "commonest_token_accuracy": held_out.baseline}
    model.logits[:] = torch.nan
    lines = held_out.batches[0].line_ids
    with pytest.raises(UserError, match=f"outputs for line {lines[0] + 1}.* are not finite"):
        held_out.scores(model, None, cpu, nullcontext)


@pytest.mark.parametrize("pairs", [0, 1, 2, 9])
def test_agreement_is_the_cosine_of_lines_and_the_correlation_of_pairs(held_out, corpus, tokenizer,
                                                                       pairs):
    model, generator = Table(tokenizer.vocab_size), torch.Generator().manual_seed(1)
    similarity = torch.rand(600, generator=generator)
    similarity[pairs:] = torch.nan
    targets = TeacherTargets(torch.randn(600, 6, generator=generator), similarity)
    scores = held_out.scores(model, targets, torch.device("cpu"), nullcontext)
    states = [model.states[corpus.collate(torch.tensor([n]))[0]] for n in range(24)]
    for name, vectors in (("mean", [rows.mean(dim=0) for rows in states]),
                          ("cls", [rows[0] for rows in states])):
        cosines = torch.cosine_similarity(torch.stack(vectors), targets.vectors[:24])
        assert scores[f"teacher_cosine_{name}"] == pytest.approx(float(cosines[pairs:].mean()),
                                                                 abs=1e-5)
    assert ("teacher_pair_correlation" in scores) == (pairs > 1)
    if pairs > 1:
        predicted = torch.stack([rows.mean(dim=0)[0] for rows in states[:pairs]])
        expected = torch.corrcoef(torch.stack([predicted, similarity[:pairs]]))[0, 1]
        assert scores["teacher_pair_correlation"] == pytest.approx(float(expected), abs=1e-4)
