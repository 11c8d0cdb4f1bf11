"""A change that moves what training computes is seen, even if every other test passes."""

import json

import torch
from drift import FILE, drift, measure


def test_a_small_training_reaches_what_it_reached_before(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = drift(json.loads(FILE.read_text()), measure(tmp_path / "run"))
    finally:
        torch.set_num_threads(threads)
    assert not found, (f"what training computes has moved: {found}. If the change means to do so, "
                       f"renew the stored numbers (python tests/drift.py) in the same commit, and "
                       f"say there why")


def test_drift_names_what_has_moved():
    old = {"losses": [{"sst": 1.0}], "tensors": {"a": [1.0, 2.0]}}
    assert drift(old, old) == {}
    assert list(drift(old, {"losses": [{"sst": 1.001}], "tensors": {"a": [1.0, 2.0]}})) == [
        "losses/0/sst"]
    assert list(drift(old, {"losses": [{"sst": 1.0}], "tensors": {"b": [1.0]}})) == [
        "tensors/a/0", "tensors/a/1", "tensors/b/0"]
