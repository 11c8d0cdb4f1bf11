"""What the tests of pretraining share: a folder of text, a tokenizer, a small corpus."""

import random

import pytest
import torch
from toy_text import toy_line

from bert import Tokenizer
from pretraining.corpus import Corpus


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Results depend on the number of threads, which holds for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with two files of 150 lines, and one that is no text."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for name in "ab":
        lines = [toy_line(rng) for _ in range(150)]
        (folder / f"{name}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    (folder / "notes.md").write_bytes(b"\0 not text, and not read")
    return folder


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return Tokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def corpus(tokenizer):
    """600 lines of real words, 200 of them with a continuation piece: `film ##s`."""
    lines = ["the films is very good .", "a cat was not dull", "is the dog lovely ?"] * 200
    return Corpus(tokenizer, lines)
