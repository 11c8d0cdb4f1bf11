"""GLUE's files, labels, metrics and submission format, on lines made for the test."""

import json

import numpy as np
import pytest
from scipy import stats

import evaluate
import train_multitask
from bert import UserError
from multitask.course import find_file
from multitask.evaluation import read_split
from multitask.glue import GLUE
from multitask.metrics import f1, matthews, spearman
from multitask.tasks import TASKS

PARSES = ("( a )", "( b )", "( p a )", "( p b )")
FILES = {                                                    # folder → {file: lines}, as published
    "MNLI": {
        "train": ("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
                  "sentence1_parse sentence2_parse sentence1 sentence2 label1 gold_label",
                  [(0, "3c", "3n", "fiction", *PARSES, 'the " cat is good .', "a cat", "neutral",
                    "neutral"),
                   (1, "4c", "4n", "fiction", *PARSES, "the dog", "a dog", "entailment",
                    "contradiction")]),
        "dev_matched": ("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
                        "sentence1_parse sentence2_parse sentence1 sentence2 label1 label2 "
                        "gold_label",
                        [(n, "1", "1", "letters", *PARSES, "the car", "a car", "neutral",
                          "neutral", "entailment") for n in range(3)]),
        "test_matched": ("index promptID pairID genre sentence1_binary_parse "
                         "sentence2_binary_parse sentence1_parse sentence2_parse sentence1 "
                         "sentence2", [(0, "1", "1", "letters", *PARSES, "the car", "a car")]),
    },
    "MRPC": {
        "train": ("Quality #1_ID #2_ID #1_String #2_String",
                  [(1, 70, 71, '" the cat', "a cat"), (0, 72, 73, "the dog", 'a "film" was')]),
        "test": ("index #1_ID #2_ID #1_String #2_String", [(0, 1, 2, "the cat", "a cat")]),
    },
    "QNLI": {"train": ("index question sentence label",
                       [(4, "the cat ?", "a cat", "entailment"),
                        (9, "a dog ?", "the dog", "not_entailment")])},
    "RTE": {
        "train": ("index sentence1 sentence2 label",
                  [(n, "the cat is good", "a cat", ("not_entailment", "entailment")[n % 2])
                   for n in range(8)]),
        "test": ("index sentence1 sentence2", [(n, "the film", "a film") for n in range(3)]),
    },
    "SST-2": {"train": ("sentence label", [("a dull film ", 0), ("a lovely film ", 1)]),
              "test": ("index sentence", [(0, "a great song"), (1, "a poor song")])},
    "WNLI": {"train": ("index sentence1 sentence2 label", [(0, "the cat", "a cat", 1)])},
    "QQP": {
        "train": ("id qid1 qid2 question1 question2 is_duplicate",
                  [(133, 1, 2, "the cat ?", "a cat ?", 0), (134, 3, 4, "a dog ?"),
                   (135, 5, 6, "a film ?", "the film ?", 1)]),
        "test": ("id question1 question2", [(0, "the cat ?", "a cat ?")]),
    },
    "STS-B": {
        "train": ("index genre filename year old_index source1 source2 sentence1 sentence2 score",
                  [(0, "news", "MSR", "2012", "1", "none", "none", "the cat", "a cat", "3.800"),
                   (1, "news", "MSR", "2012", "4", "none", "none", "the dog", "a dog", "5.000")]),
        "test": ("index genre filename year old_index source1 source2 sentence1 sentence2",
                 [(0, "news", "MSR", "2012", "1", "none", "none", "the cat", "a cat")]),
    },
    "CoLA": {"train": ("", [("gj04", 1, "", "the cat is good ."), ("gj04", 0, "*", "cat the .")]),
             "test": ("index sentence", [(0, "the dog is fine ."), (1, "dog ?")])},
}
COPIES = {"MNLI": {"dev_mismatched": "dev_matched", "test_mismatched": "test_matched"}}


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    for name, files in FILES.items():
        copies = COPIES.get(name, {"dev": "train"})
        for file, (header, rows) in (files | {to: files[of] for to, of in copies.items()}).items():
            lines = [[c.replace("_", " ") if c[0] == "#" else c for c in header.split()]] if (
                header) else []
            text = "".join("\t".join(map(str, row)) + "\n" for row in [*lines, *rows])
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{file}.tsv").write_text(text, encoding="utf-8")
    return folder


