"""Write the handout: a copy of the project without the answers to the exercises."""

import shutil
from pathlib import Path
from textwrap import indent

import torch

from bert.errors import UserError
from bert.files import write_json, write_tensors
from course.cases import make_cases, reference
from course.exercises import EXERCISES, ROOT, STUDENT, equation_of, sections
from course.mistakes import hints
from course.source import replace

LEFT_OUT = ("tests", "docs", "benchmarks", "tools", "attack", "course")    # they show answers
SHARED = ("course/adamw.py", "course/drivers.py", "course/judge.py", "course/submit.py")
FILES = ("LICENSE", "requirements.txt", "train_multitask.py", "evaluate.py")
SUFFIXES = (".py", ".csv", ".json", ".txt", ".safetensors")


def copy(paths, root, out):
    """Copy these files of `root` to the same places of `out`."""
    for path in paths:
        target = out / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def copy_project(out, suffixes=SUFFIXES, shared=SHARED):
    """Copy the code, the sample data and the tiny checkpoint to `out`; no history, pages, tests or
    results."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")
                if path.parent.name not in LEFT_OUT]
    files = [path for package in (*packages, ROOT / "data") for path in package.rglob("*")
             if path.is_file() and path.suffix in suffixes]
    copy([*files, *(ROOT / name for name in (*FILES, *shared))], ROOT, out)


def stub(exercise, function):
    """→ the body of an exercise's function in the handout."""
    number, name = sections()[exercise][0], function.split(".", 2)[2]
    return (f"{indent(equation_of(exercise, function), '# ', lambda line: True)}\n"
            f'raise NotImplementedError("exercise {number} ({exercise}): write {name}; see "\n'
            f'                          "EXERCISES.md")')


def without_other_answers(exercise):
    """→ {dotted name: body} for the other functions that show the answer of an exercise."""
    left_out = (f'raise NotImplementedError("left out of the handout, because it shows the answer '
                f'to "\n                          "exercise {sections()[exercise][0]}")')
    return {name: body or left_out for name, body in EXERCISES[exercise].replaced.items()}


def write_public_cases(folder):
    """Write inputs and expected results of the public cases of each exercise, and what known
    mistakes give, for hints: EXERCISE.json and EXERCISE.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    for exercise in EXERCISES:
        tensors, records = {}, []
        for number, case in enumerate(case for case in make_cases(exercise, "public")
                                      if case.public):
            found = reference(exercise, case)
            for what, group in (("in", case.tensors), ("out", found)):
                tensors |= {f"{number}/{what}/{name}": value
                            for name, value in group.items() if isinstance(value, torch.Tensor)}
            known = hints(exercise, case, found)
            tensors |= {f"{number}/hint/{n}": value for n, (*_, value) in enumerate(known)}
            records.append({"kind": case.kind, "title": case.title, "options": case.options,
                            "hints": [[meaning, name] for meaning, name, _ in known],
                            "values": {name: value for name, value in found.items()
                                       if not isinstance(value, torch.Tensor)}})
        write_tensors(folder / f"{exercise}.safetensors", tensors)
        write_json(folder / f"{exercise}.json", records)


def write_handout(out):
    """Write the handout to the folder `out`, which must be new or empty. → the number of files"""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and is no empty folder; name a new one")
    copy_project(out)
    for exercise, row in EXERCISES.items():
        replace(out, {name: stub(exercise, name) for name in row.functions}
                | without_other_answers(exercise))
    copy([path for path in STUDENT.rglob("*") if path.is_file() and path.suffix != ".pyc"],
         STUDENT, out)
    (out / "course" / "__init__.py").write_text(
        '"""AdamW by hand, and what the public tests need."""\n', encoding="utf-8")
    write_public_cases(out / "tests" / "cases")
    return sum(path.is_file() for path in out.rglob("*"))
