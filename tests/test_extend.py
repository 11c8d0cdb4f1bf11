"""The changes that docs/extend.md shows apply, train, open again, and act."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_course_data, write_table
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
SECTION = re.compile(r"^## (.+?)\n.*?```sh\npython train_multitask.py (.+?)\n```\n+"
                     r"```diff\n(.*?)```", re.MULTILINE | re.DOTALL)
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = {title: (command, diff) for title, command, diff in SECTION.findall(PAGE)}

# For each line [folder with the code, arguments, run, probe]: train in one new process, open the
# run in another, compare the scores, execute the probe; answer with the exit code. New processes
# are forks: torch is imported once for all changes, the project anew in each.
SERVER = """
import contextlib, io, json, multiprocessing, os, sys
from pathlib import Path
import matplotlib.figure, safetensors.torch, scipy.optimize, scipy.stats, tokenizers, torch, tqdm

def train(arguments, run, probe):
    import train_multitask
    os.dup2(2, 1)
    train_multitask.main([*arguments, "--out", run])

def reopen(arguments, run, probe):
    import evaluate
    with contextlib.redirect_stdout(io.StringIO()) as out:
        evaluate.main([run, "--json"])
    assert json.loads(out.getvalue()) == json.loads(Path(run, "metrics.json").read_text())
    exec(probe, {"run": run})

for line in sys.stdin:
    folder, *job = json.loads(line)
    os.chdir(folder)
    for step in (train, reopen):
        process = multiprocessing.get_context("fork").Process(target=step, args=job)
        process.start()
        process.join()
        if process.exitcode:
            break
    print(process.exitcode, flush=True)
