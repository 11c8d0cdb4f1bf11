"""The public tests: each exercise on stored inputs. The grader draws other inputs, and more edges.

    python -m pytest -q -k attention            # add --tb=long for the whole way to an error
"""

import json
import traceback
from pathlib import Path

import pytest
from safetensors.torch import load_file

from course.drivers import run_case
from course.judge import compare, judge

ROOT, CASES = Path(__file__).parents[1], Path(__file__).parent / "cases"
PUBLIC = [(path.stem, number, case["kind"], case["title"]) for path in sorted(CASES.glob("*.json"))
          for number, case in enumerate(json.loads(path.read_text(encoding="utf-8")))]


def sentence(error):
    """→ what was raised, and in which of your lines"""
    if isinstance(error, NotImplementedError):
        return str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename
              and Path(frame.filename).name not in ("drivers.py", Path(__file__).name)]
    place = "".join(f" ({Path(frame.filename).relative_to(ROOT)}, line {frame.lineno}, "
                    f"{frame.name}: {frame.line})" for frame in frames[-1:])
    return f"{type(error).__name__}: {error}{place}"


@pytest.mark.parametrize("exercise, number, kind, title", PUBLIC,
                         ids=[f"{name}-{kind}-{title}" for name, _, kind, title in PUBLIC])
def test_exercise(exercise, number, kind, title, request):
    case = json.loads((CASES / f"{exercise}.json").read_text(encoding="utf-8"))[number]
    stored = load_file(CASES / f"{exercise}.safetensors")

    def tensors(what):
        start = f"{number}/{what}/"
        return {name[len(start):]: value for name, value in stored.items()
                if name.startswith(start)}

    found, expected = {}, tensors("out") | case["values"]
    try:
        found = run_case(exercise, tensors("in"), case["options"], kind == "gradient")
        problem = judge(exercise, tensors("in"), case["options"], expected, found)
    except Exception as error:
        if request.config.getoption("tbstyle") == "long":
            raise
        problem = sentence(error)
    if problem:
        known = tensors("hint")
        hint = next((f". It {meaning}." for n, (meaning, name) in enumerate(case["hints"])
                     if name in found and not compare(known[str(n)], found[name])), "")
        pytest.fail(f"{problem}{hint}", pytrace=False)
