"""A run that is stopped anywhere ends, resumed, in the bytes of one that was not.

Every command is a process of its own. To spare each the seconds of importing torch, a server (this
file run as a script) imports it once and forks. A process can be told to send itself signals at a
moment: "step" (an optimizer's step is done), "before NAME", "after NAME" (a file is put in place).
"""

import gc
import itertools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
KILL, STOP, SEED = (signal.SIGKILL,), (signal.SIGINT,), 0


def strike_at(moment, count, signals):
    """→ a function to call at every moment: the `count`-th time of this one, it sends signals."""
    times = itertools.count(1)

    def happens(now):
        if now == moment and next(times) == count:
            for number in signals:
                os.kill(os.getpid(), number)

    return happens


def watch(happens):
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: happens("step"))
    replace = os.replace

    def watched(source, target):
        happens(f"before {Path(target).name}")
        replace(source, target)
        happens(f"after {Path(target).name}")

    os.replace = watched


def run_forked(arguments, out, err, blow):
    for name, number in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if blow:
        watch(strike_at(*blow))
    sys.argv = arguments
    try:
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)                              # the usual way out takes a second


def serve():
    """Run each line of stdin, a command as JSON, in a forked process; answer its exit code."""
    sys.path.insert(0, str(ROOT))
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # noqa: F401

    import evaluate  # noqa: F401
    import train_multitask  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_forked(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                            "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Call a script in a process → exit code, stdout, stderr."""
    folder = tmp_path_factory.mktemp("streams")
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True,
                              stdout=subprocess.PIPE, env=ENVIRONMENT)

    def call(*arguments, blow=None):
        streams = {"out": str(folder / "out"), "err": str(folder / "err")}
        request = {"arguments": [str(a) for a in arguments], "blow": blow} | streams
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return code, *((folder / name).read_text() for name in streams)

    yield call
    server.stdin.close()
    server.wait(timeout=60)


def drop_rows(path, count):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-count]))


@pytest.fixture(scope="module")
def flags(checkpoint, data, tmp_path_factory):
    """Two tasks of unlike length, 5 steps in an epoch, saved after steps 3, 5, 6, 9 and 10. They
    are scored on what they learn from, so that the second epoch is the better one."""
    course = shutil.copytree(data, tmp_path_factory.mktemp("course") / "data")
    drop_rows(course / "sts-train.csv", 12)
    for stem in ("sts", "ids-sst"):
        shutil.copy(course / f"{stem}-train.csv", course / f"{stem}-dev.csv")
    return ("--bert", checkpoint, "--data", course, "--tasks", "sst,sts", "--device", "cpu",
            "--batch-size", 8, "--epochs", 2, "--save-every", 3, "--lr", 0.002,
            "--head-lr", 0.02, "--seed", SEED)


