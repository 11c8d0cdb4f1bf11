"""The embedded checkpoint and the default run: what a newcomer sees first."""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from bag_of_words import bag_of_words_scores

import train_multitask
from bert import Bert, Tokenizer
from bert.checkpoint import pretraining_heads
from bert.files import TINY
from multitask.course import read_course_file
from multitask.tasks import TASKS
from pretraining.corpus import Corpus
from pretraining.masking import HeldOut, Masking
from pretraining.model import MaskedLM, load_head

ROOT = Path(__file__).parent.parent.parent


def test_tiny_is_a_whole_checkpoint_of_at_most_8_megabytes():
    assert sum(file.stat().st_size for file in TINY.iterdir() if file.is_file()) <= 8e6
    bert, tokenizer = Bert.from_pretrained("tiny"), Tokenizer.from_pretrained("tiny")
    assert tokenizer.vocab_size == bert.config.vocab_size == 6000
    assert bert(**tokenizer(["a film"])).pooler_output.shape == (1, bert.config.hidden_size)
    assert "cls.predictions.bias" in pretraining_heads("tiny")


def test_masked_words_of_unseen_texts_are_predicted(real_data):
    lines = list(dict.fromkeys(text for task in ("sst", "para", "sts") for example in
                               read_course_file(real_data / TASKS[task].files["dev"], TASKS[task])
                               for text in example.texts))
    tokenizer, model = Tokenizer.from_pretrained("tiny"), MaskedLM(Bert.from_pretrained("tiny"))
    load_head(model.head, pretraining_heads("tiny"), "tiny")
    numbers = torch.arange(len(lines))
    held_out = HeldOut(Corpus(tokenizer, lines, 128), numbers, numbers, Masking(tokenizer))
    scores = held_out.scores(model, None, torch.device("cpu"), nullcontext)
    assert scores["masked_accuracy"] >= scores["commonest_token_accuracy"] + 0.20


def test_tiny_learns_sentiment_that_a_bag_of_words_cannot(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    train_multitask.main(["--tasks", "sst", "--epochs", "5", "--out", str(tmp_path / "run")])
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    bag = bag_of_words_scores(ROOT / "data")
    assert scores["sst"]["accuracy"] >= max(0.75, bag["sst"]["accuracy"] + 0.15)
