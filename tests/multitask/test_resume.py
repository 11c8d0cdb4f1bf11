"""A run that is stopped anywhere ends, resumed, in the bytes of one that was not.

Every command is a process of its own; tests/forked.py names the moments at which it is struck."""

import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from forked import ENVIRONMENT, FULL, ROOT

KILL, STOP, SEED = (signal.SIGKILL,), (signal.SIGINT,), 0
FREEZE = (signal.SIGSTOP,)


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


EIGHT = ("--epochs", 0, "--steps", 8)
METHODS = {
    "surgery": ("--surgery", "pcgrad-tensor", "--accumulate", 2, *EIGHT),
    "annealed": ("--sampling", "annealed", "--layer-decay", 0.5, "--l2", 1e-3, *EIGHT),
    "separate": ("--encoders", "separate", "--patience", 1),
    "lora": ("--lora", 2, "--lora-norms", "--adapters", "shared", "--surgery", "pcgrad",
             *EIGHT),
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


# ---- at random moments

KINDS = {
    "plain": ("--log-every", 4),
    "lora": ("--lora", 2, "--lora-norms", "--adapters", "shared", "--surgery", "pcgrad",
             "--accumulate", 2, "--patience", 1, "--log-every", 4),
}
SHORT = 3, 2                                                 # of the 25, in the fast tests


def plain_values(value, place=""):
    """A nested value without seconds → [(place, type, value)], tensors as lists."""
    if isinstance(value, dict):
        return [item for key, below in value.items() if key != "seconds"
                for item in plain_values(below, f"{place}/{key}")]
    if isinstance(value, (list, tuple)):
        return [(place, len(value)), *(item for number, below in enumerate(value)
                                       for item in plain_values(below, f"{place}/{number}"))]
    return [(place, value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else
            (place, value)]


def everything(folder):
    """{name: content} of all files of a run: their bytes, but of run.json, log.jsonl and the state
    to resume from all that is no time, no memory and not the run's place."""
    found = {str(path.relative_to(folder)): path.read_bytes()
             for path in folder.rglob("*") if path.is_file()}
    record = json.loads(found["run.json"])
    del record["times"], record["peak_bytes"], record["settings"]["out"]
    found["run.json"] = record
    found["log.jsonl"] = [json.loads(line) | {"seconds": 0} for line
                          in found["log.jsonl"].decode().splitlines()]
    found["last/state.pt"] = plain_values(torch.load(folder / "last" / "state.pt"))
    return found


@pytest.fixture(scope="module")
def wholes(command, flags, tmp_path_factory):
    """{kind: (everything in a run that nothing stopped, the number of moments in it)}"""
    found = {}
    for kind, more in KINDS.items():
        folder = tmp_path_factory.mktemp(kind) / "run"
        done = command("train_multitask.py", *flags, *more, "--out", folder)
        assert_done(done)
        found[kind] = everything(folder), int(done[1].split()[-1])
    return found


def draw_blow(draw, moments):
    """A random step, or a random moment, most of which are inside a save."""
    return ("step", draw.randint(1, 10), KILL) if draw.random() < 0.3 else (
        "any", draw.randint(1, moments), KILL)


def moments(short, count=25):
    """Parameters: the numbers of so many random moments; the first `short` are not slow."""
    return [pytest.param(n, marks=[] if n < short else pytest.mark.long) for n in range(count)]


def check_killed(train, resume, folder, whole, kind, number):
    expected, count = whole[kind]
    draw = random.Random(f"{kind} {number}")
    done = train(*KINDS[kind], blow=draw_blow(draw, count))
    while done[0] == -signal.SIGKILL:                        # one of three is killed again
        if draw.random() < 0.5 and (folder / "log.jsonl").is_file():
            with open(folder / "log.jsonl", "a") as log:     # killed as it wrote a line
                log.write('{"step": 7, "loss": {"s')
        again = draw_blow(draw, count) if draw.random() < 1 / 3 else None
        if (folder / "run.json").is_file():
            done = resume(blow=again)
        else:
            done = train(*KINDS[kind], blow=again)
    assert_done(done)
    found = everything(folder)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize("number", moments(SHORT[0]))
def test_run_killed_at_a_random_moment_resumes_to_the_same_files(train, resume, tmp_path, wholes,
                                                                 number):
    check_killed(train, resume, tmp_path / "run", wholes, "plain", number)


@pytest.mark.parametrize("number", moments(SHORT[1]))
def test_lora_with_surgery_killed_at_a_random_moment_resumes_to_the_same_files(
        train, resume, tmp_path, wholes, number):
    check_killed(train, resume, tmp_path / "run", wholes, "lora", number)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", moments(0, 12))
def test_disk_that_fills_at_a_random_moment_loses_nothing(train, resume, command, tmp_path, wholes,
                                                          kind, number):
    expected, count = wholes[kind]
    draw = random.Random(f"full {kind} {number}")
    blow = (("any", draw.randint(1, count), FULL) if number % 2 == 0 else
            ("file size", draw.randint(20_000, 110_000), ()))            # the system refuses
    code, _, err = train(*KINDS[kind], blow=blow)
    assert code == 2 and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("error: ") and str(tmp_path / "run") in err
    assert_done(resume() if (tmp_path / "run/run.json").is_file() else train(*KINDS[kind]))
    assert everything(tmp_path / "run") == expected


# ---- two writers

@pytest.fixture
def frozen(train, command):
    """Train to a moment at which the process is frozen, its folder claimed → go on with it."""
    pids = []

    def call(*moment):
        assert train(blow=(*moment, FREEZE))[0] is None
        pids.append(command.pid)
        return command.pid

    yield call, lambda: command.go_on(pids.pop())
    for pid in pids:
        command.go_on(pid)


@pytest.mark.parametrize("moment", (("before run.json", 1), ("step", 4)))
def test_second_process_ends_with_a_sentence_that_names_the_first(
        frozen, train, resume, command, assert_same, tmp_path, moment):
    freeze, go_on = frozen
    pid = freeze(*moment)
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    others = [train("--seed", 2), train("--seed", 2, "--overwrite")]
    if (run / "run.json").is_file():
        others += [resume(), resume()]
    for done in others:
        assert_one_sentence(done, str(run), f"process {pid} ", "wait")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert go_on() == 0
    assert_same()


def test_results_are_not_written_into_a_run_that_trains(frozen, command, assert_same, tmp_path):
    freeze, go_on = frozen
    pid = freeze("step", 7)
    code, out, err = command("evaluate.py", tmp_path / "run")
    assert code == 2 and "sst" in out and f"process {pid} " in err       # its scores are printed
    code, _, err = command("pruning/__main__.py", "importance", tmp_path / "run")
    assert code == 2 and f"process {pid} " in err
    assert go_on() == 0
    assert_same()


@pytest.mark.long
@pytest.mark.parametrize("trial", range(8))
def test_of_two_that_start_together_one_alone_writes(command, flags, tmp_path, trial):
    requests = [command.request(["train_multitask.py", *flags, "--seed", seed, "--out",
                                 tmp_path / "run"]) for seed in (1, 2)]
    done = command.together(*requests)
    assert sorted(code for code, *_ in done) == [0, 2], done
    seed = 1 + [code for code, *_ in done].index(0)
    assert_one_sentence(done[2 - seed], "process")
    assert_done(command("train_multitask.py", *flags, "--seed", seed, "--out", tmp_path / "alone"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
    assert json.loads((tmp_path / "run/run.json").read_text())["seed"] == seed


def test_two_of_the_default_name_write_two_runs(command, flags, tmp_path):
    done = command.together(*(
        command.request(["train_multitask.py", *flags, *EIGHT, "--seed", seed], cwd=tmp_path)
        for seed in (1, 2)))
    assert [code for code, *_ in done] == [0, 0], done
    found = [json.loads(path.read_text())["seed"] for path in tmp_path.glob("runs/*/run.json")]
    assert sorted(found) == [1, 2]