FIRST = {                                                    # id, texts, label of a training row
    "mnli": ("0", ('the " cat is good .', "a cat"), 2), "mrpc": ("0", ('" the cat', "a cat"), 1),
    "qnli": ("4", ("the cat ?", "a cat"), 0), "rte": ("0", ("the cat is good", "a cat"), 1),
    "sst2": ("0", ("a dull film",), 0), "wnli": ("0", ("the cat", "a cat"), 1),
    "qqp": ("133", ("the cat ?", "a cat ?"), 0), "stsb": ("0", ("the cat", "a cat"), 3.8),
    "cola": ("0", ("the cat is good .",), 1),
}


def test_the_table_of_tasks_has_the_benchmarks_nine():
    assert set(GLUE) == set(FIRST) and all(TASKS[name] is row for name, row in GLUE.items())


@pytest.mark.filterwarnings("ignore:.*left out 1 row")
@pytest.mark.parametrize("task", FIRST)
def test_every_tasks_own_columns_and_labels_are_read(glue, task):
    examples = read_split(task, "train", glue)
    assert tuple(examples[0]) == FIRST[task]
    for split in GLUE[task].dev_sets:
        assert read_split(task, split, glue)[0].label is not None


@pytest.mark.parametrize("task", ["mnli", "mrpc", "rte", "sst2", "qqp", "stsb", "cola"])
def test_test_files_have_no_labels_and_other_columns(glue, task):
    for split in GLUE[task].test_sets:
        examples = read_split(task, split, glue)
        assert examples[0].id == "0" and examples[0].label is None


def test_every_row_of_a_test_file_is_answered(tmp_path):
    (tmp_path / "QQP").mkdir()
    (tmp_path / "QQP" / "test.tsv").write_text("id\tquestion1\tquestion2\n0\t\ta cat ?\n")
    assert read_split("qqp", "test", tmp_path)[0].texts == ("", "a cat ?")


def test_scores_of_stsb_are_written_as_the_benchmark_takes_them():
    _, text = GLUE["stsb"].write(GLUE["stsb"], "stsb", "test", ["0", "1"], [5.4, -0.2])
    assert text == "index\tprediction\n0\t5\n1\t0\n"


def test_rows_cut_short_are_left_out_of_qqp_alone(glue, tmp_path):
    with pytest.warns(UserWarning, match="left out 1 row.*line 3"):
        assert [e.id for e in read_split("qqp", "train", glue)] == ["133", "135"]
    with pytest.raises(UserError, match="line 3 has nothing under"):
        read_split("qqp", "train", glue, strict_rows=True)
    text = (glue / "WNLI" / "train.tsv").read_text()
    (tmp_path / "train.tsv").write_text(text + "1\tthe dog\n")
    with pytest.raises(UserError, match="train.tsv line 3 has 2 cells where the header has 4"):
        GLUE["wnli"].read_examples(tmp_path / "train.tsv", GLUE["wnli"])


MISTAKES = {
    "a column missing": ("rte", "index\tsentence1\tlabel\n0\ta\tentailment\n",
                         "lacks the column sentence2"),
    "no label": ("sst2", "sentence\na film\n", "no column label"),
    "a word that is no label": ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentails\n",
                                "line 2: label is 'entails'; it must be one of entailment, not_"),
    "a number that is no label": ("sst2", "sentence\tlabel\na\t2\n", "whole number from 0 to 1"),
    "a score too high": ("stsb", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t5.5\n", "0 to 5"),
    "a label of CoLA": ("cola", "gj\t1\t\ta cat\ngj\t*\t\ta dog\n", "line 2: label is '\\*'"),
    "empty": ("rte", "", "empty"),
    "an index twice": ("wnli", "index\tsentence1\tsentence2\tlabel\n" + 2 * "7\ta\tb\t1\n",
                       "line 3 has the id 7 of line 2"),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES)
def test_a_defect_names_file_and_line(tmp_path, case):
    task, text, says = case
    path = tmp_path / GLUE[task].files["train"]
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=f"train.tsv.*{says}"):
        read_split(task, "train", tmp_path)


def test_files_are_found_in_glues_folder_or_in_the_tasks_own(tmp_path):
    for place in ("SST-2", "rte"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "train.tsv").touch()
    assert find_file(tmp_path, "SST-2/train.tsv") == tmp_path / "SST-2/train.tsv"
    assert find_file(tmp_path, "RTE/train.tsv").samefile(tmp_path / "rte/train.tsv")
    assert find_file(tmp_path / "rte", "RTE/train.tsv").samefile(tmp_path / "rte/train.tsv")
    assert not find_file(tmp_path / "rte", "WNLI/train.tsv").exists()    # is not read as WNLI's
    with pytest.raises(UserError, match="WNLI/train.tsv does not exist"):
        read_split("wnli", "train", tmp_path)


