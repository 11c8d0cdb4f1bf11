"""What the tests of early exit share: a checkpoint of four layers, runs on it, and exits."""

import pytest
import torch
from conftest import WORDS
from matplotlib.figure import Figure

import early_exit.__main__ as command
import train_multitask
from bert import Bert, BertConfig
from bert.tokenizer import SPECIAL
from early_exit import training

training.ENSEMBLE_STEPS = 10                 # tests need no fitted ensemble
TRAIN = ("--batch-size", "8", "--steps", "3", "--lr", "3e-3")


@pytest.fixture
def pictures():
    """A test that asks for this draws pictures."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """The other tests draw none, which takes longer than all else that they do."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda *arguments, **options: None)


@pytest.fixture(scope="session")
def deep_checkpoint(tmp_path_factory):
    """A folder with a small random BERT of four layers."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=4,
                        num_attention_heads=4, intermediate_size=64, max_position_embeddings=40,
                        initializer_range=0.2)
    Bert(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS)) + "\n")
    return folder


@pytest.fixture(scope="session")
def trained(deep_checkpoint, data, tmp_path_factory):
    """A function: flags of train_multitask.py → the run's folder, trained once."""
    made = {}

    def train(*flags):
        if flags not in made:
            made[flags] = tmp_path_factory.mktemp("run") / "run"
            train_multitask.main(["--bert", str(deep_checkpoint), "--data", str(data), "--out",
                                  str(made[flags]), *TRAIN, *flags])
        return made[flags]

    return train


@pytest.fixture(scope="session")
def with_exits(trained, tmp_path_factory):
    """A function: flags of train_multitask.py → a run with exits, made once."""
    made = {}

    def train(*flags):
        if flags not in made:
            made[flags] = tmp_path_factory.mktemp("exits") / "exits"
            command.main(["train", str(trained(*flags)), "--out", str(made[flags])])
        return made[flags]

    return train
