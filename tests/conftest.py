"""What tests share: a small random checkpoint, small data files, and where real ones lie.

Tests on real weights and data need PLAINBERT_WEIGHTS (a checkpoint folder: all-MiniLM-L6-v2) and
PLAINBERT_DATA (a folder with cs224n/ and glue/ in it); without them they are skipped, unless CI is
set.
"""

import os
import random
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from bert import Bert, BertConfig  # noqa: E402
from bert.tokenizer import SPECIAL  # noqa: E402

REFERENCE = Path(__file__).parent / "reference"
GOOD, BAD = ("good", "fine", "lovely", "great"), ("bad", "dull", "awful", "poor")
THINGS = ("film", "book", "cat", "dog", "song", "house", "car", "meal")
WORDS = (*GOOD, *BAD, *THINGS, "the", "a", "is", "was", "not", "very", "and", "?", ".", "##s")


def real(variable):
    """The folder that an environment variable names; skips the test where it is not set."""
    folder = os.environ.get(variable)
    if not folder and os.environ.get("CI"):
        pytest.fail(f"{variable} is not set, and CI must run the tests on real files")
    return Path(folder) if folder else pytest.skip(f"{variable} is not set")


@pytest.fixture(scope="session")
def real_weights():
    return real("PLAINBERT_WEIGHTS")


@pytest.fixture(scope="session")
def real_data():
    return real("PLAINBERT_DATA") / "cs224n"


@pytest.fixture(scope="session")
def real_glue():
    folder = real("PLAINBERT_DATA") / "glue"
    if not folder.is_dir() and not os.environ.get("CI"):
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(autouse=True)
def small_batches_and_matrices_as_large_ones(monkeypatch):
    """Tests' batches and models are small; they are to take the ways of large ones."""
    monkeypatch.setattr("bert.layout.BUCKET_PAIRS", 200)
    monkeypatch.setattr("bert.memory.KEPT_FROM", 0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a small random BERT and a vocabulary of WORDS."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=64, max_position_embeddings=40)
    Bert(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)) + "\n")
    return folder


class NoWaiting(TorchDispatchMode):
    """Refuses what would make a GPU finish its work before the next line of Python runs."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh")
        assert function.overloadpacket.__name__ not in waits, function
        return function(*arguments, **(options or {}))


def sentence(rng):
    degree = rng.choice(["", "very ", "not "])
    return f"the {rng.choice(THINGS)} is {degree}{rng.choice(GOOD + BAD)} ."


def write_table(path, header, rows):
    table = [("", *header), *((n, *row) for n, row in enumerate(rows))]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in table), encoding="utf-8")


def write_course_data(folder, train=40, dev=16, seed=0):
    """The files of all four tasks, in the course's format."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (                                                # stem, texts, label's column, label
        ("ids-sst", 1, "sentiment", lambda: rng.randrange(5)),
        ("ids-cfimdb", 1, "sentiment", lambda: rng.randrange(2)),
        ("quora", 2, "is_duplicate", lambda: float(rng.randrange(2))),
        ("sts", 2, "similarity", lambda: rng.randrange(51) / 10),
    )
    for split, count in (("train", train), ("dev", dev), ("test-student", dev)):
        for stem, texts, column, label in kinds:
            columns = ("sentence",) if texts == 1 else ("sentence1", "sentence2")
            rows = [(f"{stem}{split}{n}", *(sentence(rng) for _ in columns), label())
                    for n in range(count)]
            width = 1 + texts + (split != "test-student")    # test files have no labels
            header = ("id", *columns, column)[:width]
            write_table(folder / f"{stem}-{split}.csv", header, [row[:width] for row in rows])
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_course_data(tmp_path_factory.mktemp("data") / "course")


@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    """A run on the small checkpoint and data, trained for each module that asks."""
    import train_multitask

    folder = tmp_path_factory.mktemp("runs") / "run"
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(folder),
                          "--batch-size", "8", "--epochs", "6", "--lr", "3e-3"])
    return folder


@pytest.fixture
def script(capfd):
    """Call a script's main as the command line would → exit code, stdout, stderr."""
    from common.cli import run_script

    def call(main, *arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda: main([str(a) for a in arguments]))
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return call
