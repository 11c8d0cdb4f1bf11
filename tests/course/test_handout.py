"""The handout: it shows no answer, and its public tests fail until a function is written."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bert.errors import UserError
from course.__main__ import main
from course.exercises import EXERCISES, ROOT, equation_of
from course.handout import write_handout
from course.mistakes import known_mistakes
from course.source import file_of, find, replace, statements

ELSEWHERE = {                                                # what no answer hangs on
    "attention": {"probabilities(scores, dim=-1)"},          # the page says how it is called
    "add-and-norm": {"self.output_norm"}, "ffn": {"self.activation("},
    "embeddings": {"layout.positions"}, "importance": {"parameter.requires_grad_(False)"},
    "annealing": {"(epoch - 1) / (epochs - 1)",  # a help text
                  "generator = torch.Generator().manual_seed(seed * 1000003 + step)",
                  "torch.Generator().manual_seed(seed * 1_000_003 + step)"},
    "head-removal": {"heads = _check_parts(bert, heads, 'head', bert.config.remaining_heads)",
                     "in (query, key, value)"}}


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "handout"
    write_handout(folder)
    return folder


def body(dotted):
    path, names = file_of(ROOT, dotted)
    return statements(find((ROOT / path).read_text(encoding="utf-8"), names))


def public_tests(folder, *arguments):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                           *arguments], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def texts(handout):
    """→ {file: its text, and its code as ast.unparse writes it, without white space}"""
    found = {}
    for path in handout.rglob("*"):
        if path.suffix in (".py", ".md", ".toml"):
            text = path.read_text(encoding="utf-8")
            code = ast.unparse(ast.parse(text)) if path.suffix == ".py" else ""
            found[str(path.relative_to(handout))] = squeezed(text) + squeezed(code)
    return found


def squeezed(text):
    return re.sub(r"\s+", "", text)


def key_expressions(exercise):
    """The statements of an exercise's functions, and what its known mistakes replace."""
    found = {old for _, old, _, _ in known_mistakes(exercise) if len(old) >= 14}
    for dotted in EXERCISES[exercise].functions:
        for statement in body(dotted):
            lines = ast.unparse(statement).splitlines()
            found |= {line.strip() for line in lines if len(line.strip()) >= 30}
    return {text for text in found if not text.startswith("raise UserError")}


@pytest.mark.parametrize("exercise", EXERCISES)
def test_no_key_expression_of_an_exercise_is_left(exercise, texts):
    keys = key_expressions(exercise) - ELSEWHERE.get(exercise, set())
    assert len(keys) >= 3
    for path, text in texts.items():
        shown = {key for key in keys if squeezed(key) in text}
        assert not shown, f"{path} shows {exercise}: {shown}"


def test_history_pages_tests_and_the_grader_stay_here(handout):
    there = {str(path.relative_to(handout)) for path in handout.rglob("*")}
    assert not {".git", "docs", "benchmarks", "tools", "tests/course", "course/mistakes.json",
                "course/cases.py", "course/grade.py", "course/worker.py",
                "bert/tiny/README.md"} & there
    assert {"EXERCISES.md", "AGENTS.md", "CHANGELOG.md", "bert/tiny/model.safetensors",
            "data/sts-dev.csv", "tests/test_exercises.py"} <= there
    assert not [name for name in there if "__pycache__" in name]


def test_bodies_hold_docstring_equation_and_error_and_files_stay_python(handout):
    for row in EXERCISES.values():
        for dotted in row.functions:
            path, names = file_of(handout, dotted)
            text = (handout / path).read_text(encoding="utf-8")
            node = find(text, names)
            assert ast.unparse(statements(node)[0]).startswith("raise NotImplementedError")
            lines = text.splitlines()[node.lineno - 1:node.end_lineno]
            assert any(line.strip().startswith("# ") for line in lines), dotted
            assert ast.get_docstring(node) == ast.get_docstring(find(
                (ROOT / path).read_text(encoding="utf-8"), names))
    for path in handout.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_public_tests_fail_in_sentences_that_name_the_exercise(handout):
    code, said = public_tests(handout)
    assert code == 1 and re.search(r"^\d+ failed in", said, re.MULTILINE), said[-2000:]
    for number, (exercise, row) in enumerate(EXERCISES.items(), 1):
        names = [dotted.split(".", 2)[2] for dotted in row.functions]
        assert any(f"exercise {number} ({exercise}): write {name}; see EXERCISES.md" in said
                   for name in names), exercise
    assert "Traceback" not in said and "def test_exercise" not in said
    failures = [line for line in said.splitlines() if re.match("_+ test_exercise", line)]
    assert said.count("see EXERCISES.md") == len(failures) >= 80         # each is said once


