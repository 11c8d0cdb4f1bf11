"""Known mistakes: mistakes.json has edits of the project's own functions, and what each one means.

    {exercise: [[function, old code, new code, "equals the answer without 1/√d"], …]}
"""

import ast
import importlib
import json
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

from bert.errors import UserError
from course.cases import reference
from course.exercises import ROOT
from course.judge import compare
from course.source import file_of, find


def known_mistakes(exercise):
    path = Path(__file__).with_name("mistakes.json")
    return json.loads(path.read_text(encoding="utf-8")).get(exercise, [])


@contextmanager
def edited(dotted, change):
    """Within this context the project's function runs change(its source) instead."""
    path, names = file_of(ROOT, dotted)
    source = (ROOT / path).read_text(encoding="utf-8")
    text = dedent("\n".join(source.splitlines()[slice(
        (node := find(source, names)).lineno - 1, node.end_lineno)]))
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    function, made = module, {}
    for name in names:
        function = getattr(function, name)
    new = change(text)
    if ast.dump(ast.parse(new)) == ast.dump(ast.parse(text)):
        raise UserError(f"the edit changes nothing in {dotted}")
    exec(compile(new, str(path), "exec"), vars(module), made)
    before = function.__code__
    function.__code__ = made[names[-1]].__code__
    try:
        yield
    finally:
        function.__code__ = before


def diagnose(exercise, case, found):
    """→ ". It equals …" if the outputs are those of a known mistake, or ""."""
    for function, old, new, meaning in known_mistakes(exercise):
        try:
            with edited(function, lambda text, old=old, new=new: text.replace(old, new, 1)):
                wrong = reference(exercise, case)
        except Exception:                                    # not on such inputs
            continue
        if wrong.keys() == found.keys() and not any(
                compare(value, found[name]) for name, value in wrong.items()):
            return f". It {meaning}."
    return ""
