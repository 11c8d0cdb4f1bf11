"""bert/ is the encoder and nothing else: a copy of the folder works in another project."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from bert import Bert, Tokenizer

ROOT = Path(__file__).parent.parent.parent
TEXTS = ["a film", "the story was never dull", "good"]
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from bert import Bert, Tokenizer
bert, tokenizer = Bert.from_pretrained("tiny"), Tokenizer.from_pretrained("tiny")
torch.save(tuple(bert(**tokenizer(sys.argv[2:]))[:2]), sys.argv[1] + "/out.pt")
own = {name.partition(".")[0] for name, module in sys.modules.items()
       if (getattr(module, "__file__", None) or "").startswith(sys.argv[1])}
assert own == {"bert"}, own
"""


def test_a_copy_in_an_empty_folder_gives_the_same_output(tmp_path):
    shutil.copytree(ROOT / "bert", tmp_path / "bert", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-I", "-c", CODE, str(tmp_path), *TEXTS], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bert, tokenizer = Bert.from_pretrained("tiny"), Tokenizer.from_pretrained("tiny")
    expected = bert(**tokenizer(TEXTS))
    states, pooled = torch.load(tmp_path / "out.pt")
    assert torch.equal(states, expected[0]) and torch.equal(pooled, expected[1])


def test_no_file_of_bert_imports_anything_of_the_project_but_bert():
    others = {path.name.removesuffix(".py") for path in ROOT.iterdir()
              if path.is_dir() or path.suffix == ".py"} - {"bert"}
    assert {"common", "multitask", "lora", "train_multitask"} <= others
    for path in (ROOT / "bert").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            assert not {name.partition(".")[0] for name in names} & others, f"{path}: {names}"
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative"