def test_a_wrong_answer_is_one_sentence_with_a_hint_and_an_error_shows_the_students_line(
        handout, tmp_path):
    shutil.copytree(handout, tmp_path / "wrong")
    replace(tmp_path / "wrong", {
        "course.adamw.adamw_step": "import torch\nfirst = betas[0] * first + (1 - betas[0]) * "
        "gradient\nsecond = betas[1] * second + (1 - betas[1]) * gradient ** 2\n"
        "step = weight_decay * weight + first / (1 - betas[0] ** step) / torch.sqrt("
        "second / (1 - betas[1] ** step) + eps)\nreturn weight - lr * step, first, second",
        "lora.layers.LoRA.merge_into": "base.weight += self.C"})
    _, said = public_tests(tmp_path / "wrong", "-k", "adamw and large")
    assert re.search(r"^weight: .* instead of .*It equals the answer with ε inside the root\.$",
                     said, re.MULTILINE), said
    assert len(said.splitlines()) < 8, said
    _, said = public_tests(tmp_path / "wrong", "-k", "lora and forward")
    assert "no attribute 'C' (lora/layers.py, line " in said and "base.weight += self.C)" in said
    assert "drivers.py" not in said


def test_public_tests_pass_for_a_solved_handout_and_its_scripts_start(handout, tmp_path):
    shutil.copytree(handout, tmp_path / "solved")
    for row in EXERCISES.values():
        replace(tmp_path / "solved", {dotted: "\n".join(map(ast.unparse, body(dotted)))
                                      for dotted in row.functions})
    code, said = public_tests(tmp_path / "solved")
    assert code == 0, said
    done = subprocess.run([sys.executable, "train_multitask.py", "--help"], cwd=handout,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "--lora" in done.stdout
    done = subprocess.run([sys.executable, "-m", "course", "submit", "nowhere"], cwd=handout,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere is not a saved run" in done.stderr


def test_exercises_page_names_every_function_and_agents_page_asks_to_tutor(handout):
    page = (handout / "EXERCISES.md").read_text(encoding="utf-8")
    for row in EXERCISES.values():
        for dotted in row.functions:
            assert dotted.rpartition(".")[2] in page or "Decomposition." in dotted, dotted
    assert f"{len(EXERCISES)} exercises" in (handout / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "tutor" in (handout / "AGENTS.md").read_text(encoding="utf-8")


def test_every_file_that_a_page_names_is_there(handout):
    for page in handout.glob("*.md"):
        for name in re.findall(r"`([\w/]+\.\w+)`", page.read_text(encoding="utf-8")):
            if "/" in name or name.endswith((".md", ".py")):
                assert (handout / name).is_file(), f"{page.name} names {name}"


def test_the_exercises_table_is_that_of_the_code(handout):
    page = (handout / "EXERCISES.md").read_text(encoding="utf-8")
    for number, (exercise, row) in enumerate(EXERCISES.items(), 1):
        lines = sum(body(name)[-1].end_lineno - body(name)[0].lineno + 1 for name in row.functions)
        path = file_of(ROOT, row.functions[0])[0]
        start = f"| {number} | `{exercise}` | `{path}` | "
        found = next(line for line in page.splitlines() if line.startswith(start))
        assert found.endswith(f" | {lines} |"), (found, lines)
        for dotted in row.functions:
            assert f"{dotted.rpartition('.')[2]}`" in found, dotted


def test_a_function_shows_its_own_part_of_the_equation():
    assert equation_of("exit-ensemble", "early_exit.exits.arithmetic").startswith("arithmetic: ")
    assert "RAMP_SCALE" in equation_of("r-softmax", "bert.r_softmax.r_softmax")
    assert "RAMP_SCALE" not in equation_of("r-softmax", "bert.r_softmax.threshold")
    assert len(equation_of("adamw", "course.adamw.adamw_step").splitlines()) == 3


def test_a_folder_that_is_not_empty_is_refused(tmp_path, script):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="no empty folder"):
        write_handout(tmp_path)
    code, _, error = script(main, "handout", Path(__file__))
    assert code == 2 and "no empty folder" in error
