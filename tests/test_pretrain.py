"""Masked-LM pretraining: what is hidden, the head, the teacher, a run that stops and goes on."""

import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert import Bert, BertConfig, Tokenizer, UserError
from bert.checkpoint import pretraining_heads
from bert.files import read_tensors
from bert.layout import Layout
from bert.tokenizer import SPECIAL
from pretraining import __main__ as pretrain
from pretraining.corpus import (
    BucketBatchSampler,
    Corpus,
    is_held_out,
    read_text,
    split_by_tokens,
    train_tokenizer,
)
from pretraining.distillation import (
    TeacherTargets,
    compute_targets,
    cosines,
    sentence_vectors,
    teacher_loss,
)
from pretraining.masking import MaskedLM, MaskedLMHead, Masking, masked_batch

ROOT = Path(__file__).parent.parent
WORDS = {"sea": "salt", "sky": "blue", "fire": "heat", "night": "dark", "snow": "cold"}
OTHERS = ("one", "two", "ten", "big", "old", "new", "far", "now", "low", "hot", "dry", "all")
FLAGS = ("--vocab-size", 100, "--hidden", 32, "--layers", 2, "--heads", 2, "--intermediate", 64,
         "--max-positions", 32, "--tokens", 32, "--batch-tokens", 512, "--heldout", 0.1,
         "--device", "cpu", "--threads", 1)


def line(rng):
    """Words that alternate with their partners: `two old : sea salt sea salt`; easy to guess."""
    word, first = rng.choice(list(WORDS)), rng.sample(OTHERS, 2)
    return f"{' '.join(first)} : " + f"{word} {WORDS[word]} " * rng.randrange(2, 5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """--threads holds for the whole process: put it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for name in "ab":
        lines = [line(rng) for _ in range(150)]
        (folder / f"{name}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    (folder / "notes.md").write_bytes(b"\0 not text, and not read")
    return folder


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def many(tokenizer):
    """Ids of 600 lines of real words, one of them with its piece: `film ##s`."""
    lines = ["the films is very good .", "a cat was not dull", "is the dog lovely ?"] * 200
    return Corpus(tokenizer, lines)


def run(text, out, *more):
    pretrain.main([str(flag) for flag in ("--text", text, "--out", out, *FLAGS, *more)])
    return out


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def scores(folder, which=-1):
    """The held-out scores of a run's last (or first) evaluation."""
    log = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry["heldout"] for entry in log if "heldout" in entry][which]


# masking


@pytest.mark.parametrize("whole_word", [False, True])
def test_15_percent_are_chosen_and_hidden_80_10_10(tokenizer, many, whole_word):
    masking = Masking(tokenizer, whole_word)
    torch.manual_seed(0)
    ids, _, _ = many.collate(torch.arange(600))
    ids = ids.repeat(20)
    hidden, chosen = masking(ids)
    special = masking.special[ids]
    assert special.any() and not (chosen & special).any()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    assert int(chosen.sum()) / int((~special).sum()) == pytest.approx(0.15, abs=1e-4)
    chosen_ids, became = ids[chosen], hidden[chosen]
    masked = became == tokenizer.mask_token_id
    kept = (became == chosen_ids).double().mean()            # by chance a random token is the same
    assert masked.double().mean() == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / len(masking.ordinary), abs=0.02)
    assert not masking.special[became[~masked]].any()
    again, _ = masking(ids)
    assert not torch.equal(again, hidden)                    # fresh each time


def test_every_token_is_chosen_as_often(tokenizer, many):
    masking = Masking(tokenizer)
    ids, _, _ = many.collate(torch.arange(3))
    torch.manual_seed(0)
    often = torch.stack([masking.choose(ids) for _ in range(4000)]).double().mean(dim=0)
    ordinary = often[~masking.special[ids]]
    assert (often[masking.special[ids]] == 0).all()
    assert (ordinary - ordinary.mean()).abs().max() < 0.03


