"""Whole runs: what they learn and leave, how they stop and go on, what they refuse."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_text import FLAGS, PARTNERS, run, scores, weights

from bert import Bert, Tokenizer
from bert.checkpoint import pretraining_heads
from bert.layout import Layout
from bert.tokenizer import SPECIAL
from pretraining import __main__ as pretrain
from pretraining.masking import Batch
from pretraining.model import HEAD, MaskedLM, MaskedLMHead, load_head

ROOT = Path(__file__).parent.parent.parent


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
    assert set(heads) == {HEAD + name for name in MaskedLMHead(bert.config).state_dict()}
    model = MaskedLM(bert)
    assert load_head(model.head, heads, learned)
    ids = torch.tensor(tokenizer.encode(["two old : sea [MASK] sea salt"])[0][0])
    layout = Layout(torch.ones(1, len(ids)))
    rows = layout.select((ids == tokenizer.mask_token_id)[None])
    logits, _ = model.eval()(Batch(None, ids, ids * 0, layout, rows, None))
    assert int(logits.argmax()) == tokenizer.backend.token_to_id("salt")


def test_transformers_opens_it(learned):
    transformers = pytest.importorskip("transformers")
    ids = torch.tensor(Tokenizer.from_pretrained(learned).encode(["sea [MASK] sea salt"])[0])
    bert = Bert.from_pretrained(learned)
    with torch.no_grad():
        theirs = transformers.BertForMaskedLM.from_pretrained(learned).eval()(ids).logits[0]
        hidden, layout = bert.embed(ids)
        head = MaskedLMHead(bert.config)
        load_head(head, pretraining_heads(learned), learned)
        ours = head(bert.encode(hidden, layout), bert.word_embeddings.weight)
        encoder = transformers.BertModel.from_pretrained(learned).eval()
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(bert(ids).pooler_output, encoder(ids).pooler_output,
                                   atol=1e-5, rtol=1e-4)


def test_init_begins_with_the_scores_of_the_checkpoint(learned, text, tmp_path):
    flags = ("--text", text, "--out", tmp_path / "more", "--init", learned, "--steps", 1,
             "--heldout", 0.1, "--max-length", 32, "--device", "cpu")
    pretrain.main([str(flag) for flag in flags])
    assert scores(tmp_path / "more", 0) == pytest.approx(scores(learned), rel=1e-4)
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
    (start / "vocab.txt").write_text("\n".join((*SPECIAL, *PARTNERS, *PARTNERS.values())) + "\n")
    pretrain.main([str(flag) for flag in flags])
    assert "has no masked-LM head; a new one begins" in capfd.readouterr().out
    heads = pretraining_heads(tmp_path / "out")
    assert torch.equal(heads["cls.seq_relationship.weight"], tensors["cls.seq_relationship.weight"])
    assert HEAD + "bias" in heads


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    return run(text, tmp_path_factory.mktemp("runs") / "whole", *RESUMED)


RESUMED = ("--steps", 12, "--save-every", 4, "--eval-every", 5, "--whole-word")


def assert_same_run(one, other):
    assert weights(one) == weights(other)
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    assert all(scores(one, n) == scores(other, n) for n in range(4))     # steps 0, 5, 10, 12
    logs = [[json.loads(line) | {"seconds": 0} for line in (run / "log.jsonl").read_text()
             .splitlines()] for run in (one, other)]
    assert logs[0] == logs[1]


def test_killed_and_resumed_is_uninterrupted(uninterrupted, text, tmp_path, capfd):
    """Killed in step 7; the last state is of step 4, and step 5 has been evaluated."""
    code = ("import os, signal, sys; from pretraining import __main__ as pretrain\n"
            "real = pretrain.compute_losses; calls = []\n"
            "def compute_losses(*a):\n"
            "    calls.append(1)\n"
            "    if len(calls) == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(*a)\n"
            "pretrain.compute_losses = compute_losses; pretrain.main(sys.argv[1:])")
    flags = [str(f) for f in ("--text", text, "--out", tmp_path / "run", *FLAGS, *RESUMED)]
    killed = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})
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
    real, calls = pretrain.compute_losses, []

    def compute_losses(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(pretrain, "compute_losses", compute_losses)
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
    "longer than positions": (None, ("--max-length", 64),
                              ("--max-length 64", "--max-positions 32")),
    "heads": (bad_file(b"ab ab\ncd cd\nef ef\n"), ("--heads", 5, "--heldout", 0.5), ("divide",)),
    "heldout": (None, ("--heldout", 1), ("--heldout",)),
    "type": (None, ("--layers", "two"), ("--layers", "two")),
    "below the minimum": (None, ("--layers", 0), ("--layers is 0", "1 or more")),
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
    assert code == 2 and "lies in --out" in err and weights(learned) == before


def test_resume_is_refused_where_it_cannot_go_on(learned, text, tmp_path, script):
    assert "no pretrain.json" in script(pretrain.main, "--resume", tmp_path)[2]
    code, _, err = script(pretrain.main, "--resume", learned, "--lr", 1)
    assert code == 2 and "--resume goes on by the run's own settings" in err
    assert "--text and --out are needed" in script(pretrain.main)[2]


def test_a_run_of_an_older_format_is_answered_in_a_sentence(tmp_path, script):
    for record, words in (({"settings": {}}, "is of format 1"), ({"version": 2}, "lacks settings"),
                          ({"version": 2, "settings": {"lines": 1}, "data": {}, "complete": False},
                           "is damaged")):
        (tmp_path / "pretrain.json").write_text(json.dumps(record))
        code, _, err = script(pretrain.main, "--resume", tmp_path)
        assert code == 2 and words in err.splitlines()[-1] and "pretrain.json" in err


def test_resume_notices_another_text(text, tmp_path, script, monkeypatch):
    other, out = tmp_path / "text", tmp_path / "run"
    other.mkdir()
    (other / "a.txt").write_bytes((text / "a.txt").read_bytes())
    monkeypatch.setattr(pretrain.run, "finish", lambda *arguments: None)     # not complete
    run(other, out, "--steps", 1)
    (other / "a.txt").write_bytes((text / "b.txt").read_bytes())
    code, _, err = script(pretrain.main, "--resume", out)
    assert code == 2 and "no longer that which the run" in err


def test_help_teaches(script):
    code, out, _ = script(pretrain.main, "--help")
    assert code == 0 and "80 % become [MASK]" in out
    assert "--whole-word" in out and "(default: 128)" in out
