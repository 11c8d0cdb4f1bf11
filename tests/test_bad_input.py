"""Every mistake of a user ends in one sentence and exit code 2, and changes no file."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import evaluate
import train_multitask
from common.run_folder import read_state
from multitask.course import read_course_file
from multitask.tasks import TASKS

ROOT = Path(__file__).parent.parent
HEADER = "\tid\tsentence\tsentiment\n"
ROW = "0\ta\tthe film is good .\t3\n"
PAIR_HEADER = "\tid\tsentence1\tsentence2\tis_duplicate\n"
PAIR = "0\ta\tthe film\tthe book\t1.0\n"
TOP, PAIRS = HEADER + ROW, PAIR_HEADER + PAIR


def table(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_sentence(code, err, words):
    sentence = err.removesuffix("\n").split("\r")[-1]      # what a progress bar leaves before it
    assert code == 2 and sentence.startswith("error: ") and "\n" not in sentence, err
    for word in words:
        assert word in sentence


@pytest.fixture
def refused(script, tmp_path, monkeypatch):
    """Call a script that must refuse in one sentence with these words and leave all files alone."""
    monkeypatch.chdir(tmp_path)

    def call(main, *arguments, says):
        before = files_in(tmp_path)
        code, _, err = script(main, *arguments)
        assert_one_sentence(code, err, says)
        assert files_in(tmp_path) == before

    return call


@pytest.fixture
def flags(checkpoint, data, tmp_path):
    """A tiny training; flags that are added win."""
    return ("--bert", checkpoint, "--data", data, "--tasks", "sst", "--out", tmp_path / "out",
            "--device", "cpu", "--batch-size", 8, "--steps", 1)


@pytest.fixture
def refused_training(refused, flags, tmp_path):
    def call(*more, says):
        refused(train_multitask.main, *flags, *more, says=says)
        assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()

    return call


@pytest.fixture(scope="module")
def whole_run(checkpoint, data, tmp_path_factory):
    """A complete run on single texts and one on pairs → their folders."""
    folder = tmp_path_factory.mktemp("runs")
    for task in ("sst", "sts"):
        train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--tasks", task,
                              "--device", "cpu", "--steps", "1", "--limit", "8",
                              "--out", str(folder / task)])
    return folder


@pytest.fixture
def runs(whole_run, tmp_path):
    return shutil.copytree(whole_run, tmp_path / "saved")


# ---- data files

SST = {
    "a column is missing": ("\tid\ttext\tsentiment\n" + ROW, "line 1", "sentence", "tabs"),
    "the id is missing": ("\tname\tsentence\tsentiment\n" + ROW, "line 1", "column id"),
    "the label is missing": ("\tid\tsentence\n0\ta\tthe film\n", "sentiment"),
    "commas instead of tabs": (HEADER.replace("\t", ",") + ROW, "line 1", "tabs"),
    **{f"a label {label}": (TOP + f"1\tb\tthe cat\t{label}\n", "line 3", "sentiment", "0 to 4")
       for label in ("5", "-1", "nan", "inf", "good", "1.5")},
    "a label empty": (TOP + "1\tb\tthe cat\t\n", "line 3", "sentiment", "fill"),
    "no sentence": (TOP + "1\tb\t\t3\n", "line 3", "nothing under sentence"),
    "a sentence of spaces": (TOP + "1\tb\t  \t3\n", "line 3", "nothing under sentence"),
    "no id": (TOP + "1\t\tthe cat\t3\n", "line 3", "nothing under id"),
    "too few cells": (TOP + "1\tb\tthe cat\n", "line 3", "3 cells", "4", "mend"),
    "too many cells": (TOP + "1\tb\tthe\tcat\t3\n", "line 3", "5 cells", "4"),
    "a quote unclosed": (TOP + '1\tb\t"the cat\t3\n' + ROW * 3, "line 3", "quote"),
    "a quote closed far below": (TOP + '1\tb\t"the cat\t3\n' + ROW * 30 + '2\tc\tthe cat"\t3\n',
                                 "line 3", "quote"),
    "a quote closed by the next": (TOP + '1\tb\t"the cat\t3\n' + ROW + '2\tc\t"the dog"\t3\n',
                                   "line 3", "quote"),
    "text after a quote": (TOP + '1\tb\t"the" cat\t3\n', "line 3", "quote"),
    "a defect below a cell of two lines": (HEADER + '0\ta\t"the\nfilm"\t3\n1\tb\tthe cat\t9\n',
                                           "line 4"),
    "latin-1": ((TOP + "1\tb\tcaf\u00e9\t3\n").encode("latin-1"), "line 3", "UTF-8", "save"),
    "UTF-16": (TOP.encode("utf-16"), "line 1", "UTF-16"),
    "a binary file": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "zero byte", "binary"),
    "an empty file": ("", "is empty", "header"),
    "blank lines only": ("\n\n\n", "is empty"),
    "a header only": (HEADER, "no rows"),
    "ids twice": (TOP + "1\t A \tthe cat\t3\n", "line 3", "line 2", "unique"),
}
PARA = {
    "no first sentence": (PAIRS + "1\tb\t\tthe book\t1\n", "line 3", "sentence1"),
    "neither sentence": (PAIRS + "1\tb\t\t\t1\n", "line 3", "sentence1"),
    "a cell is missing": (PAIRS + "1\tb\tthe film\tthe book\n", "line 3", "cells"),
    "a label 0.5": (PAIRS + "1\tb\tthe film\tthe book\t0.5\n", "line 3", "is_duplicate"),
}
STS = {
    f"a label {label}": ("\tid\tsentence1\tsentence2\tsimilarity\n"
                         f"0\ta\tthe film\tthe book\t{label}\n", "line 2", "similarity", "0 to 5")
    for label in ("5.1", "-0.1", "nan", "close")
}
DATA = {f"{task}: {name}": (task, *case)
        for task, cases in (("sst", SST), ("para", PARA), ("sts", STS))
        for name, case in cases.items()}


@table(DATA)
def test_defect_in_a_data_file_is_named_with_its_line(refused_training, data, tmp_path, case):
    task, content, *words = case
    folder = shutil.copytree(data, tmp_path / "course")
    file = folder / TASKS[task].files["train"]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused_training("--data", folder, "--tasks", task, says=(str(file), *words))


def test_missing_data_folder_is_named(refused_training):
    refused_training("--data", "nowhere", says=("nowhere", "not a folder", "ids-sst-train.csv"))


@pytest.mark.parametrize("split", ("train", "dev"))
def test_missing_data_file_is_named(refused_training, data, tmp_path, split):
    folder = shutil.copytree(data, tmp_path / "course")
    (folder / TASKS["sst"].files[split]).unlink()
    refused_training("--data", folder, says=(TASKS["sst"].files[split], "does not exist", "--data"))


def test_files_of_cmus_course_are_named_as_such(refused_training, tmp_path):
    (tmp_path / "cmu").mkdir()
    (tmp_path / "cmu" / "sst-train.txt").write_text("3 ||| the film is good .\n")
    refused_training("--data", tmp_path / "cmu", says=("sst-train.txt", "CMU", "README"))


def test_folder_in_a_data_files_place_is_named(refused_training, tmp_path):
    (tmp_path / "course" / "ids-sst-train.csv").mkdir(parents=True)
    refused_training("--data", tmp_path / "course", says=("ids-sst-train.csv", "cannot be read"))


LACKING = PAIRS + "1\tb\tthe cat\t\t0\n2\tc\tthe dog\tthe cat\t\n" + PAIR.replace("a", "d")


def written(tmp_path, content):
    path = tmp_path / "file.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_quora_rows_without_label_or_second_sentence_are_left_out_with_one_warning(tmp_path):
    with pytest.warns(UserWarning) as warned:
        examples = read_course_file(written(tmp_path, LACKING), TASKS["para"])
    assert [example.id for example in examples] == ["a", "d"]
    message = str(warned[0].message)
    assert len(warned) == 1
    assert "file.csv" in message and "2 rows" in message and "line 3, 4" in message


def test_strict_rows_makes_left_out_rows_errors(refused_training, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "course")
    (folder / "quora-train.csv").write_text(LACKING)
    refused_training("--data", folder, "--tasks", "para", "--strict-rows",
                     says=("quora-train.csv line 3", "sentence2"))


def test_file_in_which_every_row_is_left_out_is_an_error(refused_training, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "course")
    (folder / "quora-train.csv").write_text(PAIR_HEADER + "1\tb\tthe cat\t\t0\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused_training("--data", folder, "--tasks", "para", says=("quora-train.csv", "rows"))


def read(tmp_path, content, task="sst"):
    examples = read_course_file(written(tmp_path, content), TASKS[task])
    return [(example.id, *example.texts, example.label) for example in examples]


READ = [("a", "the film is good .", 3.0)]
GOOD = {
    "plain": (TOP, READ),
    "a byte order mark": (b"\xef\xbb\xbf" + TOP.encode(), READ),
    "lines of Windows": (TOP.replace("\n", "\r\n"), READ),
    "blank lines": (HEADER + "\n" + ROW + "\n\n", READ),
    "no last line break": (TOP.rstrip("\n"), READ),
    "ids in capitals and spaces": (HEADER + ROW.replace("\ta\t", "\t A \t"), READ),
    "other order of columns": ("sentiment\tsentence\tid\n3\tthe film is good .\ta\n", READ),
    "quotes doubled": (HEADER + '0\ta\t"the ""good"" film"\t3\n', [("a", 'the "good" film', 3.0)]),
    "quotes within": (HEADER + '0\ta\tthe "good" film\t3\n', [("a", 'the "good" film', 3.0)]),
    "a line break in quotes": (HEADER + '0\ta\t"the film\nis good ."\t3\n', READ),
    "a line break of Windows in quotes": (HEADER + '0\ta\t"the film\r\nis good ."\t3\r\n', READ),
    "a label as a float": (HEADER + ROW.replace("\t3", "\t3.0"), READ),
    "no labels": ("\tid\tsentence\n0\ta\tthe film\n", [("a", "the film", None)]),
    "the test file's header": ("0\t\tid\tsentence\n1\t0.0\tA\tthe film\n2\t1.0\tb\tthe cat\n",
                               [("a", "the film", None), ("b", "the cat", None)]),
    "beyond ASCII": (TOP.replace("film", "caf\u00e9"), [("a", "the caf\u00e9 is good .", 3.0)]),
}


@table(GOOD)
def test_reader_takes(tmp_path, case):
    content, expected = case
    assert read(tmp_path, content) == expected


# ---- checkpoints

class Code:
    """Unpickled, it makes a folder; a reader must not come so far."""

    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def weights_only(folder, save):
    (folder / "model.safetensors").unlink()
    save(folder / "pytorch_model.bin")


def cut(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def cut_bin(folder, **options):
    weights_only(folder, partial(torch.save, load_file(folder / "model.safetensors"), **options))
    cut(folder, "pytorch_model.bin")


def config(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return change


def tensors(change):
    def rewrite(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")
    return rewrite


def lines(change):
    def rewrite(folder):
        path = folder / "vocab.txt"
        path.write_text("\n".join(change(path.read_text().split("\n")[:-1])) + "\n")
    return rewrite


def content(name, value):
    return lambda folder: (folder / name).write_bytes(value)


def without(name):
    return lambda folder: (folder / name).unlink()


def one_type(folder):
    config(type_vocab_size=1)(folder)
    name = "embeddings.token_type_embeddings.weight"
    tensors(lambda t: t.update({name: t[name][:1].clone()}))(folder)


SAFE, BIN, BIAS = "model.safetensors", "pytorch_model.bin", "pooler.dense.bias"
def token_id(number):
    """A tokenizer.json whose last token has this id."""
    def change(folder):
        words = (folder / "vocab.txt").read_text().split()
        vocabulary = {token: n for n, token in enumerate(words)}
        vocabulary[list(vocabulary)[-1]] = number
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
        file = json.loads(backend.to_str())
        file["model"]["vocab"] = vocabulary                  # to save it, the library would count
        (folder / "tokenizer.json").write_text(json.dumps(file))
    return change


IMMENSE = {f"{name} {value:.0e}": (config(**{name: value}), "config.json", name)
           for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                        "intermediate_size", "max_position_embeddings", "type_vocab_size")
           for value in (2 ** 31, 10 ** 12, 10 ** 30)}
CHECKPOINTS = IMMENSE | {
    "a pad token beyond any": (config(pad_token_id=10 ** 30), "pad_token_id", "below 2^40"),
    "too many layers to build": (config(num_hidden_layers=5000), "num_hidden_layers 5,000"),
    "a token id above the embeddings": (token_id(31), "token ids up to 31", "checkpoint"),
    "a token id that no machine has": (token_id(2 ** 31), "token ids up to 2,147,483,648"),
    "no folder": (shutil.rmtree, "not a folder"),
    "no weights": (without(SAFE), SAFE),
    "no configuration": (without("config.json"), "config.json"),
    "no vocabulary": (without("vocab.txt"), "vocab.txt"),
    "weights corrupt": (content(SAFE, b"weights" * 99), SAFE, "fetch"),
    "weights empty": (content(SAFE, b""), SAFE, "fetch"),
    "weights cut": (partial(cut, name=SAFE), SAFE, "fetch"),
    ".bin cut": (cut_bin, BIN, "corrupt"),
    ".bin of old cut": (partial(cut_bin, _use_new_zipfile_serialization=False), BIN,
                        "corrupt"),
    ".bin empty": (partial(weights_only, save=Path.touch), BIN, "corrupt"),
    ".bin of text": (partial(weights_only, save=lambda p: p.write_text("weights")), "corrupt"),
    ".bin of no tensors": (partial(weights_only, save=partial(torch.save, [1, 2])), BIN),
    ".bin with code": (partial(weights_only, save=lambda p: p.write_bytes(pickle.dumps(Code(), 2))),
                       BIN, "code", ".safetensors"),
    ".bin with code in a zip": (partial(weights_only, save=partial(torch.save, {"a": Code()})),
                                BIN, "code", ".safetensors"),
    "configuration of no JSON": (content("config.json", b"{hidden_size: 9"), "config.json", "JSON"),
    "configuration of a list": (content("config.json", b"[]"), "config.json", "list"),
    "configuration in latin-1": (content("config.json", b'{"a": "\xe9"}'), "config.json"),
    "heads do not divide": (config(num_attention_heads=5), "config.json", "heads 5", "32"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads", "1 or more"),
    "activation unknown": (config(hidden_act="swish"), "hidden_act", "swish", "gelu"),
    "positions relative": (config(position_embedding_type="relative_key"), "relative_key",
                           "absolute"),
    "another model": (config(model_type="roberta"), "model_type", "roberta", "bert"),
    "a size of text": (config(hidden_size="32"), "hidden_size", "'32'", "whole number"),
    "a size of null": (config(hidden_size=None), "hidden_size", "whole number"),
    "a dropout of 1": (config(hidden_dropout_prob=1.0), "hidden_dropout_prob", "below 1"),
    "a layer too many": (config(num_hidden_layers=3), "missing", "encoder.layer.2.", "more"),
    "a layer too few": (config(num_hidden_layers=1), "unexpected", "encoder.layer.1."),
    "a tensor missing": (tensors(lambda t: t.pop(BIAS)), "missing pooler.dense.bias"),
    "a tensor unexpected": (tensors(lambda t: t.update({"extra.weight": torch.zeros(1)})),
                            "unexpected extra.weight"),
    "a tensor misshapen": (tensors(lambda t: t.update({BIAS: torch.zeros(3)})),
                           "pooler.dense.bias [3] instead of [32]"),
    "a tensor of whole numbers": (tensors(lambda t: t.update({BIAS: torch.zeros(32).long()})),
                                  BIAS),
    "a tensor twice": (tensors(lambda t: t.update({"bert.pooler.dense.bias": torch.zeros(32)})),
                       "pooler.dense.bias twice"),
    "one token type for joint pairs": (one_type, "type_vocab_size 1", "--pairs separate"),
    "[CLS] missing": (lines(lambda v: [token for token in v if token != "[CLS]"]), "lacks [CLS]"),
    "vocabulary too large": (lines(lambda v: v + ["more"]), "tokens", "checkpoint"),
    "a token twice": (lines(lambda v: v[:-1] + v[-2:-1]), "vocab.txt", "twice"),
    "vocabulary in latin-1": (content("vocab.txt", b"caf\xe9\n"), "vocab.txt", "UTF-8"),
    "tokenizer.json of no JSON": (content("tokenizer.json", b"{"), "tokenizer.json"),
    "tokenizer_config.json of no JSON": (content("tokenizer_config.json", b"{"),
                                         "tokenizer_config.json"),
}


@table(CHECKPOINTS)
def test_broken_checkpoint_is_refused(refused_training, checkpoint, tmp_path, case):
    spoil, *words = case
    folder = shutil.copytree(checkpoint, tmp_path / "spoilt")
    spoil(folder)
    refused_training("--bert", folder, *(("--tasks", "sts") if spoil is one_type else ()),
                     says=(str(folder), *words))
    assert not (tmp_path / "code-was-run").exists()


@pytest.mark.parametrize("name, value", (("HF_ENDPOINT", "http://127.0.0.1:9"),
                                         ("HF_HUB_OFFLINE", "1")))
def test_hub_that_cannot_be_reached_is_one_sentence(flags, tmp_path, name, value):
    others = {key: text for key, text in os.environ.items() if not key.startswith("HF_")}
    arguments = (ROOT / "train_multitask.py", *flags, "--bert", "nobody/no-such-bert")
    script = ("import runpy, sys, time; time.sleep = lambda seconds: None; "     # between retries
              "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], cwd=tmp_path,
                          text=True,
                          env=others | {"HF_HOME": str(tmp_path / "hub"), name: value,
                                        "PYTHONPATH": str(ROOT)},
                          capture_output=True, timeout=120)
    assert_one_sentence(done.returncode, done.stderr, ("nobody/no-such-bert", "network", "folder"))
    assert not (tmp_path / "out").exists()


# ---- flags

FLAGS = {
    "unknown flag": (("--epoch", "3"), "--epoch", "did you mean --epochs?"),
    "unknown flag with a value": (("--learning-rate=3",), "--learning-rate"),
    "a word that belongs to no flag": (("sst",), "'sst'"),
    "flag without its value": (("--tasks",), "--tasks"),
    "epochs negative": (("--epochs", "-1"), "--epochs", "0 or more"),
    "epochs of text": (("--epochs", "three"), "--epochs", "three"),
    "epochs of a fraction": (("--epochs", "1.5"), "--epochs", "1.5"),
    "batch size negative": (("--batch-size", "-8"), "--batch-size", "1 or more"),
    "learning rate negative": (("--lr", "-1"), "--lr", "0 or more"),
    "learning rate nan": (("--lr", "nan"), "--lr"),
    "learning rate infinite": (("--lr", "inf"), "--lr"),
    "warmup above one": (("--warmup", "2"), "--warmup", "at most 1"),
    "dropout of one": (("--head-dropout", "1"), "--head-dropout", "below 1"),
    "limit negative": (("--limit", "-1"), "--limit", "0 or more"),
    "seed negative": (("--seed", "-1"), "--seed", "0 or more"),
    **{f"{flag} immense": ((flag, str(10 ** 30)), flag, "beyond", "4,294,967,296") for flag in (
        "--seed", "--lora", "--epochs", "--batch-size", "--accumulate", "--limit", "--steps",
        "--patience", "--log-every", "--save-every")},
    "a rank above every matrix's": (("--lora", "4294967296"), "rank 4,294,967,296", "at most 32"),
    "batches that are never added up": (("--accumulate", "4294967296"), "--accumulate", "65536"),
    "task unknown": (("--tasks", "sst,stt"), "--tasks", "'stt'", "did you mean", "sts"),
    "task empty": (("--tasks", ""), "--tasks", "sst"),
    "task twice": (("--tasks", "sst,sst"), "twice"),
    "head unknown": (("--head", "cubic"), "--head", "cubic", "cosine"),
    "head empty": (("--head", ""), "--head", "cosine"),
    "head for a task that is not learned": (("--head", "sts=mlp"), "--head", "sts=mlp", "this run"),
    "cosine of single texts": (("--head", "cosine"), "sst", "cosine", "linear"),
    "cosine of joint pairs": (("--tasks", "sts", "--head", "sts=cosine"), "--pairs separate"),
    "cosine of paraphrases": (("--tasks", "para", "--head", "cosine"), "para", "mlp"),
    "pairs unknown": (("--pairs", "both"), "--pairs", "both", "joint", "separate"),
    "device unknown": (("--device", "tpu"), "--device", "tpu", "cuda"),
    "from a folder that is no run": (("--from", "nowhere"), "nowhere", "run.json"),
    "resume with other flags": (("--resume", "nowhere"), "--resume", "--device", "--from"),
    "no folder can be made": (("--out", "/proc/nowhere/run"), "/proc/nowhere/run"),
    "a name too long": (("--out", "x" * 300), "too long"),
    "a checkpoint's name too long": (("--bert", "/" + "x" * 300), "xxx"),
}


@table(FLAGS)
def test_wrong_flag_is_refused(refused_training, case):
    given, *words = case
    refused_training(*given, says=words)


def test_cuda_without_a_device_is_refused(refused_training, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused_training("--device", "cuda", says=("--device", "cuda", "cpu"))


def test_out_that_is_a_file_is_refused(refused, flags, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(train_multitask.main, *flags, says=("--out", "is a file", "folder"))


def test_out_below_a_file_is_refused(refused, flags, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(train_multitask.main, *flags, "--out", tmp_path / "file" / "run", says=("file",))


@pytest.mark.parametrize("overwrite", ((), ("--overwrite",)), ids=("plain", "overwrite"))
def test_folder_with_other_files_stays_untouched(refused, flags, tmp_path, overwrite):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "thesis.txt").write_text("mine")
    refused(train_multitask.main, *flags, *overwrite, says=("--out", "left alone", "another"))


def test_saved_run_is_not_replaced_without_overwrite(refused, flags, runs):
    refused(train_multitask.main, *flags, "--out", runs / "sst", says=("--overwrite", "--resume"))


def test_mistake_beside_overwrite_leaves_the_saved_run(refused, flags, runs):
    refused(train_multitask.main, *flags, "--out", runs / "sst", "--overwrite", "--data", "nowhere",
            says=("nowhere",))


def test_run_is_not_replaced_by_one_that_starts_from_it(refused, flags, runs):
    refused(train_multitask.main, *flags, "--out", runs / "sst", "--overwrite",
            "--from", runs / "sst", says=("--from", "lies in --out", "choose another"))


def test_run_is_not_replaced_by_one_that_starts_from_its_encoder(refused, flags, runs):
    refused(train_multitask.main, *flags, "--out", runs / "sst", "--overwrite",
            "--bert", runs / "sst" / "model", says=("--bert", "lies in --out", "choose another"))


def with_setting(**values):
    def change(folder):
        record = json.loads((folder / "run.json").read_text())
        record["settings"] |= values
        (folder / "run.json").write_text(json.dumps(record))
    return change


RECORDS = {
    "no folder": (shutil.rmtree, "run.json"),
    "no record": (without("run.json"), "run.json"),
    "record of no JSON": (content("run.json", b"{"), "run.json", "damaged"),
    "record of a list": (content("run.json", b"[]"), "run.json", "damaged"),
    "record of nothing": (content("run.json", b"{}"), "run.json", "format 1"),
    "settings alone": (content("run.json", b'{"settings": {}}'), "run.json", "format 1"),
    "a setting of text": (with_setting(epochs="3"), "run.json", "--epochs"),
}


@table(RECORDS)
@pytest.mark.parametrize("way", ("resume", "from", "evaluate"))
def test_folder_that_is_no_run_is_refused(refused, flags, runs, case, way):
    spoil, *words = case
    spoil(runs / "sst")
    main = evaluate.main if way == "evaluate" else train_multitask.main
    arguments = {"resume": ("--resume",), "from": (*flags, "--from"), "evaluate": ()}[way]
    refused(main, *arguments, runs / "sst", says=(str(runs / "sst"), *words))


def test_run_with_a_setting_of_another_version_opens_with_a_note_that_names_it(script, flags, runs):
    with_setting(depth=3)(runs / "sst")
    for main, arguments in ((evaluate.main, ()), (train_multitask.main, (*flags, "--from"))):
        with pytest.warns(UserWarning, match="run.json .* does not know.*: depth"):
            assert script(main, *arguments, runs / "sst")[0] == 0


def test_run_begun_with_a_setting_of_another_version_is_not_resumed_without_it(refused, runs):
    with_setting(depth=3)(runs / "sst")
    record = runs / "sst" / "run.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    with pytest.warns(UserWarning):
        refused(train_multitask.main, "--resume", runs / "sst", says=("depth", "version"))


def test_run_whose_state_is_damaged_is_not_resumed(refused, runs):
    record = runs / "sst" / "run.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    cut(runs / "sst" / "last", "state.pt")
    refused(train_multitask.main, "--resume", runs / "sst", says=("state.pt", "--overwrite"))


# ---- evaluate.py

EVALUATIONS = {
    "unknown flag": ("sst", ("--splitt", "dev"), "--splitt", "did you mean --split?"),
    "split unknown": ("sst", ("--split", "train"), "--split", "dev", "test"),
    "task unknown": ("sst", ("--tasks", "sts"), "--tasks", "'sts'", "sst"),
    "limit negative": ("sst", ("--limit", "-1"), "--limit", "0"),
    "data folder missing": ("sst", ("--data", "nowhere"), "nowhere", "not a folder"),
    "data files missing": ("sst", ("--data", "."), "ids-sst-dev.csv", "does not exist"),
    "text empty": ("sst", ("--text", " "), "--text", "empty"),
    "second text empty": ("sts", ("--text", "a cat", "--pair", ""), "--pair", "empty"),
    "second text alone": ("sts", ("--pair", "a cat"), "--pair", "--text"),
    "one text for a task of pairs": ("sts", ("--text", "a cat"), "sts", "add --pair"),
    "two texts for a task of single ones": ("sst", ("--text", "a", "--pair", "b"), "sst", "--pair"),
    "predictions into a file": ("sst", ("--predictions", "saved/sst/run.json"), "cannot be"),
}


@table(EVALUATIONS)
def test_evaluation_refuses(refused, runs, case):
    run, given, *words = case
    refused(evaluate.main, runs / run, *given, says=words)


PARTS = {
    "no scores": ("metrics.json", Path.unlink, "no scored model", "--resume"),
    "no heads": ("heads.safetensors", Path.unlink, "heads.safetensors"),
    "no encoder": ("model/model.safetensors", Path.unlink, "model.safetensors"),
    "no vocabulary": ("model/vocab.txt", Path.unlink, "vocab.txt"),
    "heads corrupt": ("heads.safetensors", content("", b"heads"), "heads.safetensors"),
}


@table(PARTS)
def test_run_that_lacks_a_part_is_refused(refused, runs, case):
    name, spoil, *words = case
    spoil(runs / "sst" / name)
    refused(evaluate.main, runs / "sst", says=(str(runs / "sst"), *words))


def test_heads_of_another_run_are_refused(refused, runs):
    shutil.copy(runs / "sts" / "heads.safetensors", runs / "sst")
    refused(evaluate.main, runs / "sst", says=("heads.safetensors", "another encoder", "--resume"))


def test_device_that_is_not_there_is_refused_by_evaluate(refused, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(evaluate.main, runs / "sst", "--device", "cuda", says=("cuda", "cpu"))


# ---- a full disk

def full_after(call, count, then=lambda: None):
    """`call`, until it has been called `count` times; from then on the disk is full."""
    calls = iter(range(count))

    def failing(*arguments):
        if next(calls, None) is None:
            then()
            raise OSError(28, "No space left on device")
        return call(*arguments)

    return failing


def assert_full(code, err, *words):
    sentence = err.strip().splitlines()[-1].split("\r")[-1]
    assert code == 2 and "Traceback" not in err, err
    assert sentence.startswith("error: ")
    for word in ("No space left", *words):
        assert word in sentence


@pytest.mark.parametrize("function", ("replace", "fsync"))
@pytest.mark.parametrize("count", (1, 2, 3, 5, 6, 7, 8, 9, 11))
def test_full_disk_keeps_the_earlier_saved_state(script, flags, tmp_path, monkeypatch, function,
                                                 count):
    out, saved = tmp_path / "out", {}
    with monkeypatch.context() as disk:
        disk.setattr(os, function, full_after(getattr(os, function), count,
                                              lambda: saved.update(files_in(out))))
        code, _, err = script(train_multitask.main, *flags, "--steps", 9, "--save-every", 2)
    assert_full(code, err, str(out))
    whole = {path: content for path, content in saved.items()
             if path.suffix != ".part" and path.name != ".writer"}
    assert whole and files_in(out) == whole

    code, _, err = script(evaluate.main, out, "--predictions", tmp_path / "predictions")
    assert code == 0 or (code == 2 and "--resume" in err)
    assert script(train_multitask.main, "--resume", out)[0] == 0
    assert script(evaluate.main, out)[0] == 0


def test_full_disk_before_the_first_file_leaves_no_run(script, flags, tmp_path, monkeypatch):
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full_after(os.fsync, 0))
        code, _, err = script(train_multitask.main, *flags)
    assert_full(code, err, "run.json")
    assert not files_in(tmp_path)
    assert script(train_multitask.main, *flags)[0] == 0


def test_full_disk_under_the_log_is_one_sentence(script, flags, monkeypatch):
    def full(path, mode="r", *more, **options):
        if mode == "a":
            raise OSError(28, "No space left on device")
        return whole(path, mode, *more, **options)

    whole = open
    monkeypatch.setattr("builtins.open", full)
    code, _, err = script(train_multitask.main, *flags, "--steps", 2)
    assert_full(code, err, "log.jsonl")


def test_full_disk_under_predictions_is_one_sentence(refused, runs, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_after(os.fsync, 0))
    refused(evaluate.main, runs / "sst", says=("sst-dev-output.csv", "No space left"))


# ---- memory

LITTLE = """
import resource, sys
import train_multitask
from common.cli import run_script
import scipy.stats, tokenizers, torch
prepare = train_multitask.prepare

def limited(*arguments):                                     # the tokenizer's library would abort
    run = prepare(*arguments)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 ** 26, -1))
    return run

train_multitask.prepare = limited
run_script(train_multitask.main)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_full_memory_is_one_sentence(flags, tmp_path):
    rows = "".join(f"{n}\tid{n}\t{'the film is good ' * 9}\t3\n" for n in range(3000))
    folder = shutil.copytree(flags[3], tmp_path / "course")
    (folder / "ids-sst-train.csv").write_text(HEADER + rows)
    arguments = (*flags, "--data", folder, "--batch-size", 3000)
    done = subprocess.run([sys.executable, "-c", LITTLE, *map(str, arguments)], cwd=ROOT,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1].split("\r")[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: the machine's memory is full; lower --batch-size" in last


@pytest.mark.parametrize("error", (MemoryError(), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")))
def test_a_file_is_not_called_corrupt_where_memory_is_full(whole_run, monkeypatch, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(type(error)):
        read_state(whole_run / "sst" / "last" / "state.pt", {})
