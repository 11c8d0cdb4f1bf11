"""The teacher's targets, the loss against them, and a run with a teacher."""

import math

import pytest
import torch
from safetensors.torch import load_file
from toy_text import OTHERS, PARTNERS, run, scores, weights

from bert import Bert, BertConfig, Tokenizer
from bert.layout import Layout
from bert.tokenizer import SPECIAL
from pretraining.corpus import read_text
from pretraining.distillation import (
    TeacherTargets,
    compute_targets,
    pairwise_cosines,
    sentence_vectors,
    teacher_loss,
)


def test_sentence_vectors_are_mean_and_first_row():
    layout = Layout(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    hidden = torch.tensor([[1.0, 0], [2, 0], [6, 3], [5, 5]])
    mean, cls = sentence_vectors(hidden, layout)
    assert mean.tolist() == [[3, 1], [5, 5]] and cls.tolist() == [[1, 0], [5, 5]]


def constant_head(predictions, similarity):
    return lambda vectors: (predictions, similarity)


def test_teacher_loss_is_zero_where_the_model_agrees():
    torch.manual_seed(0)
    target, none = torch.randn(6, 4), math.nan
    similarity = torch.tensor([none, 0.5, none, none, -0.1, none])
    agrees = constant_head((target, 3 * target), similarity)
    loss = teacher_loss(agrees, (target, 2 * target), TeacherTargets(target, similarity))
    assert float(loss) < 1e-6


def test_teacher_loss_is_the_formula():
    torch.manual_seed(0)
    vectors, target, no_pairs = torch.randn(6, 3), torch.randn(6, 4), torch.full((6,), math.nan)
    second_term = (pairwise_cosines(vectors) - pairwise_cosines(target)).square().mean()
    opposite = constant_head((-target, -target), torch.zeros(6))
    found = teacher_loss(opposite, (vectors, vectors), TeacherTargets(target, no_pairs))
    torch.testing.assert_close(found, 2 + second_term)       # 1 − cos = 2
    similarity = torch.linspace(0, 1, 6)
    found = teacher_loss(opposite, (vectors, vectors), TeacherTargets(target, similarity))
    torch.testing.assert_close(found, similarity.square().mean())      # pairs: third term only


def test_the_target_of_a_pair_is_the_cosine_of_its_texts(checkpoint, tokenizer):
    bert = Bert.from_pretrained(checkpoint)
    lines = ["the cat is good", "the cat is good\tthe dog is bad", "the dog is bad"]
    targets = compute_targets(tokenizer, bert, lines, torch.device("cpu"))
    first, second = targets.vectors[0].float(), targets.vectors[2].float()
    assert torch.equal(targets.vectors[1], targets.vectors[0])
    assert targets.pair_similarity.isnan().tolist() == [True, False, True]
    torch.testing.assert_close(targets.pair_similarity[1],
                               torch.cosine_similarity(first, second, dim=0))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint with another width, vocabulary and depth than the model that is trained."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    Bert(BertConfig(vocab_size=28, hidden_size=48, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=32, max_position_embeddings=40,
                    initializer_range=0.5)).save_pretrained(folder)
    words = (*SPECIAL, ":", *PARTNERS, *PARTNERS.values(), *OTHERS)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def test_targets_are_the_means_of_the_last_hidden_states(text, teacher):
    bert, tokenizer = Bert.from_pretrained(teacher), Tokenizer.from_pretrained(teacher)
    lines = read_text(text)
    vectors = compute_targets(tokenizer, bert, lines, torch.device("cpu")).vectors
    assert vectors.shape == (300, 48) and vectors.dtype == torch.float16
    by_hand = bert(**tokenizer(lines[0])).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(vectors[0].float(), by_hand, atol=2e-3, rtol=1e-2)


def test_a_model_approaches_its_teacher_twice_alike(text, teacher, tmp_path):
    flags = ("--teacher", teacher, "--steps", 30, "--lr", 5e-3, "--overwrite")
    out = run(text, tmp_path / "out", *flags)
    for name in ("teacher_cosine_mean", "teacher_cosine_cls"):
        assert scores(out)[name] > scores(out, 0)[name] + 0.3
    assert not any("distillation" in name for name in load_file(out / "model.safetensors"))
    before = weights(out)
    run(text, out, *flags)
    assert weights(out) == before
