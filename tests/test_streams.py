"""Output that cannot be printed never ends a command: closed, full and narrow streams, and names
that are not UTF-8."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bert import UserError
from bert.terminal import Stream, safe_streams
from common.cli import Parser

ROOT = Path(__file__).parent.parent
TRAIN = ("train_multitask.py", "--tasks", "sst", "--limit", "8", "--steps", "2", "--device", "cpu")
NARROW = {"PYTHONIOENCODING": "cp1252"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(command, folder, **environment):
    return subprocess.run(["bash", "-c", command.replace("PYTHON", sys.executable)], cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "D": str(folder),
                               **environment}, capture_output=True, timeout=120)


def written(encoding, text):
    file = io.BytesIO()
    stream = Stream(io.TextIOWrapper(file, encoding=encoding))
    stream.write(text)
    stream.flush()
    return file.getvalue()


def test_characters_that_an_encoding_lacks_are_spelled_out():
    assert written("ascii", "a → b") == rb"a \u2192 b"
    assert written("cp1252", "±0.1 →") == b"\xb10.1 \\u2192"
    assert written("utf-8", "→ \udcff") == "→ \\udcff".encode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_text_for_a_full_disk_is_dropped_and_reported_at_the_end(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(UserError, match="output cannot be written: No space left"):
            with safe_streams():
                print("x" * 100000)
                print("y" * 100000)                          # goes on


def test_a_pipe_that_nobody_reads_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with safe_streams():
            print("x" * 100000)
        assert sys.stdout is closed


@pytest.mark.parametrize("word", ("bad\udcff", "a\ud800"))
def test_an_argument_that_is_not_utf8_is_a_sentence(word):
    parser = Parser()
    parser.add_argument("--out")
    with pytest.raises(UserError, match="is not UTF-8"):
        parser.parse_args(["--out", word])


def test_a_run_with_closed_streams_is_complete(tmp_path):
    done = shell(f"PYTHON {' '.join(TRAIN)} --out $D/run 2>&- >&-", tmp_path)
    assert done.returncode == 0
    assert '"complete": true' in (tmp_path / "run" / "run.json").read_text()


@pytest.mark.long
@pytest.mark.parametrize(("command", "environment", "code"), [
    (" ".join(TRAIN) + " --out $D/run | head -1", {}, 0),
    (" ".join(TRAIN) + " --out $D/run 2>/dev/full", {}, 0),
    (" ".join(TRAIN) + " --out $D/run >/dev/full", {}, 2),
    (" ".join(TRAIN) + " --out $D/run", C_LOCALE, 0),
    (" ".join(TRAIN) + " --out $D/run", NARROW, 0),
    (" ".join(TRAIN) + " --out $D/$'bad\\xff'", {}, 2),
    ("-m bert 'A dull film'", C_LOCALE, 0), ("-m bert 'A dull film'", NARROW, 0),
    ("-m bert 'A dull film' | head -1", {}, 0), ("-m bert $'bad\\xff'", {}, 2),
    ("-m bert 'A dull film' >/dev/full", {}, 2), ("-m bert 'A dull film' >&- 2>&-", {}, 0),
    ("-m pretraining --text $'bad\\xff' --out $D/run", {}, 2),
    ("-m laser --help", NARROW, 0), ("-m lora --help | head -1", {}, 0),
    ("-m attack $'bad\\xff'", {}, 2), ("evaluate.py $D/no-run 2>&-", {}, 2)])
def test_a_command_survives_its_terminal(tmp_path, command, environment, code):
    done = shell(f"set -o pipefail; PYTHON {command}", tmp_path, **environment)
    assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr[-3000:]
    if "run |" in command or "run" == command[-3:] or "run 2" in command or "run >" in command:
        assert code == 2 or '"complete": true' in (tmp_path / "run" / "run.json").read_text()