"""


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """A function: one of SERVER's jobs → exit code, what was printed."""
    errors = tmp_path_factory.mktemp("server") / "stderr"
    with open(errors, "w") as stderr, subprocess.Popen(
            [sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"}) as server:

        def call(*job):
            print(json.dumps(job, default=str), file=server.stdin, flush=True)
            return int(server.stdout.readline()), errors.read_text()

        yield call


@pytest.fixture(scope="module")
def tracked():
    """The project's files."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: which files belong to the project is not known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True,
                            check=True).stdout.splitlines()
    return [file for file in listed if (ROOT / file).is_file() and not file.startswith("tests/")]


@pytest.fixture(scope="module")
def nli_data(tmp_path_factory):
    """The course's files, and those of an NLI task."""
    folder = write_course_data(tmp_path_factory.mktemp("data") / "course")
    for split, count in (("train", 40), ("dev", 16)):
        write_table(folder / f"nli-{split}.csv", ("id", "premise", "hypothesis", "label"), [
            (f"nli{split}{n}", "the cat is very good .", f"the cat is {word} .", n % 3)
            for n, word in enumerate(("good", "not bad", "bad", "fine") * (count // 4))])
    return folder


@pytest.mark.parametrize("title", SECTIONS)
def test_a_change_applies_trains_opens_again_and_acts(title, serve, tracked, checkpoint, nli_data,
                                                      tmp_path):
    command, diff = SECTIONS[title]
    check, probe = CHECKS[title]
    copy, run = tmp_path / "copy", tmp_path / "run"
    for file in tracked:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    applied = subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, text=True,
                             capture_output=True)
    assert applied.returncode == 0, applied.stderr
    code, printed = serve(copy, [
        *command.split(), "--bert", str(checkpoint), "--data", str(nli_data), "--steps", "5",
        "--batch-size", "16", "--lr", "3e-3", "--log-every", "1"], run, probe)
    assert code == 0, printed
    check(run, checkpoint)


def test_every_change_is_short_and_none_is_untested():
    assert list(SECTIONS) == list(CHECKS) and len(CHECKS) == PAGE.count("\n## ")
    for title, (_, diff) in SECTIONS.items():
        changed = [line for line in diff.splitlines()
                   if line[:1] in ("+", "-") and not line.startswith(("+++ ", "--- "))]
        assert len(changed) <= 25 and max(map(len, changed)) <= 101, title


# ------------------------------------------------------- what shows that a change acted: files


def log_lines(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def check_task(run, checkpoint):
    looks = {line["step"]: line["dev"] for line in log_lines(run) if "dev" in line}
    record = json.loads((run / "run.json").read_text())
    assert len(looks) == 2 and all(0 <= look["nli"]["accuracy"] <= 1 for look in looks.values())
    assert record["best_step"]["shared"] == max(looks, key=lambda step: looks[step]["mean"])
    assert (run / "predictions" / "nli-dev-output.csv").is_file()


def check_pooling(run, checkpoint):
    heads = load_file(run / "heads.safetensors")
    own = [heads[f"poolings.{task}.score.weight"] for task in ("sst", "para", "sts")]
    assert own[0].shape == (1, 32) and not torch.equal(own[0], own[1])


def check_loss(name):
    def check(run, checkpoint):
        terms = [line[name] for line in log_lines(run) if "loss" in line]
        assert len(terms) == 5 and all(set(term) == {"sst", "para", "sts"} for term in terms)
        assert all(0 < value < 10 for term in terms for value in term.values())
    return check


def check_surgery(run, checkpoint):
    assert all("sst·para" in line["cosine"] for line in log_lines(run) if "loss" in line)


def check_adapter(run, checkpoint):
    folder, pretrained = run / "adapters" / "sst", load_file(checkpoint / "model.safetensors")
    assert json.loads((folder / "adapter_config.json").read_text())["use_dora"] is True
    lengths = {name.removeprefix("base_model.model.").removesuffix("lora_magnitude_vector"): tensor
               for name, tensor in load_file(folder / "adapter_model.safetensors").items()
               if name.endswith("lora_magnitude_vector")}
    assert len(lengths) == 2 * 4
    for name, length in lengths.items():
        assert 0 < (length - pretrained[f"{name}weight"].norm(dim=1)).abs().max() < 0.5


def check_frozen(run, checkpoint):
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(run / "model" / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (".layer.1." not in name), name


# --------------------------------------------------- and in the changed code, with the run opened

CAGRAD = """
import torch
from multitask.pcgrad import SURGERY
gradients = [torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 1.0])]
total = sum(gradients)
(combined,), _ = SURGERY["cagrad"]([[gradient.clone()] for gradient in gradients], 0, 1)
assert torch.isclose((combined - total).norm(), 0.5 * total.norm())
assert min(g @ combined for g in gradients) > min(g @ total for g in gradients) + 0.5
"""
WINDOW = """
import torch
from bert import Layout
from multitask.runs import open_run
bert = open_run(run)[0].bert.eval()
layout = Layout(torch.ones(2, 30) * (torch.arange(30) < torch.tensor([[30], [25]])))
hidden = torch.randn(len(layout), 32)
changed = hidden.clone()
changed[29] += 1                                         # the first sequence's last token
before, after = (bert.layers[0](states, layout) for states in (hidden, changed))
moved = (before != after).any(dim=1).nonzero().flatten().tolist()
assert moved == [0, *range(21, 30)]                      # [CLS], and those at most 8 away
mask = torch.zeros(2, 30)
mask[0, 25] = mask[1, 3] = 1
rows = layout.select(mask)
alone = bert.layers[0](hidden, layout, output_rows=rows)
assert torch.allclose(alone, before[rows.rows], atol=1e-5)
"""
CHECKS = {
    "An NLI task": (check_task, ""),
    "Attentive pooling": (check_pooling, ""),
    "A SimCSE loss": (check_loss("simcse"), ""),
    "SMART": (check_loss("smart"), ""),
    "CAGrad in PCGrad's place": (check_surgery, CAGRAD),
    "DoRA": (check_adapter, ""),
    "Windowed attention": (lambda run, checkpoint: None, WINDOW),
    "Frozen lower layers with another optimizer": (check_frozen, ""),
}
