"""One process writes a run's folder, nothing is written through links, and what is replaced is what
we wrote. (Processes that are struck or run side by side: tests/multitask/test_resume.py.)"""

import os
import secrets
import shlex
import shutil
from pathlib import Path

import pytest

import attack.__main__ as attack
import compression.__main__ as compression
import early_exit.__main__ as early_exit
import evaluate
import experts.__main__ as experts
import laser.__main__ as laser
import pretraining.__main__ as pretraining
import pruning.__main__ as pruning
import train_multitask
from bert import UserError
from bert.files import atomic_write
from common.run_folder import LOCK, claim
from multitask import methods, runs

COMMANDS = {                                                 # those that write into a run's folder
    "predictions": (evaluate.main, "RUN"),
    "laser/predictions": (evaluate.main, "RUN", "--laser", "1:fc_out:0.5"),
    "importance": (pruning.main, "importance", "RUN", "--examples", 8),
    "laser": (laser.main, "sweep", "RUN", "--keep", 0.5, "--matrices", "fc_out"),
    "compression": (compression.main, "RUN", "--methods", "bits", "--ratios", 5),
    "early_exit": (early_exit.main, "train", "RUN", "--out", "exits", "--examples", 10,
                   "--method", "sdn"),
    "attack": (attack.main, "RUN", "--limit", 0, "--steps", 1, "--max-changed", 0.3),
}


@pytest.fixture(scope="module")
def flags(checkpoint, data):
    return ("--bert", checkpoint, "--data", data, "--tasks", "sst", "--device", "cpu",
            "--batch-size", 8, "--steps", 1)


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_multitask.main([*map(str, flags), "--steps", "20", "--lr", "3e-3", "--out", str(folder)])
    return folder


