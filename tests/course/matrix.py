"""Grade every known mistake and every correct variant by workers, one of each exercise at a time;
five minutes on two cores. The tests beside this file judge them in one process.

    python tests/course/matrix.py            # or: make course
"""

import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from course_variants import VARIANTS  # noqa: E402
from test_grade import student  # noqa: E402

from course.exercises import EXERCISES, ROOT  # noqa: E402
from course.grade import grade, table  # noqa: E402
from course.mistakes import known_mistakes  # noqa: E402
from course.source import body_of, file_of, find  # noqa: E402


def mistaken(function, old, new):
    """→ the body of a function with a known mistake"""
    path, names = file_of(ROOT, function)
    source = (ROOT / path).read_text(encoding="utf-8")
    node, lines = find(source, names), source.splitlines()
    text = "\n".join(lines[node.lineno - 1:node.end_lineno]).replace(old, new, 1)
    changed = "\n".join([*lines[:node.lineno - 1], text, *lines[node.end_lineno:]])
    return body_of(changed, names, source)


def rounds():
    """Yield (what, {function: body}, the exercises that must lose points): of mistakes all that are
    graded."""
    for n in range(2):
        yield f"variants {n}", {function: body.strip() for exercise in EXERCISES
                                for function, body in VARIANTS[exercise][n].items()}, set()
    yield "hang", {EXERCISES["ffn"].functions[0]: "import time\ntime.sleep(1000)"}, {"ffn"}
    for n in range(max(len(known_mistakes(exercise)) for exercise in EXERCISES)):
        chosen = {e: known_mistakes(e)[n] for e in EXERCISES if n < len(known_mistakes(e))}
        yield f"mistakes {n}", {function: mistaken(function, old, new)
                                for function, old, new, _ in chosen.values()}, set(chosen)


def main():
    wrong = []
    for what, bodies, losing in rounds():
        with tempfile.TemporaryDirectory() as folder:
            graded = [name for name in EXERCISES if name in losing] or list(EXERCISES)
            result = grade(student(Path(folder), bodies), exercises=graded)
        lost = {name for name, record in result["exercises"].items()
                if record["points"] < record["max_points"]}
        verdict = "as it must be" if lost == losing else "WRONG"
        print(f"\n{what}: {verdict}\n{table(result)}", flush=True)
        wrong += [what] if lost != losing else []
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