def test_the_benchmarks_metrics_are_the_textbooks():
    rng = np.random.default_rng(0)
    said, true = rng.integers(0, 2, (2, 50)).tolist()
    tp, fp, fn, tn = (sum((s == a and t == b) for s, t in zip(said, true))
                      for a, b in ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert f1(said, true) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert matthews(said, true) == pytest.approx(
        (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** .5)
    scores, labels = rng.integers(0, 9, (2, 50)).tolist()    # with ties
    assert spearman(scores, labels) == pytest.approx(stats.spearmanr(scores, labels).statistic)
    assert f1([0, 0], [0, 0]) == matthews([1, 1], [0, 1]) == spearman([1], [2]) == 0.0


def test_predictions_are_written_as_the_benchmark_takes_them():
    def written(task, split, predicted):
        return GLUE[task].write(GLUE[task], task, split, ["0", "1"], predicted)

    assert written("rte", "test", [1, 0]) == (
        "RTE.tsv", "index\tprediction\n0\tnot_entailment\n1\tentailment\n")
    assert written("sst2", "test", [1, 0]) == ("SST-2.tsv", "index\tprediction\n0\t1\n1\t0\n")
    assert written("stsb", "dev", [2.5, 1.25])[1] == "index\tprediction\n0\t2.5\n1\t1.25\n"
    assert [written("mnli", split, [0, 2])[0] for split in
            ("test_matched", "test_mismatched", "dev_matched", "dev")] == [
        "MNLI-m.tsv", "MNLI-mm.tsv", "dev-MNLI-m.tsv", "dev-MNLI.tsv"]
    assert written("mnli", "test_matched", [0, 2])[1].split()[2:] == [
        "0", "contradiction", "1", "neutral"]


def test_tasks_of_glue_are_trained_scored_and_predicted(checkpoint, glue, script, tmp_path):
    out = tmp_path / "run"
    code, _, errors = script(train_multitask.main, "--bert", checkpoint, "--data", glue, "--tasks",
                             "mnli,rte,stsb,cola", "--steps", 2, "--out", out)
    assert code == 0, errors
    scores = json.loads((out / "metrics.json").read_text())
    assert list(scores["mnli"]) == ["accuracy", "accuracy (dev_mismatched)"]
    assert list(scores["cola"]) == ["matthews", "accuracy"]
    assert list(scores["stsb"]) == ["pearson", "spearman"]
    assert script(evaluate.main, out, "--split", "test")[0] == 0
    files = {file.name for file in (out / "predictions").iterdir()}
    assert {"MNLI-m.tsv", "MNLI-mm.tsv", "RTE.tsv", "STS-B.tsv", "CoLA.tsv",
            "dev-MNLI-m.tsv", "dev-RTE.tsv"} <= files
    lines = (out / "predictions" / "RTE.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 4
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}


def test_runs_of_glue_are_compared_beside_the_paper(checkpoint, glue, script, tmp_path):
    for task in ("rte", "cola"):
        code, _, errors = script(train_multitask.main, "--recipe", "glue-lora", "--bert",
                                 checkpoint, "--data", glue, "--tasks", task, "--epochs", 0,
                                 "--steps", 1, "--out", tmp_path / task)
        assert code == 0, errors
    code, text, _ = script(evaluate.main, "--compare", tmp_path / "rte", tmp_path / "cola", "--out",
                           tmp_path)
    assert code == 0 and text.splitlines()[0].split() == [
        "run", "seeds", "rte", "cola", "trained", "stored", "minutes", "published:", "rte"]
    assert text.splitlines()[1].split()[-1] == "0.607"


@pytest.mark.parametrize(("task", "sizes", "ones"), [
    ("mrpc", (3667, 408), 279), ("rte", (2490, 277), 131), ("sst2", (67349, 872), 444),
    ("wnli", (635, 71), 31)])
def test_every_row_of_the_real_files_is_read(real_glue, task, sizes, ones):
    """The counts of the dev sets' classes are public; 279/408 and 40/71 are the larger ones."""
    train, dev = (read_split(task, split, real_glue) for split in ("train", "dev"))
    assert (len(train), len(dev)) == sizes
    assert sum(e.label for e in dev) == ones


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="RTE/train.tsv does not exist; --data must be the folder"):
        read_split("rte", "train", tmp_path / "nowhere")
