"""The sample data in data/: reproducible, no leak between splits, hard for a bag of words."""

import csv
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bag_of_words import bag_of_words_scores

from tools.make_sample_data import FILES, PARA_KINDS, ROWS, SST_FRAMES, STS_KINDS, generate

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "data"
COMPARE = (("train", "dev"), ("train", "test"), ("dev", "test"))


@pytest.fixture(scope="module")
def rows():
    return generate()


def skeleton(frame):
    """A frame as a bare sentence: slots that go by any name are "_"."""
    return re.sub(r"\{\w+\}", "_", frame).lower()


def frames_of(task):
    """{split: set of frames} as the tables hold them, whether or not they were drawn."""
    if task == "sst":
        return {split: set(SST_FRAMES[split]) for split in ROWS}
    kinds = PARA_KINDS if task == "para" else STS_KINDS
    return {split: {frame for kind in kinds for frame in getattr(kind, split)} for split in ROWS}


def test_the_script_makes_the_files_that_are_there(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "make_sample_data.py", "--out", tmp_path],
                   check=True, env={"PYTHONHASHSEED": "7"}, stdout=subprocess.DEVNULL)
    made, there = ({file.name: file.read_bytes() for file in sorted(folder.glob("*.csv"))}
                   for folder in (tmp_path, FOLDER))
    assert made == there and len(made) == 9


def test_ids_are_unique():
    ids = [row["id"] for file in FOLDER.glob("*.csv")
           for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines(), delimiter="\t")]
    assert len(ids) == len(set(ids)) == sum(ROWS.values()) * len(FILES)
    assert all(re.fullmatch("[0-9a-f]{25}", row_id) for row_id in ids)


@pytest.mark.parametrize("task", FILES)
def test_no_sentence_and_no_skeleton_is_in_two_splits(rows, task):
    frames = frames_of(task)
    skeletons = {split: {skeleton(frame) for frame in frames[split]} for split in ROWS}
    sentences = {split: {text.lower() for row in rows[task][split] for text in row.sentences}
                 for split in ROWS}
    for one, two in COMPARE:
        assert not skeletons[one] & skeletons[two]
        assert not sentences[one] & sentences[two]
    for split in ROWS:                                       # and every frame is in use
        assert {frame for row in rows[task][split] for frame in row.frames} == frames[split]


@pytest.mark.parametrize("task", FILES)
def test_labels_are_spread_evenly(rows, task):
    for split in ROWS:
        counts = Counter(row.label for row in rows[task][split])
        assert counts.total() == ROWS[split]
        if task == "sts":
            assert min(counts) == 0 and max(counts) == 5 and max(counts.values()) < ROWS[split] / 3
        else:
            assert len(set(counts.values())) == 1


def test_a_bag_of_words_does_not_get_it():
    scores = bag_of_words_scores(FOLDER)
    assert scores["sst"]["accuracy"] <= 0.65
    assert scores["para"]["accuracy"] <= 0.65
    assert scores["sts"]["pearson"] <= 0.65