@pytest.fixture
def saved(trained, tmp_path, monkeypatch):
    """A run in RUN, beside a folder `elsewhere` with a file that must stay as it is."""
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    for name in ("mine.txt", "sst-dev-output.csv"):
        Path("elsewhere", name).write_text("mine")
    shutil.copytree(trained, "RUN")
    return Path("RUN")


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plant(path, target):
    """Put a link to `target` at `path`, in place of what is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(Path(target).resolve())


def assert_refused(done, *words):
    code, _, err = done
    sentence = err.removesuffix("\n").split("\r")[-1]
    assert code == 2 and sentence.startswith("error: ") and "\n" not in sentence, err
    assert not [word for word in words if word not in sentence], sentence


# ---- a claimed folder

def test_claimed_folder_is_refused_and_free_again_afterwards(tmp_path):
    folder = tmp_path / "a" / "run"
    with claim(folder):
        with pytest.raises(UserError, match=f"written by process {os.getpid()} on .*; wait"):
            with claim(folder):
                pass
    assert not list(tmp_path.iterdir())                      # nothing was written: nothing stays
    with claim(folder):
        (folder / "file").write_text("")
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.parametrize("first, second", (("laser", "."), (".", "laser"),
                                           ("laser/predictions", ".")))
def test_run_and_the_results_in_it_are_not_written_at_once(tmp_path, first, second):
    with claim(tmp_path / first):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            with claim(tmp_path / second, runs.CONTENT):
                pass
    with claim(tmp_path / "laser"), claim(tmp_path / "importance"):
        pass                                                 # two kinds of results may be


def test_lock_of_a_dead_owner_holds_nothing(tmp_path):
    (tmp_path / LOCK).write_text(f"process {os.getpid()} on here")
    with claim(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).exists()


def test_parts_of_dead_processes_are_cleared_and_a_users_own_stay(tmp_path):
    stale = [tmp_path / "run.json.12-0123abcd.part", tmp_path / "model" / "x.1-00000000.part"]
    own = [tmp_path / "mine.part", tmp_path / "notes" / "x.1-00000000.part"]
    for path in stale + own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    with claim(tmp_path, runs.CONTENT):
        assert [path.exists() for path in stale + own] == [False, False, True, True]


def test_checksum_is_of_what_was_saved_not_of_what_lies_on_the_disk(
        script, flags, tmp_path, monkeypatch):
    def replaced(model, tasks, folder):
        (folder / "model" / "model.safetensors").write_bytes(b"of another process")
        return {}

    monkeypatch.setattr(methods, "save", replaced)
    assert script(train_multitask.main, *flags, "--out", tmp_path / "run")[0] == 0
    assert_refused(script(evaluate.main, tmp_path / "run"), "another encoder")


# ---- links

def test_part_that_is_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("mine")
    monkeypatch.setattr(secrets, "token_hex", lambda size: "00000000")
    (tmp_path / f"file.{os.getpid()}-00000000.part").symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written"):
        with atomic_write(path) as file:
            file.write(b"theirs")
    assert victim.read_text() == "mine" and not path.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_results_are_written_through_a_planted_folder(script, saved, name):
    main, *arguments = COMMANDS[name]
    plant(saved / name, "elsewhere")
    before = files_in(Path("elsewhere"))
    done = script(main, *arguments)
    assert_refused(done, str(saved / name), "link")
    assert files_in(Path("elsewhere")) == before
    assert not name.endswith("predictions") or "accuracy" in done[1]     # scored all the same


@pytest.mark.parametrize("name", ("predictions/sst-dev-output.csv", "predictions/" + LOCK))
def test_planted_file_is_replaced_or_refused_and_its_target_stays(script, saved, name):
    plant(saved / name, "elsewhere/mine.txt")
    code, _, err = script(evaluate.main, saved)
    assert code == 0 or "cannot be written" in err
    assert Path("elsewhere/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ("last", "model", "predictions", "laser", "log.jsonl",
                                  "curves.png", "run.json", "heads.safetensors"))
def test_run_that_is_replaced_is_checked_first_and_links_are_not_followed(
        script, saved, flags, name):
    kept = Path("elsewhere", "kept")
    if (saved / name).exists():
        shutil.move(saved / name, kept)
    else:
        kept.mkdir()
    plant(saved / name, kept)
    before = files_in(Path("elsewhere")), files_in(saved)
    done = script(train_multitask.main, *flags, "--out", saved, "--overwrite")
    if kept.is_dir():
        assert_refused(done, str(saved / name), "link")
        assert (files_in(Path("elsewhere")), files_in(saved)) == before
    else:                                                    # a file that is a link is replaced
        assert done[0] == 0 and not (saved / name).is_symlink()
        assert files_in(Path("elsewhere")) == before[0]


@pytest.mark.parametrize("name", ("last", "model", "predictions", "log.jsonl", "curves.png"))
def test_resumed_run_is_not_written_through_links(script, saved, name):
    record = saved / "run.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    kept = Path("elsewhere", "kept")
    shutil.move(saved / name, kept)
    plant(saved / name, kept)
    before = files_in(Path("elsewhere"))
    code, _, err = script(train_multitask.main, "--resume", saved)
    assert code == (2 if kept.is_dir() else 0), err
    assert files_in(Path("elsewhere")) == before


def test_pretraining_run_is_not_replaced_through_links(script, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("pretrain.json", "metrics.json"):
        (run / name).write_text("{}")
    plant(run / "last", tmp_path)
    (tmp_path / "text.txt").write_text("a cat is a cat .\n" * 50)
    assert_refused(script(pretraining.main, "--text", tmp_path / "text.txt", "--out", run,
                          "--overwrite"), "last is a link")
    assert {path.name for path in run.iterdir()} == {"pretrain.json", "metrics.json", "last"}


# ---- what is replaced

def test_overwrite_deletes_all_that_we_write_and_nothing_else(script, saved, flags, tmp_path):
    for main, *arguments in COMMANDS.values():
        assert script(main, *arguments)[0] == 0
    assert script(laser.main, "search", "RUN", "--keep", 0.5, "--matrices", "fc_out")[0] == 0
    written = {path for path in saved.rglob("*") if path.is_file()}
    assert {path.parent.name for path in written} >= {*COMMANDS} - {"laser/predictions"}
    own = [saved / place / "mine.txt" for place in ("", "model", "laser", "last", "predictions")]
    for path in own:
        path.write_text("mine")
    assert script(train_multitask.main, *flags, "--out", saved, "--overwrite")[0] == 0
    assert script(train_multitask.main, *flags, "--out", tmp_path / "new")[0] == 0
    names = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*")}
    left = {path.relative_to(saved) for path in saved.rglob("*")} - names
    assert left == {Path("laser"), *(path.relative_to(saved) for path in own)}


@pytest.mark.parametrize("kind, command, more", (
    ("exits", early_exit.main, ("train", "--method", "sdn", "--examples", 10)),
    pytest.param("experts", experts.main, ("split", "--experts", 2, "--examples", 8, "--epochs", 1),
                 marks=pytest.mark.long),
    ("compressed", compression.main, ("--methods", "bits", "--ratios", 5))))
def test_overwrite_deletes_what_methods_keep_beside_the_encoder(
        script, saved, flags, tmp_path, kind, command, more):
    if kind == "experts":
        assert script(experts.main, "relu", "RUN", "--out", "RELU", "--epochs", 1)[0] == 0
    source, out = ("RELU" if kind == "experts" else "RUN"), "--save" if kind == "compressed" else (
        "--out")
    words = [more[0], source, *more[1:]] if more[0] in ("train", "split") else [source, *more]
    assert script(command, *words, out, "NEW")[0] == 0
    if kind != "compressed":
        few = ("--taus", 0.5, "--norms", "router", "--passes", 1) if kind == "experts" else ()
        assert script(command, "curve", "NEW", *few)[0] == 0
        assert script(evaluate.main, "NEW", *(("--exit", 0.5) if kind == "exits" else
                                              ("--tau", 0.5)))[0] == 0
    assert script(train_multitask.main, *flags, "--out", "NEW", "--overwrite")[0] == 0
    names = {path.relative_to("RUN") for path in saved.rglob("*")}
    assert {path.relative_to("NEW") for path in Path("NEW").rglob("*")} <= names


@pytest.mark.parametrize("name, kind", (("model", "file"), ("metrics.json", "folder")))
def test_overwrite_refuses_a_run_that_is_no_run_before_it_deletes(script, saved, flags, name, kind):
    shutil.rmtree(saved / name) if kind == "file" else (saved / name).unlink()
    (saved / name).write_text("") if kind == "file" else (saved / name).mkdir()
    before = files_in(saved)
    assert_refused(script(train_multitask.main, *flags, "--out", saved, "--overwrite"),
                   f"{saved / name} is a {kind}", "move it away")
    assert files_in(saved) == before


def test_run_that_was_being_made_is_incomplete_and_made_again(script, saved, monkeypatch):
    command = (pruning.main, "prune", saved, "--remove", "0:1", "--out", "small")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_best", killed)
        script(*command)
    assert_refused(script(train_multitask.main, "--resume", "small"), "never trained",
                   "--overwrite")
    code, _, err = script(*command, "--overwrite")
    assert code == 0 and "small is complete" in script(train_multitask.main, "--resume", "small")[1]


# ---- what is said

@pytest.mark.parametrize("json", ((), ("--json",)))
def test_read_only_run_is_scored_and_a_sentence_says_what_is_missing(script, saved, monkeypatch,
                                                                     json):
    def read_only(path, flags, *more, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith("RUN"):
            raise OSError(30, "Read-only file system", str(path))
        return opened(path, flags, *more, **options)

    before, opened = files_in(saved), os.open
    monkeypatch.setattr(os, "open", read_only)
    done = script(evaluate.main, saved, *json)
    assert_refused(done, "RUN/predictions cannot be written: Read-only", "--predictions FOLDER")
    assert "accuracy" in done[1] and files_in(saved) == before
    code, out, _ = script(evaluate.main, saved, "--predictions", "elsewhere/here", *json)
    assert code == 0 and "accuracy" in out and list(Path("elsewhere/here").iterdir())


def test_next_line_quotes_a_folder_with_blanks(script, saved, flags):
    for main, *arguments in (
            (train_multitask.main, *flags), (pruning.main, "prune", "RUN", "--remove", "0:1"),
            (early_exit.main, "train", "RUN", "--method", "sdn", "--examples", 10)):
        code, out, err = script(main, *arguments, "--out", "my runs/it", "--overwrite")
        assert code == 0, err
        [line] = [line for line in out.splitlines() if line.startswith("next: ")]
        assert all("my runs/it" in shlex.split(command) for command in line[6:].split(", or "))
