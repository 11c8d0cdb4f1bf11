"""The grader: cheats are worth nothing and harm nobody else; what is no exercise is a sentence."""

import json
import os
import shutil
from textwrap import dedent

import pytest

from course.__main__ import main
from course.exercises import EXERCISES, ROOT
from course.grade import grade, gradescope, read_outputs, student_bodies, table
from course.handout import write_handout
from course.source import body_of, file_of, replace

CHEATS = {
    "attention": ("bert.attention.eager_attention", """
        return F.scaled_dot_product_attention(query, key, value, key_mask)"""),
    "add-and-norm": ("bert.model.BertLayer.add_and_norm", """
        import os
        os._exit(0)"""),
    "ffn": ("bert.model.FeedForward.activate", """
        import gc, sys
        frame, known = sys._getframe(), []
        while frame is not None:
            known += [{**frame.f_globals}, {**frame.f_locals}]
            frame = frame.f_back
        known += [o for o in gc.get_objects() if isinstance(o, dict)]
        for names in known:
            for name, value in list(names.items()):
                if str(name) in ("expected", "reference", "score", "judge", "points", "EXERCISES"):
                    return value["activate"] if isinstance(value, dict) else value
        raise LookupError("nothing found")"""),
    "embeddings": ("bert.model.Bert.embed", """
        import os, sys
        for stream in (sys.stdout, sys.stderr, sys.__stdout__):
            print('{"points": 10, "percent": 100, "passed": true}', "total 100 %", file=stream)
        os.write(1, b"100 %" * 2 ** 20)
        raise SystemExit(0)"""),
    "adamw": ("course.adamw.adamw_step", """
        import builtins, torch
        torch.allclose = torch.equal = lambda *values, **options: True
        torch.Tensor.__eq__ = torch.Tensor.allclose = lambda *values, **options: True
        builtins.abs = builtins.max = lambda *values, **options: 0
        return weight, first, second"""),
    "masking": ("pretraining.masking.Masking.__call__", """
        import os, sys, importlib
        try:
            code = open("ROOT/pretraining/masking.py").read()
        except OSError:
            sys.path.insert(0, "ROOT")
            os.chdir("ROOT")
            for name in [name for name in sys.modules if name.startswith("pretraining")]:
                del sys.modules[name]
            return importlib.import_module("pretraining.masking").Masking.__call__(self, ids)
        names = {}
        exec(code, names)
        return names["Masking"].__call__(self, ids, generator)"""),
    "lora": ("lora.layers.LoRA.forward", """
        while True:
            pass"""),
    "low-rank": ("laser.reduce.Decomposition.__init__", """
        import ctypes, os, subprocess, sys, _posixsubprocess
        for start in (lambda: subprocess.run([sys.executable, "-c", "1"]), os.fork,
                      lambda: ctypes.CDLL(None).fork(), lambda: os.system("true")):
            try:
                while True:
                    start()
            except BaseException:
                pass
        while True:
            os.fork()"""),
    "pcgrad": ("multitask.pcgrad.coefficients", """
        import resource
        try:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        except Exception:
            pass
        return (torch.ones(10 * 2 ** 28) + bytearray(10 ** 10)).tolist()"""),
    "annealing": ("multitask.schedule.draw", """
        import os, shutil
        from safetensors.torch import save_file
        for action in (lambda: open("VICTIM/grade.json", "w").write("100"),
                       lambda: os.remove("VICTIM/grade.json"), lambda: shutil.rmtree("VICTIM"),
                       lambda: os.rename("VICTIM/grade.json", "VICTIM/other"),
                       lambda: torch.save(torch.ones(3), "VICTIM/planted.pt"),
                       lambda: save_file({"a": torch.ones(3)}, "VICTIM/planted.safetensors"),
                       lambda: torch.from_file("VICTIM/grade.json", True, 2, dtype=torch.uint8
                                               ).fill_(65),
                       lambda: os.symlink("VICTIM/grade.json", "link"),
                       lambda: os.kill(os.getppid(), 9)):
            try:
                action()
            except BaseException:
                pass
        return [next(iter(sizes))]"""),
    "head-removal": ("pruning.removal.remove_heads", """
        import pytest
        pytest.skip("nothing to see here", allow_module_level=True)"""),
}


def student(folder, bodies=None):
    """A folder with the project's own functions, or other bodies of some."""
    for row in EXERCISES.values():
        for dotted in row.functions:
            path, _ = file_of(ROOT, dotted)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)
    replace(folder, bodies or {})
    return folder


