"""Grade a student's folder: the student's code only computes, in workers; this process judges.

For each exercise a worker (course/worker.py) gets a project of its own, in which only the functions
of this exercise are the student's. Its outputs are safetensors and JSON; nothing is unpickled, and
what it prints is never parsed.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import load_file

from bert.errors import UserError
from bert.files import write_json, write_tensors
from common.log import progress_bar
from common.tables import text_table
from course.cases import make_cases, reference
from course.exercises import EXERCISES, ROOT
from course.handout import copy_project, without_other_answers
from course.judge import judge
from course.mistakes import diagnose
from course.source import body_of, file_of, replace, with_body

SHARES = {"forward": 0.5, "gradient": 0.25, "edge": 0.25}    # of an exercise's points
LIMITS = {"memory": 2 ** 31, "file_size": 2 ** 25}           # bytes beyond those of the imports
PRINTED = 2000                                               # characters of output that are kept


def student_bodies(folder, exercise):
    """→ {dotted name: the student's body}. UserError if one cannot be taken."""
    bodies, folder = {}, Path(folder).resolve()
    for dotted in EXERCISES[exercise].functions:
        path, names = file_of(ROOT, dotted)
        given, pristine = folder / path, (ROOT / path).read_text(encoding="utf-8")
        if not given.is_file() or given.resolve() != given:
            raise UserError(f"there is no file {path} (links are not followed)")
        if given.stat().st_size > 10 ** 6:
            raise UserError(f"{path} is larger than a megabyte")
        try:
            bodies[dotted] = body_of(given.read_text(encoding="utf-8"), names, pristine)
            compile(with_body(pristine, names, bodies[dotted]), str(path), "exec")
        except UserError:
            raise
        except Exception as error:                           # whatever a file may do to a parser
            raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return bodies


def prepare(folder, tree, bodies, exercise, cases, seconds):
    """Write the worker's folder."""
    shutil.copytree(tree, folder / "tree")
    replace(folder / "tree", without_other_answers(exercise) | bodies)
    (folder / "out").mkdir()
    write_tensors(folder / "inputs.safetensors", {
        f"{n}/{name}": tensor for n, case in enumerate(cases)
        for name, tensor in case.tensors.items()})
    write_json(folder / "request.json", {
        "exercise": exercise, "forbidden": EXERCISES[exercise].forbidden,
        "limits": LIMITS | {"seconds": seconds},
        "cases": [{"options": case.options, "gradient": case.kind == "gradient"}
                  for case in cases]})


def printable(text):
    return "".join(c for c in str(text)[:PRINTED] if c.isprintable() or c == "\n")


def run_worker(folder, seconds):
    """→ None, or a sentence why the worker was stopped; and the beginning of what it printed."""
    with open(folder.with_suffix(".txt"), "w+b") as printed:
        process = subprocess.Popen(
            [sys.executable, "-I", str(folder / "tree" / "course" / "worker.py"), str(folder)],
            cwd=folder, env={}, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
            start_new_session=True)
        try:
            process.wait(2 * seconds + 30)                   # a worker may have to wait for a CPU
            problem = {-signal.SIGXCPU: f"stopped after {seconds} seconds",
                       -signal.SIGKILL: "stopped: too much memory or time"}.get(process.returncode)
        except subprocess.TimeoutExpired:
            problem = f"stopped after {2 * seconds + 30} seconds"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass                                         # the whole group has ended
            process.wait()
        printed.seek(0)
        text = printed.read(4 * PRINTED).decode("utf-8", "replace")
    return problem, printable(text)


def read_outputs(folder, number):
    """→ {name: value} of a case, or a sentence."""
    values, tensors = (folder / "out" / f"{number}.{kind}" for kind in ("json", "safetensors"))
    if any(file.is_symlink() or file.exists() and not file.is_file() for file in (values, tensors)):
        return "no result"
    if not values.is_file():
        return "no result: the process ended before"
    try:
        found = json.loads(values.read_text(encoding="utf-8"))
        return printable(found["error"]) if "error" in found else (
            load_file(tensors) | found["values"])
    except Exception as error:                               # a student's code may write anything
        return f"no readable result ({type(error).__name__})"


def grade_exercise(student, exercise, tree, work, seed, seconds):
    """→ (the cases, what each gave: {name: value} or a sentence, what was printed)"""
    cases = make_cases(exercise, seed)
    try:
        bodies = student_bodies(student, exercise)
    except UserError as error:
        return cases, [str(error)] * len(cases), ""
    folder = work / exercise
    prepare(folder, tree, bodies, exercise, cases, seconds)
    problem, printed = run_worker(folder, seconds)
    found = [read_outputs(folder, number) for number in range(len(cases))]
    found = [problem if problem and isinstance(one, str) else one for one in found]
    shutil.rmtree(folder, ignore_errors=True)
    return cases, found, printed


def score(exercise, cases, found, printed=""):
    """→ the record of an exercise: points, a row for each case, feedback on the first problem."""
    rows, first = [], None
    for case, outputs in zip(cases, found):
        problem = outputs if isinstance(outputs, str) else judge(
            exercise, case.tensors, case.options, reference(exercise, case), outputs)
        if problem and first is None:
            first = f"{case.kind}, {case.title}: {problem}"
            first += diagnose(exercise, case, outputs) if isinstance(outputs, dict) else ""
        rows.append({"kind": case.kind, "title": case.title, "problem": problem})
    parts = {kind: [row["problem"] is None for row in rows if row["kind"] == kind]
             for kind in SHARES if any(row["kind"] == kind for row in rows)}
    shares = {kind: sum(right) / len(right) if any(parts["forward"]) else 0.0
              for kind, right in parts.items()}
    total = sum(SHARES[kind] for kind in parts)
    max_points = EXERCISES[exercise].points
    return {"points": round(max_points * sum(SHARES[k] * s for k, s in shares.items()) / total, 2),
            "max_points": max_points, "shares": shares, "feedback": first or "", "cases": rows,
            "printed": printed}


def grade(student, seed=None, exercises=tuple(EXERCISES), seconds=20, jobs=2):
    """→ {"seed", "percent", "points", "max_points", "exercises": {name: record}}"""
    seed = secrets.randbelow(10 ** 9) if seed is None else seed
    records = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        work = Path(work).resolve()
        copy_project(work / "tree", suffixes=(".py",), shared=[f"course/{name}.py" for name in (
            "__init__", "adamw", "drivers", "worker", "fence")])
        with (ThreadPoolExecutor(jobs) as pool,
              progress_bar("grading", len(exercises), "exercise", leave=False) as bar):
            waiting = {name: pool.submit(grade_exercise, student, name, work / "tree", work, seed,
                                         seconds) for name in exercises}
            for name, result in waiting.items():
                records[name] = score(name, *result.result())
                bar.update()
    points, max_points = (sum(record[what] for record in records.values())
                    for what in ("points", "max_points"))
    return {"seed": seed, "percent": round(100 * points / max_points, 2),
            "points": round(points, 2), "max_points": max_points, "exercises": records}


def table(result):
    """→ the text that is printed; its last line is the total."""
    rows = [["exercise", *SHARES, "points", "of"]]
    for name, record in result["exercises"].items():
        shares = (f"{record['shares'][k]:.0%}" if k in record["shares"] else "" for k in SHARES)
        rows.append([name, *shares, f"{record['points']:g}", str(record["max_points"])])
    feedback = [f"{name}: {record['feedback']}" for name, record in result["exercises"].items()
                if record["feedback"]]
    total = (f"total {result['percent']:g} % ({result['points']:g} of {result['max_points']} "
             f"points, seed {result['seed']})")
    return "\n".join([text_table(rows), *([""] if feedback else []), *feedback, "", total])


def gradescope(result):
    """→ the content of Gradescope's results.json"""
    return {"score": result["points"], "output": f"seed {result['seed']}", "tests": [
        {"name": name, "score": record["points"], "max_score": record["max_points"],
         "output": record["feedback"] or "all right", "visibility": "visible"}
        for name, record in result["exercises"].items()]}
