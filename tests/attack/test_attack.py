"""Attacks: which words may change, what is maximized, and that success is that of a text."""

import json

import pytest
import torch

import train_multitask
from attack import __main__ as command
from attack import words
from attack.baselines import METHODS
from attack.examples import Attack
from attack.multistep import best_candidates
from attack.objective import Objective, margin
from attack.problem import Problem
from bert import Bert, Tokenizer
from common.cli import StopSignal, UserStop
from multitask import runs
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import run_split
from multitask.session import RunSession
from pretraining.model import MaskedLM, save_checkpoint

FLAGS = ("--limit", "8", "--steps", "4", "--samples", "2", "--candidates", "8", "--seed", "1")


# ---- words

def test_only_whole_words_that_stay_themselves_are_used():
    tokenizer = Tokenizer.from_pretrained("tiny")
    usable = words.usable_words(tokenizer)
    names = [tokenizer.backend.id_to_token(number) for number in usable]
    assert len(names) > 1000 and "film" in names and "a" in names
    assert not any(name.startswith(("[", "##")) or not name.isalpha() for name in names)
    assert tokenizer.encode(names)[0] == [tokenizer.encode(["a"])[0][0][:1] + [number]
                                          + tokenizer.encode(["a"])[0][0][-1:] for number in usable]


def test_a_changed_text_is_the_same_elsewhere_to_the_letter():
    tokenizer = Tokenizer.from_pretrained("tiny")
    usable = set(words.usable_words(tokenizer))
    text = "The film's plot,  it DIDN'T bore  me (much)!"
    spans = words.word_spans(tokenizer, text, usable, 99)
    found = [text[start:end] for _, start, end in spans]
    assert "film" not in found and "s" not in found and "T" not in found
    assert {"The", "it", "me", "much"} <= set(found)
    new = [("book" if word == "me" else None) for word in found]
    assert words.replace_words(text, spans, new) == text.replace("me", "book")
    assert words.replace_words(text, spans, new, "[{}]") == text.replace("me", "[book]")
    assert not words.word_spans(tokenizer, text, usable, 0)


def test_the_first_candidate_is_the_word_itself():
    embeddings = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    usable, ids = list(range(5, 30)), torch.tensor([7, 20, 7])
    found = words.nearest_words(embeddings, ids, usable, 6)
    assert torch.equal(found[:, 0], ids) and found.min() >= 5
    assert all(len(set(row)) == 6 for row in found.tolist())
    assert words.nearest_words(embeddings, ids, usable, 99).shape == (3, 25)


# ---- the objective

def opened(run, task="sst", limit=8, **more):
    view = type("View", (), {"run": str(run), "data": None, "device": "cpu", "precision": None})
    settings = {"limit": limit, "seed": 1, "sentence": 2, "candidates": 8, "max_changed": 0.5,
                "similarity": None, "fluency": 1.0, "steps": 4, "least": 0, "samples": 2} | more
    return Attack(RunSession(view), task, settings)


@pytest.fixture(scope="module")
def attack(run):
    return opened(run, limit=0)


def whole(attack):
    return attack.problem([n for n in range(len(attack.examples)) if attack.spans[n]][:5])


def objective(attack, problem, similarity=20.0, **more):
    return Objective(attack.victim, problem, attack.idf, similarity, 1.0, **more)


def test_the_original_words_give_the_outputs_of_the_run(attack):
    problem = whole(attack)
    nothing = torch.zeros_like(problem.positions)
    found = objective(attack, problem).hard_margins(problem, nothing)
    outputs = attack.session.model(attack.task, problem.batch)
    torch.testing.assert_close(found, margin(outputs, problem.labels), atol=1e-5, rtol=0)


def test_similarity_is_of_the_states_half_way_up(attack):
    problem, bert, states = whole(attack), attack.victim.bert, []
    embeds = problem.embed(attack.victim.embeddings,
                           problem.one_hot(torch.zeros_like(problem.positions)))
    logits, found = attack.victim(problem.batch, embeds)
    bert.encode(*bert.embed(problem.batch.input_ids, problem.batch.layout), states=states)
    assert len(states) == 2
    torch.testing.assert_close(found, states[0], atol=1e-5, rtol=0)


