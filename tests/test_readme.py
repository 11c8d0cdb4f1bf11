"""README's links lead somewhere, and its flags exist."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = ("train_multitask.py", "evaluate.py", "-m lora merge", "-m pruning importance",
           "-m pruning prune", "-m laser sweep", "-m laser search", "-m laser apply",
           "-m compression", "-m pretraining")


def test_links_lead_to_files_of_the_project_and_to_headings():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: which files belong to the project is not known")
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
                for line in TEXT.splitlines() if line.startswith("#")}
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True,
                           check=True).stdout.splitlines()
    folders = {f"{parent}/" for file in files for parent in Path(file).parents}
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert link.partition("#")[0] in {*files, *folders}, link


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_in_commands_are_known(script, capsys):
    commands = re.findall(rf"python {re.escape(script)}\b((?:[^\n`]|\\\n)*)", TEXT)
    assert commands
    name, *more = script.removeprefix("-m ").removesuffix(".py").split()
    module = importlib.import_module(f"{name}.__main__" if more else name)
    with pytest.raises(SystemExit):
        module.main([*more, "--help"])
    known = capsys.readouterr().out
    for flag in {flag for command in commands for flag in re.findall(r"--[a-z][a-z-]*", command)}:
        assert re.search(rf"{flag}\b", known), flag