def test_whole_word_hides_all_pieces_or_none(tokenizer, many):
    ids, _, _ = many.collate(torch.arange(600))
    pieces = (ids == tokenizer.backend.token_to_id("##s")).nonzero().squeeze(1)
    assert len(pieces) == 200
    together = {}
    for whole_word in (True, False):
        torch.manual_seed(0)
        chosen = Masking(tokenizer, whole_word).choose(ids)
        together[whole_word] = (chosen[pieces] == chosen[pieces - 1]).double().mean()
        assert chosen[pieces].any()
    assert together[True] == 1 and together[False] < 0.9


def test_one_token_is_hidden_even_of_a_short_line(tokenizer):
    ids = torch.tensor(tokenizer.encode(["cat"])[0][0])
    assert Masking(tokenizer).choose(ids).tolist() == [False, True, False]
    assert not Masking(tokenizer).choose(torch.tensor([2, 3])).any()


# head and model


def test_head_is_the_formula_and_tied_to_the_embeddings():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=9)
    model, hidden = MaskedLM(Bert(config)), torch.randn(5, 8)
    head, embeddings = model.head, model.bert.word_embeddings.weight
    torch.nn.init.normal_(head.bias)
    dense = head.transform["dense"]
    x = hidden @ dense.weight.T + dense.bias
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))                      # GELU
    x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-12)
    torch.testing.assert_close(head(hidden, embeddings), x @ embeddings.T + head.bias)
    assert sum(p.numel() for p in head.parameters()) == 8 * 8 + 8 + 2 * 8 + 11   # no decoder
    head(hidden, embeddings).sum().backward()
    assert embeddings.grad.abs().sum() > 0


def test_only_hidden_places_are_computed_with_the_same_result(checkpoint, tokenizer, many):
    model = MaskedLM(Bert.from_pretrained(checkpoint)).eval()
    batch = masked_batch(many, torch.arange(40), Masking(tokenizer))
    few, rows = model(batch.ids, batch.types, batch.layout, batch.output_rows)
    every, hidden = model(batch.ids, batch.types, batch.layout, batch.output_rows, every_row=True)
    assert len(rows) == len(batch.labels) < len(hidden) == len(batch.ids)
    torch.testing.assert_close(few, every)
    whole = model.bert(batch.layout.pad(batch.ids), batch.layout.mask.long()).last_hidden_state
    torch.testing.assert_close(model.head(batch.layout.unpad(whole)[batch.output_rows.rows],
                                          model.bert.word_embeddings.weight), few)
    ids, _, _ = many.collate(batch.lines)
    assert torch.equal(ids[batch.output_rows.rows], batch.labels)


# data


def test_batches_keep_to_the_budget_and_miss_no_line():
    length = torch.randint(3, 30, (500,), generator=torch.Generator().manual_seed(0))
    lines = torch.arange(500)[::2]
    batches = BucketBatchSampler(lines, length, 100, seed=1)
    steps = [batches[step] for step in range(1, 2 * batches.steps_per_epoch + 1)]
    passes = steps[:batches.steps_per_epoch], steps[batches.steps_per_epoch:]
    for batch in passes[0]:
        assert 0 < int(length[batch].sum()) < 130
    assert all(torch.equal(torch.cat(one).sort().values, lines) for one in passes)
    assert not torch.equal(torch.cat(passes[0]), torch.cat(passes[1]))
    again = BucketBatchSampler(lines, length, 100, seed=1)
    assert torch.equal(again[batches.steps_per_epoch + 3], passes[1][2])         # from the step alone
    assert [len(b) for b in split_by_tokens(torch.arange(4), torch.tensor([5, 5, 9, 1]), 10)] == [2, 2]


def test_a_line_is_held_out_by_what_it_says():
    lines = [f"line {n}" for n in range(5000)]
    held = {one for one in lines if is_held_out(one, 0.1)}
    assert 0.08 < len(held) / len(lines) < 0.12
    assert held == {one for one in reversed(lines) if is_held_out(one, 0.1)}