def test_kept_examples_have_the_same_score(attack):
    problem = whole(attack)
    goal = objective(attack, problem)
    weights = torch.randn(problem.candidates.shape, generator=torch.Generator().manual_seed(0))
    probabilities = weights.softmax(dim=1)
    stay = torch.tensor([True, False, True, False, True])
    kept, chosen = problem.keep(stay)
    for before, after in zip(goal(problem, probabilities), goal(kept, probabilities[chosen])):
        torch.testing.assert_close(before[stay], after, atol=1e-5, rtol=0)
    assert goal.passes[:, 0].tolist() == [3, 2, 3, 2, 3]     # one of the original, for similarity
    again, _ = kept.keep(torch.tensor([False, True, True]))
    assert again.numbers.tolist() == [2, 4]


def test_an_unchanged_text_is_alike_to_itself(attack):
    problem = whole(attack)
    goal = objective(attack, problem)
    score, margins = goal(problem, problem.one_hot(torch.zeros_like(problem.positions)))
    torch.testing.assert_close(score, 20 - torch.relu(margins + 5), atol=1e-4, rtol=0)


def test_the_gradient_is_that_of_the_score(attack):
    problem = whole(attack)
    goal = objective(attack, problem)
    weights = torch.randn(problem.candidates.shape, generator=torch.Generator().manual_seed(0))
    probabilities, step = weights.softmax(dim=1), 3e-3
    _, _, gradient = goal.gradient(problem, probabilities)
    direction = probabilities * torch.randn_like(probabilities)
    with torch.no_grad():
        up, down = (goal(problem, probabilities + sign * step * direction)[0].sum()
                    for sign in (1, -1))
    measured = float((up - down) / (2 * step))
    assert float((gradient * direction).sum()) == pytest.approx(measured, rel=0.02, abs=0.01)


def test_the_candidates_are_those_of_the_equation():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(1, 9, generator=generator).softmax(dim=1)
    g = torch.randn(1, 9, generator=generator)
    rating = [float(p[0, v] + (1 + torch.cosine_similarity(torch.eye(9)[v] - p[0], g[0], dim=0))
                    / 2) / 2 for v in range(9)]
    found, near = best_candidates(p, g)
    assert found[0].tolist() == sorted(range(9), key=lambda v: -rating[v])[:5]
    assert near[0].tolist() == [rating[v] >= max(rating) - 0.5 for v in found[0].tolist()]


def test_a_budget_keeps_the_first_in_order():
    problem = Problem(*[None] * 5, example=torch.tensor([0, 0, 0, 1]), row=None, column=None,
                      candidates=torch.zeros(4, 3), budget=torch.tensor([2, 1]))
    found = problem.within_budget(torch.tensor([1, 2, 1, 2]), torch.tensor([0.1, 0.9, 0.5, 0.2]))
    assert found.tolist() == [0, 2, 1, 2]


# ---- the command

def attacked(run, script, out, *flags):
    code, text, err = script(command.main, run, "--task", "sst", *FLAGS, "--out", out, *flags)
    assert not code, err
    return text


