"""Two processes that share each batch learn what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_course_data

from bert import Bert, BertConfig
from bert.files import read_tensors
from multitask import distributed

SCRIPT = Path(__file__).parent.parent.parent / "train_multitask.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def without_dropout(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without") / "dropout"
    bert = Bert.from_pretrained(checkpoint)
    bert.config = BertConfig.from_dict(bert.config.to_dict() | {
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    bert.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((checkpoint / "vocab.txt").read_bytes())
    return folder


@pytest.fixture(scope="module")
def even_data(tmp_path_factory):
    return write_course_data(tmp_path_factory.mktemp("even") / "data", train=48)


def call(launcher, *arguments):
    done = subprocess.run([sys.executable, *launcher, str(SCRIPT), *map(str, arguments)],
                          env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                          capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def losses(run):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("surgery", [pytest.param("none", marks=pytest.mark.long), "pcgrad"])
def test_two_processes_learn_as_one_with_the_double_batch(without_dropout, even_data, tmp_path,
                                                          surgery):
    flags = ("--bert", without_dropout, "--data", even_data, "--device", "cpu", "--steps", 10,
             "--log-every", 1, "--lr", 0.001, "--surgery", surgery)
    for name, launcher, size in (("one", (), 8), ("two", TORCHRUN, 4)):
        code, out, err = call(launcher, *flags, "--batch-size", size, "--out", tmp_path / name)
        assert code == 0, err
        assert out.count("next: python") == 1                    # only the first one prints
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 10 and one[0] != one[-1]
    for a, b in zip(one, two):
        assert a == pytest.approx(b, abs=1e-5)
    one, two = (read_tensors(tmp_path / name / "model" / "model.safetensors")
                for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-4)


def test_another_number_of_processes_does_not_go_on_with_a_run(without_dropout, even_data,
                                                               tmp_path):
    run = tmp_path / "run"
    flags = ("--bert", without_dropout, "--data", even_data, "--device", "cpu", "--out", run,
             "--steps", 2, "--batch-size", 4)
    assert call(TORCHRUN, *flags)[0] == 0
    record = json.loads((run / "run.json").read_text())
    assert record["versions"]["processes"] == 2
    (run / "run.json").write_text(json.dumps(record | {"complete": False}))
    code, _, err = call((), "--resume", run)
    assert code == 2 and "began with 2 processes" in err


@pytest.mark.parametrize("processes, parts, size", [(1, 1, 8), (2, 1, 8), (2, 3, 7), (3, 2, 2)])
def test_shares_add_up_to_the_mean_over_the_batch(monkeypatch, processes, parts, size):
    monkeypatch.setattr(distributed, "world", lambda: processes)
    values = torch.rand(100)
    indices = torch.randperm(100)[:size].tolist()
    total, seen = 0.0, []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shards = distributed.shard_batch(indices, parts)
        assert len(shards) == parts                      # all have as many gradients to sum
        for shard, weight in shards:
            total += weight * values[shard].mean()
            seen += shard if weight else []
    assert sorted(seen) == sorted(indices)
    torch.testing.assert_close(total, values[indices].mean())
