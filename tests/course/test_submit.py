"""python -m course submit: what is packed, and what is refused."""

import shutil
import zipfile

import pytest

import evaluate
import train_multitask
from course import submit
from course.__main__ import main


@pytest.fixture(scope="module")
def finished(run):
    """A run with its test predictions."""
    evaluate.main([str(run), "--split", "test"])
    return run


def test_predictions_and_code_are_packed_and_dev_scores_shown(finished, tmp_path, script):
    code, out, err = script(main, "submit", finished, "--out", tmp_path / "a.zip")
    assert code == 0, err
    assert out.count(" ok") == 6 and "ok, accuracy 0." in out and "ok, pearson " in out
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        names = packed.namelist()
        assert packed.testzip() is None and names == sorted(names)
        for task in ("sst", "para", "sts"):
            for split in ("dev", "test"):
                name = f"{task}-{split}-output.csv"
                text = packed.read(f"predictions/{name}")
                assert text == (finished / "predictions" / name).read_bytes()
        assert packed.read("bert/model.py") == (submit.ROOT / "bert" / "model.py").read_bytes()
    assert {"train_multitask.py", "lora/layers.py"} < set(names)
    assert not [name for name in names if name.startswith(("tests", ".", "runs", "data"))]


def test_equal_files_give_equal_bytes(finished, tmp_path, script):
    for name in ("a.zip", "b.zip"):
        assert script(main, "submit", finished, "--out", tmp_path / name)[0] == 0
        shutil.copystat(__file__, finished / "predictions" / "sst-dev-output.csv")  # another date
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip", "b.zip"]


def test_a_run_without_test_predictions_says_how_to_make_them(run, tmp_path, script):
    shutil.copytree(run, tmp_path / "run")
    for file in (tmp_path / "run" / "predictions").glob("*-test-output.csv"):
        file.unlink()
    code, out, err = script(main, "submit", tmp_path / "run", "--out", tmp_path / "a.zip")
    assert code == 2 and f"python evaluate.py {tmp_path / 'run'} --split test" in err
    assert out.count("missing") == 3 and out.count(" ok") == 3
    assert not (tmp_path / "a.zip").exists()


def edit(old, new, count=1):
    return lambda text: text.replace(old, new, count)


def last_prediction(value):
    return lambda text: f"{text.rpartition(' , ')[0]} , {value} \n"


@pytest.mark.parametrize("file, change, says", [
    ("sst-dev", edit("Predicted_Sentiment", "Sentiment"), "line 1 is 'id \\t Sentiment '"),
    ("para-test", edit("id \t ", "id,"), "instead of 'id \\t Predicted_Is_Paraphrase '"),
    ("sst-dev", lambda text: text.rsplit("\n", 2)[0] + "\n", "it has 15 rows, the data has 16"),
    ("sst-test", edit("student3 ", "student2 "), "line 5 is 'ids-ssttest-student2 ,"),
    ("sst-dev", last_prediction(5), "has the prediction '5'; it must be 0 to 4"),
    ("para-test", last_prediction("0.5"), "has the prediction '0.5'; it must be 0 to 1"),
    ("sts-test", last_prediction("nan"), "has the prediction 'nan'; it must be a number"),
    ("para-dev", edit("\n", "\r\n", -1), "line 1 is 'id \\t Predicted_Is_Paraphrase \\r'"),
    ("para-dev", lambda text: "", "it has 0 rows")])
def test_a_wrong_file_is_a_sentence(finished, tmp_path, script, file, change, says):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "predictions" / f"{file}-output.csv"
    path.write_bytes(change(path.read_text()).encode())
    code, out, err = script(main, "submit", tmp_path / "run", "--out", tmp_path / "a.zip")
    assert code == 2 and says in err and path.name in err and out.count("wrong") == 1, err
    assert not (tmp_path / "a.zip").exists()


def test_a_run_without_the_courses_tasks_needs_a_folder_with_their_files(
        finished, checkpoint, data, tmp_path, script):
    train = ("--bert", checkpoint, "--data", data, "--tasks", "sst", "--steps", 1)
    assert script(train_multitask.main, *train, "--out", tmp_path / "run")[0] == 0
    flags = ("submit", tmp_path / "run", "--out", tmp_path / "a.zip")
    code, _, err = script(main, *flags)
    assert code == 2 and "does not have the task para, sts" in err and "--predictions" in err
    assert script(main, *flags, "--predictions", finished / "predictions")[0] == 0


def test_what_is_no_complete_run_is_refused(finished, tmp_path, script):
    code, _, err = script(main, "submit", tmp_path)
    assert code == 2 and "is not a saved run" in err
    shutil.copytree(finished, tmp_path / "run")
    record = (tmp_path / "run" / "run.json").read_text()
    record = record.replace('"complete": true', '"complete": false')
    (tmp_path / "run" / "run.json").write_text(record)
    code, _, err = script(main, "submit", tmp_path / "run")
    assert code == 2 and "is not complete" in err and "--resume" in err
