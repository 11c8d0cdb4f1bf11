"""Imports point one way: common imports bert's errors, files and streams alone, a method's
library bert and itself alone (and bert nobody: tests/bert/test_stands_alone.py)."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from multitask.methods import METHODS

ROOT = Path(__file__).parent.parent
BERT_FILES = ("bert.errors", "bert.files", "bert.json_files", "bert.terminal")
ROOMS = {path.name.removesuffix(".py") for path in ROOT.iterdir()
         if path.suffix == ".py" or (path.is_dir() and next(path.glob("*.py"), None))}


def imported(path):
    """→ [(line, module)] of the project that a file imports anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            found.append((node.lineno, node.module))
    return [(line, name) for line, name in found if name.partition(".")[0] in ROOMS]


def wrong_imports(paths, allowed):
    """→ ["lora/layers.py:3 common.tables"] of the imports of the project that are not allowed."""
    return [f"{path.relative_to(ROOT)}:{line} {name}" for path in paths
            for line, name in imported(path) if not allowed(name)]


@cache
def loaded_by(package):
    """→ the project's files that a fresh Python loads for `import package`."""
    code = (f"import json, sys, {package}\n"
            "files = [getattr(m, '__file__', None) or '' for m in sys.modules.values()]\n"
            f"print(json.dumps([file for file in files if file.startswith({str(ROOT)!r})]))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [Path(file) for file in json.loads(done.stdout.splitlines()[-1])]
    return sorted(file for file in files if ".venv" not in file.parts)


def test_the_rooms_are_found():
    assert {"bert", "common", "multitask", *METHODS, "train_multitask"} <= ROOMS
    assert ROOT / "lora" / "__init__.py" in loaded_by("lora")
    assert "bert.files" in [name for _, name in imported(ROOT / "common" / "tables.py")]


def test_common_imports_only_errors_files_and_streams_of_bert():
    assert not wrong_imports(
        (ROOT / "common").rglob("*.py"),
        lambda name: name.split(".")[0] == "common" or name in BERT_FILES)


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_library_imports_bert_and_itself_alone(method):
    files = loaded_by(method)
    rooms = {file.relative_to(ROOT).parts[0] for file in files}
    assert rooms <= {"bert", method}, f"import {method} loads files of {rooms - {'bert', method}}"
    assert not wrong_imports([file for file in files if method in file.relative_to(ROOT).parts],
                             lambda name: name.partition(".")[0] in ("bert", method))
