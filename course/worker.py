"""Run one exercise with a student's functions: inputs in, outputs out, nothing else.

    python -I worker.py FOLDER        # FOLDER/tree, request.json, inputs.safetensors → FOLDER/out

The grader starts it. This process holds no expected results, no rules and no scores.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path


def forbid(name):
    """Make a library function raise."""
    def refuse(*values, **options):
        raise PermissionError(f"{name} is the answer itself; write it by hand")

    module, _, attribute = name.rpartition(".")
    if hasattr(importlib.import_module(module), attribute):
        setattr(sys.modules[module], attribute, refuse)


def explain(error):
    """→ what was raised, and in which function of the project"""
    *_, frame = [frame for frame in traceback.extract_tb(error.__traceback__)
                 if "/tree/" in frame.filename]
    text = "".join(traceback.format_exception_only(error)).strip()[:600]
    return f"{text} (in {Path(frame.filename).name}, {frame.name})"


def main(folder):
    sys.path.insert(0, str(folder / "tree"))
    import torch
    from safetensors.torch import load_file, save_file

    from course.drivers import run_case
    from course.fence import fence

    torch.set_num_threads(1)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    inputs = load_file(folder / "inputs.safetensors")
    for name in request["forbidden"]:
        forbid(name)
    fence(str(folder), **request["limits"])
    for number, case in enumerate(request["cases"]):
        start, values = f"{number}/", {}
        given = {name[len(start):]: t for name, t in inputs.items() if name.startswith(start)}
        try:
            found = run_case(request["exercise"], given, case["options"], case["gradient"])
            tensors = {name: t.clone() for name, t in found.items() if isinstance(t, torch.Tensor)}
            values = {"values": {name: v for name, v in found.items() if name not in tensors}}
            save_file(tensors, folder / "out" / f"{number}.safetensors")
        except BaseException as error:                       # a student's code may raise anything
            values = {"error": explain(error)}
        (folder / "out" / f"{number}.json").write_text(json.dumps(values), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
