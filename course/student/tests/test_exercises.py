"""The public tests: each exercise on stored inputs. The grader draws other inputs, and more edges.

    python -m pytest -q -k attention            # add --tb=long for the whole way to an error
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from course.drivers import run_case
from course.judge import compare, judge

CASES = Path(__file__).parent / "cases"
PUBLIC = [(path.stem, number, case["kind"], case["title"]) for path in sorted(CASES.glob("*.json"))
          for number, case in enumerate(json.loads(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("exercise, number, kind, title", PUBLIC,
                         ids=[f"{name}-{kind}-{title}" for name, _, kind, title in PUBLIC])
def test_exercise(exercise, number, kind, title):
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
    except NotImplementedError as error:
        problem = str(error)
    if problem:
        known = tensors("hint")
        hint = next((f". It {meaning}." for n, (meaning, name) in enumerate(case["hints"])
                     if name in found and not compare(known[str(n)], found[name])), "")
        pytest.fail(f"{problem}{hint}", pytrace=False)