def test_vocabulary_is_the_same_in_every_process(text):
    code = ("import sys; from pretraining.corpus import read_text, train_tokenizer; "
            "tokenizer = train_tokenizer(read_text(sys.argv[1]), 100, 32); "
            "print(tokenizer.files['vocab.txt'].decode())")
    made = [subprocess.run([sys.executable, "-c", code, str(text)], cwd=ROOT, text=True, check=True,
                           capture_output=True).stdout for _ in range(2)]
    assert made[0] == made[1]
    vocabulary = made[0].split()
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(vocabulary) <= 100 and {"sea", "salt"} <= set(vocabulary)


def test_vocabulary_that_cannot_hold_the_characters_is_refused():
    with pytest.raises(UserError, match="--vocab-size 12 is too few"):
        train_tokenizer(["abcdefgh abcdefgh"], 12, 32)


# teacher


def test_sentence_vectors_are_mean_and_first_row():
    layout = Layout(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    hidden = torch.tensor([[1.0, 0], [2, 0], [6, 3], [5, 5]])
    mean, cls = sentence_vectors(hidden, layout)
    assert mean.tolist() == [[3, 1], [5, 5]] and cls.tolist() == [[1, 0], [5, 5]]


def student_that_says(guesses, pair_similarity):
    return lambda vectors: (guesses, pair_similarity)


def test_teacher_loss_is_nothing_where_the_student_agrees():
    torch.manual_seed(0)
    target, none = torch.randn(6, 4), math.nan
    pair_similarity = torch.tensor([none, 0.5, none, none, -0.1, none])
    agrees = student_that_says((target, 3 * target), pair_similarity)
    assert float(teacher_loss(agrees, (target, 2 * target), TeacherTargets(target, pair_similarity))) < 1e-6


def test_teacher_loss_is_the_formula():
    torch.manual_seed(0)
    vectors, target, alone = torch.randn(6, 3), torch.randn(6, 4), torch.full((6,), math.nan)
    apart = (cosines(vectors) - cosines(target)).square().mean()
    opposite = student_that_says((-target, -target), torch.zeros(6))
    found = teacher_loss(opposite, (vectors, vectors), TeacherTargets(target, alone))
    torch.testing.assert_close(found, 2 + apart)             # 1 − cos = 2
    pair_similarity = torch.linspace(0, 1, 6)
    found = teacher_loss(opposite, (vectors, vectors), TeacherTargets(target, pair_similarity))
    torch.testing.assert_close(found, pair_similarity.square().mean())  # pairs are not placed


def test_a_pairs_goal_is_the_cosine_of_its_texts(checkpoint, tokenizer, tmp_path):
    bert = Bert.from_pretrained(checkpoint)
    lines = ["the cat is good", "the cat is good\tthe dog is bad", "the dog is bad"]
    goal = compute_targets(tokenizer, bert, lines, tmp_path / "goal.safetensors", torch.device("cpu"))
    first, second = goal.vectors[0].float(), goal.vectors[2].float()
    assert torch.equal(goal.vectors[1], goal.vectors[0])
    assert goal.pair_similarity.isnan().tolist() == [True, False, True]
    torch.testing.assert_close(goal.pair_similarity[1], torch.cosine_similarity(first, second, dim=0))


def test_a_line_with_a_tab_is_a_pair(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the  cat\tthe dog \nthe film\t\n a \t b \t c\n")
    lines = read_text(tmp_path)
    assert lines == ["the cat\tthe dog", "the film", "a b c"]
    ids, types, layout = Corpus(tokenizer, lines).collate(torch.tensor([0, 1]))
    batch = tokenizer(["the cat"], pairs=["the dog"])
    assert torch.equal(ids[:7], batch["input_ids"][0]) and len(ids) == 11
    assert torch.equal(types[:7], batch["token_type_ids"][0]) and not types[7:].any()


def test_a_teacher_is_approached_and_asked_once(text, checkpoint, tmp_path, monkeypatch, capfd):
    torch.manual_seed(1)
    config = BertConfig(vocab_size=28, hidden_size=48, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=40, initializer_range=0.5)
    teacher = tmp_path / "teacher"
    Bert(config).save_pretrained(teacher)
    words = (*SPECIAL, ":", *WORDS, *WORDS.values(), *OTHERS)
    (teacher / "vocab.txt").write_text("\n".join(words) + "\n")
    more = ("--teacher", teacher, "--steps", 30, "--lr", 5e-3, "--overwrite")
    out = run(text, tmp_path / "out", *more)
    for name in ("teacher_cosine_mean", "teacher_cosine_cls"):
        assert scores(out)[name] > scores(out, 0)[name] + 0.3
    assert not any("student" in name for name in load_file(out / "model.safetensors"))
    vectors = read_tensors(out / "teacher.safetensors")["vectors"]
    assert vectors.shape == (300, 48) and vectors.dtype == torch.float16
    bert, tokenizer = Bert.from_pretrained(teacher), Tokenizer.from_pretrained(teacher)
    first = " ".join((text / "a.txt").read_text().splitlines()[0].split())
    by_hand = bert(**tokenizer(first)).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(vectors[0].float(), by_hand, atol=2e-3, rtol=1e-2)

    before, stamp = weights(out), (out / "teacher.safetensors").stat().st_mtime_ns
    run(text, out, *more)                                    # the teacher's vectors are still there
    assert weights(out) == before and (out / "teacher.safetensors").stat().st_mtime_ns == stamp


# whole runs


@pytest.fixture(scope="module")
def learned(text, tmp_path_factory):
    return run(text, tmp_path_factory.mktemp("runs") / "learned", "--steps", 150, "--lr", 5e-3,
               "--eval-every", 75, "--dropout", 0)


def test_training_lowers_the_loss_and_beats_the_commonest_token(learned):
    before, after = scores(learned, 0), scores(learned)
    vocabulary = Tokenizer.from_pretrained(learned).vocab_size
    assert before["masked_lm_loss"] == pytest.approx(math.log(vocabulary), abs=0.3)
    assert after["masked_lm_loss"] < 0.7 * before["masked_lm_loss"]
    assert after["masked_accuracy"] > after["commonest_token_accuracy"] + 0.2
    assert json.loads((learned / "metrics.json").read_text()) == after


def test_a_run_leaves_a_whole_checkpoint(learned):
    assert {f.name for f in learned.iterdir()} == {
        "config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "metrics.json",
        "log.jsonl", "loss.png", "pretrain.json", "last"}
    assert (learned / "loss.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((learned / "pretrain.json").read_text())
    assert record["complete"] and record["data"]["lines"] == 300 and record["seconds"] > 0
    bert, tokenizer = Bert.from_pretrained(learned), Tokenizer.from_pretrained(learned)
    assert tokenizer.limit == 32 and tokenizer.encode(["SEA"]) == tokenizer.encode(["sea"])
    heads = pretraining_heads(learned)
    assert set(heads) == {pretrain.HEAD + name for name in MaskedLMHead(bert.config).state_dict()}
    model = MaskedLM(bert)
    assert pretrain.load_head(model.head, heads, learned)
    ids = torch.tensor(tokenizer.encode(["two old : sea [MASK] sea salt"])[0][0])
    layout = Layout(torch.ones(1, len(ids)))
    read = layout.select((ids == tokenizer.mask_token_id)[None])
    logits, _ = model.eval()(ids, ids * 0, layout, read)
    assert int(logits.argmax()) == tokenizer.backend.token_to_id("salt")


def test_transformers_opens_it(learned):
    transformers = pytest.importorskip("transformers")
    ids = torch.tensor(Tokenizer.from_pretrained(learned).encode(["sea [MASK] sea salt"])[0])
    bert = Bert.from_pretrained(learned)
    with torch.no_grad():
        theirs = transformers.BertForMaskedLM.from_pretrained(learned).eval()(ids).logits[0]
        hidden, layout = bert.embed(ids)
        head = MaskedLMHead(bert.config)
        pretrain.load_head(head, pretraining_heads(learned), learned)
        ours = head(bert.encode(hidden, layout), bert.word_embeddings.weight)
        encoder = transformers.BertModel.from_pretrained(learned).eval()
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(bert(ids).pooler_output, encoder(ids).pooler_output,
                                   atol=1e-5, rtol=1e-4)


def test_init_goes_on_where_it_ended_and_half_is_half(learned, text, tmp_path):
    flags = ("--text", text, "--out", tmp_path / "more", "--init", learned, "--steps", 1,
             "--heldout", 0.1, "--tokens", 32, "--half", "--device", "cpu")
    pretrain.main([str(flag) for flag in flags])
    assert scores(tmp_path / "more", 0) == pytest.approx(scores(learned), rel=1e-4)
    tensors = load_file(tmp_path / "more" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert Bert.from_pretrained(tmp_path / "more").word_embeddings.weight.dtype == torch.float32
    assert Tokenizer.from_pretrained(tmp_path / "more").files["vocab.txt"] == (
        learned / "vocab.txt").read_bytes()


def test_init_without_a_head_gets_one_and_other_heads_stay(checkpoint, text, tmp_path, capfd):
    start = tmp_path / "start"
    Bert.from_pretrained(checkpoint).save_pretrained(start)
    tensors = load_file(start / "model.safetensors") | {
        "cls.seq_relationship.weight": torch.randn(2, 32),
        "cls.seq_relationship.bias": torch.ones(2)}
    save_file(tensors, start / "model.safetensors")
    flags = ("--text", text, "--out", tmp_path / "out", "--init", start, "--heldout", 0.1,
             "--steps", 1, "--device", "cpu")
    (start / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS, *WORDS.values())) + "\n")
    pretrain.main([str(flag) for flag in flags])
    assert "has no masked-LM head; a new one begins" in capfd.readouterr().out
    heads = pretraining_heads(tmp_path / "out")
    assert torch.equal(heads["cls.seq_relationship.weight"], tensors["cls.seq_relationship.weight"])
    assert pretrain.HEAD + "bias" in heads


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    return run(text, tmp_path_factory.mktemp("runs") / "whole", *RESUMED)


RESUMED = ("--steps", 12, "--save-every", 4, "--eval-every", 5, "--whole-word")


def assert_same_run(one, other):
    assert weights(one) == weights(other)
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    assert all(scores(one, n) == scores(other, n) for n in range(4))     # steps 0, 5, 10, 12


def test_killed_and_resumed_is_uninterrupted(uninterrupted, text, tmp_path, capfd):
    """Killed in step 7; the last state is of step 4, and step 5 has been evaluated."""
    code = ("import os, signal, sys; from bert import pretrain\n"
            "real = pretrain.losses_of; calls = []\n"
            "def losses_of(*a):\n"
            "    calls.append(1)\n"
            "    if len(calls) == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(*a)\n"
            "pretrain.losses_of = losses_of; pretrain.main(sys.argv[1:])")
    flags = [str(f) for f in ("--text", text, "--out", tmp_path / "run", *FLAGS, *RESUMED)]
    killed = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-500:]
    assert json.loads((tmp_path / "run" / "pretrain.json").read_text())["complete"] is False
    Bert.from_pretrained(tmp_path / "run")                   # the checkpoint is whole at any time
    pretrain.main(["--resume", str(tmp_path / "run")])
    assert_same_run(tmp_path / "run", uninterrupted)
    capfd.readouterr()
    pretrain.main(["--resume", str(tmp_path / "run")])
    assert "is complete" in capfd.readouterr().out


def test_stopped_by_ctrl_c_and_resumed_is_uninterrupted(uninterrupted, text, tmp_path, script,
                                                        monkeypatch):
    real, calls = pretrain.losses_of, []

    def losses_of(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(pretrain, "losses_of", losses_of)
    out = tmp_path / "run"
    code, _, err = script(pretrain.main, "--text", text, "--out", out, *FLAGS, *RESUMED)
    assert code == 130 and "stopped after step 6 of 12" in err
    assert f"python -m pretraining --resume {out}" in err
    assert script(pretrain.main, "--resume", out)[0] == 0
    assert_same_run(out, uninterrupted)


# bad input


def bad_file(content):
    def make(folder):
        (folder / "text").mkdir()
        (folder / "text" / "a.txt").write_bytes(b"a good line\n")
        (folder / "text" / "b.txt").write_bytes(content)
    return make


def empty(folder):
    (folder / "text").mkdir()


BAD = {  # what: (prepare, more flags, words of the sentence)
    "no text": (None, (), ("--text", "does not exist")),
    "empty folder": (empty, (), ("holds no .txt file",)),
    "white space": (lambda f: (f / "text").write_text(" \n\t\n"), (), ("every line is empty",)),
    "binary": (bad_file(b"one\ntwo\0\n"), (), ("b.txt line 2", "zero byte")),
    "not UTF-8": (bad_file(b"one\ntwo\nna\xefve\n"), (), ("b.txt line 3", "0xef", "UTF-8")),
    "too little": (lambda f: (f / "text").write_text("ab ab\n" * 9), (), ("held out", "--heldout")),
    "one line is longer than a batch": (None, ("--batch-tokens", 16), ("--batch-tokens 16",)),
    "longer than positions": (None, ("--tokens", 64), ("--tokens 64", "--max-positions 32")),
    "heads": (bad_file(b"ab ab\ncd cd\nef ef\n"), ("--heads", 5, "--heldout", 0.5), ("divide",)),
    "heldout": (None, ("--heldout", 1), ("--heldout",)),
    "type": (None, ("--layers", "two"), ("--layers", "two")),
    "least": (None, ("--layers", 0), ("--layers is 0", "1 or more")),
    "unknown flag": (None, ("--layer", 2), ("--layer", "did you mean --layers")),
    "init and architecture": (None, ("--init", "x"), ("--init", "--hidden")),
    "teacher": (bad_file(b"ab ab\ncd cd\nef ef\n" * 3), ("--heldout", 0.5, "--teacher", "./none"),
                ("./none", "not a folder")),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_writes_nothing(case, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, more, words = case
    if make:
        make(tmp_path)
    code, _, err = script(pretrain.main, "--text", "text", "--out", "out", *FLAGS, *more)
    sentence = err.splitlines()[-1]
    assert code == 2 and sentence.startswith("error: "), err
    assert all(word in sentence for word in words), err
    assert not Path("out").exists()


def test_out_is_never_overwritten_unasked(learned, text, tmp_path, script):
    before = weights(learned)
    for flags, words in ((("--out", learned), "--overwrite replaces it"),
                         (("--out", text, "--overwrite"), "no pretraining run"),
                         (("--out", text / "a.txt"), "is a file")):
        code, _, err = script(pretrain.main, "--text", text, *FLAGS, *flags)
        assert code == 2 and words in err
    code, _, err = script(pretrain.main, "--text", text, "--out", learned, "--init", learned,
                          "--overwrite")
    assert code == 2 and "the same folder" in err and weights(learned) == before


def test_resume_is_refused_where_it_cannot_go_on(learned, text, tmp_path, script):
    assert "no pretrain.json" in script(pretrain.main, "--resume", tmp_path)[2]
    code, _, err = script(pretrain.main, "--resume", learned, "--lr", 1)
    assert code == 2 and "--resume goes on by the run's own settings" in err
    assert "--text and --out are needed" in script(pretrain.main)[2]


def test_resume_notices_another_text(text, tmp_path, script, monkeypatch):
    other, out = tmp_path / "text", tmp_path / "run"
    other.mkdir()
    (other / "a.txt").write_bytes((text / "a.txt").read_bytes())
    monkeypatch.setattr(pretrain, "finish", lambda *arguments: None)     # so it is not complete
    run(other, out, "--steps", 1)
    (other / "a.txt").write_bytes((text / "b.txt").read_bytes())
    code, _, err = script(pretrain.main, "--resume", out)
    assert code == 2 and "no longer that which the run" in err


def test_help_teaches(script):
    code, out, _ = script(pretrain.main, "--help")
    assert code == 0 and "80 % become [MASK]" in out
    assert "--whole-word" in out and "(default: 128)" in out