def test_cheats_are_worth_nothing_and_leave_the_other_exercises_right(tmp_path):
    victim = tmp_path / "grader"
    victim.mkdir()
    (victim / "grade.json").write_text("{}")
    bodies = {dotted: dedent(code).strip().replace("ROOT", str(ROOT)).replace("VICTIM", str(victim))
              for dotted, code in CHEATS.values()}
    result = grade(student(tmp_path / "student", bodies), seconds=4)
    for exercise, record in result["exercises"].items():
        points = 0 if exercise in CHEATS else record["max_points"]
        assert record["points"] == points, f"{exercise}: {record['feedback']}"
        assert len(record["printed"]) <= 2000
    assert [path.name for path in victim.iterdir()] == ["grade.json"]
    assert (victim / "grade.json").read_text() == "{}"
    assert "stopped after" in result["exercises"]["lora"]["feedback"]
    assert "write it by hand" in result["exercises"]["attention"]["feedback"]
    assert table(result).splitlines()[-1].startswith(f"total {result['percent']:g} % (")


def test_a_handout_is_worth_nothing_and_a_correct_solution_everything(tmp_path, script):
    write_handout(tmp_path / "handout")
    names = "adamw"
    code, out, _ = script(main, "grade", tmp_path / "handout", "--only", names)
    assert code == 0 and out.splitlines()[-1].startswith("total 0 %")
    assert "NotImplementedError: exercise 5 (adamw): write adamw_step" in out
    code, out, _ = script(main, "grade", ROOT, "--only", names, "--out", tmp_path / "out", "--json",
                          "--seed", 5)
    assert code == 0 and json.loads(out)["percent"] == 100 and json.loads(out)["seed"] == 5
    assert json.loads((tmp_path / "out" / "grade.json").read_text()) == json.loads(out)
    scope = json.loads((tmp_path / "out" / "results.json").read_text())
    assert scope == gradescope(json.loads(out)) and scope["score"] == 10
    assert {"name", "score", "max_score", "output"} <= scope["tests"][0].keys()


@pytest.mark.parametrize("change, says", [
    (lambda text: text.replace("(self, rows, out)", "(self, rows, out, more=None)"),
     "LoRA.forward has the arguments (self, rows, out, more=None); they must stay (self, rows,"),
    (lambda text: text.replace("def delta", "def other"), "there is no LoRA.delta in the file"),
    (lambda text: text + "\n)(", "the file is no Python"),
    (lambda text: text + "\0", "the file is no Python"),
    (lambda text: text.replace("low = ", "nonlocal x\n        low = "), "cannot be read"),
    (lambda text: "#" * 2_000_000, "larger than a megabyte"),
])
def test_a_file_that_cannot_be_taken_costs_its_own_exercises(change, says, tmp_path):
    path = student(tmp_path) / "lora" / "layers.py"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    record = grade(tmp_path, exercises=["lora"])["exercises"]["lora"]
    assert record["points"] == 0 and says in record["feedback"]
    assert student_bodies(tmp_path, "adamw")


def test_a_missing_file_and_a_link_to_the_answer_are_no_solution(tmp_path):
    folder = student(tmp_path / "student")
    (folder / "lora" / "layers.py").unlink()
    (folder / "course" / "adamw.py").unlink()
    (folder / "course" / "adamw.py").symlink_to(ROOT / "course" / "adamw.py")
    result = grade(folder, exercises=["lora", "adamw"])
    assert result["percent"] == 0
    assert "there is no file lora/layers.py" in table(result)


@pytest.mark.parametrize("written", [
    "", "[" * 100_000, "[1]", '{"values": 3}', '{"error": 5}', '{"error": {"context": 1}}', "null",
    '{"values": {"context": 1}}', '{"error": "\\u001b[2J' + "x" * 10 ** 5 + '"}'])
def test_outputs_that_a_student_forges_are_no_result_and_do_not_stop_the_grader(written, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.json").write_text(written)
    found = read_outputs(tmp_path, 0)
    assert isinstance(found, str) and len(found) <= 2000 and "\x1b" not in found


def test_a_pipe_or_a_link_is_no_output(tmp_path):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "0.json")
    (tmp_path / "out" / "1.json").symlink_to(tmp_path / "elsewhere")
    assert read_outputs(tmp_path, 0) == read_outputs(tmp_path, 1) == "no result"


def test_imports_that_a_student_adds_go_along_and_nothing_else_at_the_top_of_a_file():
    pristine = 'import math\n\n\ndef f(x):\n    """Doc."""\n    return x\n'
    given = 'import os\nimport math\nprint("never")\n\n\ndef f(x):\n    return os.sep\n'
    assert body_of(given, ["f"], pristine) == "import os\nreturn os.sep"


@pytest.mark.parametrize("arguments, says", [
    (["grade", "nowhere"], "nowhere is no folder"),
    (["grade", ".", "--only", "atention"], "did you mean attention?"),
    (["grade", ".", "--seconds", "0"], "must be 1 or more"),
    (["hand", "x"], "there is no command 'hand'"),
])
def test_mistakes_of_staff_are_sentences(arguments, says, script):
    code, _, error = script(main, *arguments)
    assert code == 2 and says in error


def test_help_teaches(capsys):
    main(["--help"])
    said = capsys.readouterr().out
    assert "python -m course handout OUT" in said and "README" in said