def outcome(folder):
    """{name: bytes} of what a run has learned and scored."""
    names = ("model/**/*", "adapters/*/*", "heads.safetensors", "metrics.json", "predictions/*")
    return {str(path.relative_to(folder)): path.read_bytes()
            for name in names for path in folder.glob(name) if path.is_file()}


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def reference(flags, tmp_path_factory):
    """A run by the plain command line that nothing stopped."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    arguments = (ROOT / "train_multitask.py", *flags, "--out", folder)
    subprocess.run([sys.executable, *map(str, arguments)], env=ENVIRONMENT, check=True)
    assert json.loads((folder / "run.json").read_text())["best_step"] == {"shared": 10}
    return folder


@pytest.fixture
def train(command, flags, tmp_path):
    """Train in tmp_path/run → exit code, stdout, stderr."""
    def call(*more, blow=None):
        return command("train_multitask.py", *flags, "--out", tmp_path / "run", *more, blow=blow)
    return call


@pytest.fixture
def resume(command, tmp_path):
    def call(*more, blow=None):
        return command("train_multitask.py", "--resume", tmp_path / "run", *more, blow=blow)
    return call


@pytest.fixture
def assert_same(reference, tmp_path):
    def check():
        assert outcome(tmp_path / "run") == outcome(reference)
        assert names(tmp_path / "run") == names(reference)
    return check


def assert_killed(done):
    assert done[0] == -signal.SIGKILL, done


def assert_done(done):
    assert done[0] == 0, done


def assert_one_sentence(done, *words):
    code, _, err = done
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, done
    for word in words:
        assert word in err


def test_same_seed_gives_the_same_bytes(train, assert_same):
    assert_done(train())
    assert_same()


def test_another_seed_gives_other_weights(train, reference, tmp_path):
    assert_done(train("--seed", SEED + 1))
    ours, theirs = outcome(tmp_path / "run"), outcome(reference)
    assert ours["model/model.safetensors"] != theirs["model/model.safetensors"]
    assert ours["heads.safetensors"] != theirs["heads.safetensors"]


@pytest.mark.parametrize("step", (4, 8))
def test_run_killed_off_a_save_point_resumes_to_the_same_bytes(train, resume, assert_same, step):
    assert_killed(train(blow=("step", step, KILL)))
    assert_done(resume())
    assert_same()


def test_run_killed_before_the_first_save_resumes_to_the_same_bytes(train, resume, assert_same):
    assert_killed(train(blow=("step", 2, KILL)))
    assert_done(resume())
    assert_same()


def test_run_killed_twice_resumes_to_the_same_bytes(train, resume, assert_same):
    assert_killed(train(blow=("step", 4, KILL)))
    assert_killed(resume(blow=("step", 1, KILL)))
    assert_killed(resume(blow=("after model.safetensors", 1, KILL)))
    assert_done(resume("--save-every", 2))
    assert_same()


METHODS = {
    "surgery": ("--surgery", "pcgrad-tensor", "--accumulate", 2, "--steps", 8),
    "annealed": ("--sampling", "annealed", "--layer-decay", 0.5, "--l2", 1e-3, "--steps", 8),
    "separate": ("--encoders", "separate", "--patience", 1),
    "lora": ("--lora", 2, "--lora-norms", "--adapters", "shared", "--surgery", "pcgrad",
             "--steps", 8),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_to_the_same_bytes(command, flags, resume, tmp_path, method):
    flags = (*flags, *METHODS[method])
    assert_done(command("train_multitask.py", *flags, "--out", tmp_path / "whole"))
    assert_killed(command("train_multitask.py", *flags, "--out", tmp_path / "run",
                          blow=("step", 7, KILL)))
    assert_done(resume())
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert any(path.startswith("model/") for path in outcome(tmp_path / "run"))


INSIDE = (
    ("after run.json", 1), ("before log.jsonl", 1), ("before state.pt", 1),
    ("after model.safetensors", 1), ("before metrics.json", 1), ("after metrics.json", 1),
    ("before model.safetensors", 2), ("after model.safetensors", 2),
    ("before heads.safetensors", 2), ("after heads.safetensors", 2),
    ("after sst-dev-output.csv", 2), ("after metrics.json", 2),
    ("before state.pt", 5), ("before curves.png", 1), ("before run.json", 2),
)


@pytest.mark.parametrize("moment, count", INSIDE)
def test_run_killed_inside_a_save_opens_or_says_to_resume(
        train, resume, command, assert_same, tmp_path, moment, count):
    assert_killed(train(blow=(moment, count, KILL)))
    done = command("evaluate.py", tmp_path / "run", "--predictions", tmp_path / "predictions")
    if done[0]:
        assert_one_sentence(done, f"--resume {tmp_path / 'run'}")
    assert_done(resume())
    assert_same()


def test_run_killed_between_encoder_and_heads_is_not_opened(train, command, tmp_path):
    assert_killed(train(blow=("after model.safetensors", 2, KILL)))
    assert_one_sentence(command("evaluate.py", tmp_path / "run"), "--resume")


def test_run_killed_at_its_first_file_can_be_begun_again(train, assert_same):
    assert_killed(train(blow=("before run.json", 1, KILL)))
    assert_done(train())
    assert_same()


@pytest.mark.parametrize("moment", ("before run.json", "after run.json", "before log.jsonl"))
def test_run_killed_as_it_replaces_another_can_be_begun_again(
        train, assert_same, reference, tmp_path, moment):
    shutil.copytree(reference, tmp_path / "run")
    assert_killed(train("--overwrite", blow=(moment, 1, KILL)))
    assert_done(train("--overwrite"))
    assert_same()


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_stopped_run_says_how_to_go_on_and_resumes_to_the_same_bytes(
        train, resume, assert_same, tmp_path, number):
    code, _, err = train(blow=("step", 4, (number,)))
    assert code == 130 and "Traceback" not in err
    assert f"python train_multitask.py --resume {tmp_path / 'run'}" in err.splitlines()[-1]
    assert "step 4 of 10" in err
    assert_done(resume())
    assert_same()


def test_second_ctrl_c_stops_at_once_and_loses_nothing_saved(train, resume, assert_same):
    code, _, err = train(blow=("step", 4, STOP * 2))
    assert code == 130 and "Traceback" not in err
    assert_done(resume())
    assert_same()


def test_ctrl_c_within_a_save_lets_it_end(train, resume, assert_same):
    assert train(blow=("after model.safetensors", 1, STOP))[0] == 130
    assert_done(resume())
    assert_same()


def test_ctrl_c_in_the_last_step_completes_the_run(train, assert_same):
    assert_done(train(blow=("step", 10, STOP)))
    assert_same()


def test_complete_run_is_not_resumed(command, reference):
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    code, out, err = command("train_multitask.py", "--resume", reference)
    assert code == 0 and "is complete" in out and str(reference) in out and not err
    assert before == {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}


@pytest.mark.parametrize("file", ("ids-sst-train.csv", "sts-dev.csv"))
def test_changed_data_is_not_resumed(train, resume, flags, tmp_path, file):
    course = shutil.copytree(flags[flags.index("--data") + 1], tmp_path / "course")
    assert_killed(train("--data", course, blow=("step", 4, KILL)))
    kept = outcome(tmp_path / "run"), (tmp_path / "run/last/state.pt").read_bytes()
    drop_rows(course / file, 1)
    assert_one_sentence(resume(), str(course), str(tmp_path / "run"))
    assert kept == (outcome(tmp_path / "run"), (tmp_path / "run/last/state.pt").read_bytes())


if __name__ == "__main__":
    serve()
