"""Methods are imported when a run uses them, and bind to runs by one table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import train_multitask
from bert import UserError
from multitask import methods, runs

ROOT = Path(__file__).parent.parent.parent
CODE = """import sys
from multitask import runs
runs.open_run(sys.argv[1])
print(*sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[2:])))"""
USED = {"": [], "--lora 2": ["lora"], "--mask-heads 0:1": ["pruning"]}


def test_settings_have_the_flags_of_the_methods_they_are_made_with():
    plain, whole = methods.settings_class(()), methods.settings_class()
    assert not hasattr(plain(), "lora") and whole().lora == 0 and whole().keep_heads == ""
    assert methods.used_methods(whole()) == ()
    assert methods.used_methods(whole(lora=4, mask_heads="0:1")) == ("pruning", "lora")


@pytest.mark.parametrize("flags", USED)
def test_opening_a_run_imports_only_the_methods_it_used(flags, checkpoint, data, tmp_path):
    run = tmp_path / "run"
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(run),
                          "--tasks", "sst", "--steps", "1", *flags.split()])
    found = subprocess.run([sys.executable, "-c", CODE, run, *methods.METHODS], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.split()
    assert found == USED[flags]
    record = json.loads((run / "run.json").read_text())
    assert record["methods"] == USED[flags] and ("lora" in record["settings"]) == ("--lora 2"
                                                                                   == flags)


@pytest.mark.parametrize("change, word", [
    ({"version": 1}, r"of format 1 \(an older version wrote it\), and this version reads format 2"),
    ({"version": 3}, r"of format 3 \(a newer version wrote it\), and this version reads format 2"),
    ({"methods": ["moe"]}, r"methods\[0\] is 'moe'; it must be one of compression"),
    ({"edits": [{"method": "moe", "kind": "x"}]}, r"edits\[0\].method is 'moe'; it must be")])
def test_a_run_of_another_version_or_method_is_answered_in_a_sentence(change, word, checkpoint,
                                                                      data, tmp_path):
    run = tmp_path / "run"
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(run),
                          "--tasks", "sst", "--steps", "1"])
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=word):
        runs.open_run(run)