@pytest.fixture(scope="module")
def lm(checkpoint, tmp_path_factory):
    """A checkpoint with the vocabulary of `run`, other weights and a masked-LM head."""
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(5)
    Tokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    save_checkpoint(folder, MaskedLM(Bert(Bert.from_pretrained(checkpoint).config)), {})
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_success_is_that_of_the_text(run, method, lm, tmp_path, script):
    out = attacked(run, script, tmp_path, "--method", method, "--lm", lm, "--max-changed", 0.5)
    header, *records = map(json.loads, (tmp_path / f"sst-{method}.jsonl").read_text().splitlines())
    assert header["victim"] and header["settings"]["steps"] == 4 and records
    model, tokenizer, settings, _ = runs.open_run(run)
    split = tokenize([Example("", (r["adversarial"],), 0.0) for r in records], tokenizer)
    view = opened(run)
    outputs = run_split(model, "sst", split, torch.device("cpu"), view.session.autocast)
    for record, new in zip(records, outputs.argmax(dim=1).tolist()):
        assert record["after"] == new and record["success"] == (new != record["label"])
        assert record["changed"] <= max(1, record["words"] // 2)
        assert (record["changed"] == 0) == (record["adversarial"] == record["texts"][0])
        assert record["forward"] and (method == "argmax" or record["backward"])
    for row in ("accuracy after", "similarity", "log-likelihood of a token after", "forward"):
        assert row in out


def test_the_same_command_finds_the_same_and_a_stopped_one_goes_on(run, tmp_path, script,
                                                                   monkeypatch):
    monkeypatch.setattr("attack.examples.TOKENS", 24)        # several batches
    flags = ("--limit", "0", "--method", "gumbel,multistep")
    attacked(run, script, tmp_path / "one", *flags)
    monkeypatch.setattr(StopSignal, "asked", True)
    with pytest.raises(UserStop, match="the same command goes on"):
        command.main([str(run), "--task", "sst", *FLAGS, "--out", str(tmp_path / "two"),
                      *flags])
    monkeypatch.setattr(StopSignal, "asked", False)
    lines = (tmp_path / "one" / "sst-gumbel.jsonl").read_text().splitlines()
    (tmp_path / "two").mkdir(exist_ok=True)
    (tmp_path / "two" / "sst-gumbel.jsonl").write_text(      # some batches, and a cut line
        "\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    attacked(run, script, tmp_path / "two", *flags)
    for file in ("sst-gumbel.jsonl", "sst-multistep.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    code, _, err = script(command.main, run, "--task", "sst", *FLAGS, "--steps", 5, "--out",
                          tmp_path / "two", "--method", "gumbel")
    assert code == 2 and "is of an attack with other settings" in err


KINDS = {"lora": ("--lora", 2), "separate": ("--encoders", "separate"),
         "pruned": ("--keep-heads", "0.5"), "two texts": ("--pairs", "separate"),
         "r-softmax": ("--attention", "r-softmax")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_can_be_a_victim(kind, checkpoint, data, tmp_path, script):
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out",
                          str(tmp_path / "run"), "--tasks", "sst,para", "--steps", "2",
                          "--batch-size", "8", *map(str, KINDS[kind])])
    for sentence in (1, 2):
        code, out, err = script(command.main, tmp_path / "run", "--task", "para", *FLAGS,
                                "--sentence", sentence, "--out", tmp_path / str(sentence))
        assert not code and "accuracy after" in out, err
        _, *records = map(json.loads, (tmp_path / str(sentence) / "para-multistep.jsonl"
                                       ).read_text().splitlines())
        attack = opened(tmp_path / "run", "para", sentence=sentence)
        problem = attack.problem([0, 1])
        goal = objective(attack, problem)
        found = goal.hard_margins(problem, torch.zeros_like(problem.positions))
        outputs = attack.session.model("para", problem.batch).squeeze(1)
        torch.testing.assert_close(found, torch.where(problem.labels == 1, outputs, -outputs),
                                   atol=1e-5, rtol=0)
        assert all(r["texts"][sentence - 1] != r["adversarial"] or not r["changed"]
                   for r in records)


def test_what_cannot_be_attacked_is_a_sentence(run, lm, data, tmp_path, script):
    for flags, sentence in (
            (("--task", "sts"), "sts is a regression"),
            (("--task", "sat"), "there is no task of the run 'sat' (did you mean"),
            (("--method", "multi"), "there is no method 'multi' (did you mean multistep?)"),
            (("--max-changed", 2), "--max-changed is 2.0; it must be 0 or more and 1 or less"),
            (("--lm", "tiny"), "has another vocabulary than the run"),
            (("--lm", lm, "--judge", lm), "must be judged by another encoder")):
        code, _, err = script(command.main, run, *FLAGS, "--out", tmp_path, *flags)
        assert code == 2 and sentence in err, err


def test_texts_without_a_word_to_change_are_counted_and_left_alone(run, data, tmp_path, script):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = ["?", "zebra", "the cat is good .", "film"]
    for label in range(5):
        text = "\tid\tsentence\tsentiment\n" + "".join(
            f"{n}\tx{n}\t{row}\t{label}\n" for n, row in enumerate(rows))
        (folder / "ids-sst-dev.csv").write_text(text)
        code, out, err = script(command.main, run, "--task", "sst", "--data", folder, *FLAGS,
                                "--out", tmp_path / str(label))
        assert code in (0, 2) and ("accuracy after" in out) == (not code)
        assert not code or "nothing to attack" in err
