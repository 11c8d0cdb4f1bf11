"""The commands importance, prune and report on saved runs."""

import csv
import json

import pytest
import torch

import evaluate
import train_multitask
from multitask import runs
from pruning import __main__ as pruning
from pruning import choose, measure, normalize, report


@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruning") / "first"
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(folder),
                          "--batch-size", "8", "--steps", "4", "--lr", "1e-3",
                          "--tasks", "sst,para"])
    return folder


def test_importance_of_a_run_is_a_table_and_a_picture(run, script, tmp_path):
    code, text, _ = script(pruning.main, "importance", run, "--examples", 8, "--out", tmp_path)
    assert code == 0 and "importance of each head, in hundredths (sum)" in text
    with open(tmp_path / "heads.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["sst"] * 8 + ["para"] * 8 + ["sum"] * 8
    for task in ("sst", "para", "sum"):
        values = [float(row["importance"]) for row in rows if row["task"] == task]
        assert min(values) == 0 and max(values) == 1
    assert all(float(row["raw"]) > 0 for row in rows if row["task"] != "sum")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["neurons", "layers"])
def test_neurons_and_layers_have_importance_too(run, script, tmp_path, kind):
    code, *_ = script(pruning.main, "importance", run, "--of", kind, "--examples", 4, "--tasks",
                      "para", "--out", tmp_path)
    lines = (tmp_path / f"{kind}.csv").read_text().splitlines()
    assert code == 0 and len(lines) == 1 + {"neurons": 128, "layers": 2}[kind]


def pruned(script, run, to, *flags):
    code, text, errors = script(pruning.main, "prune", run, "--out", to, "--examples", 8, *flags)
    assert code == 0, errors
    return json.loads((to / "run.json").read_text()), runs.open_run(to)[0].bert, text


def test_a_pruned_run_opens_scores_and_trains_on(run, script, data, tmp_path):
    record, bert, text = pruned(script, run, tmp_path / "small", "--heads", "5")
    assert sum(layer.attention.num_heads for layer in bert.layers) == 5
    assert [edit["kind"] for edit in record["edits"]] == ["remove_heads"]
    assert json.loads((tmp_path / "small" / "model" / "config.json").read_text())["pruned_heads"]
    code, scores, _ = script(evaluate.main, tmp_path / "small", "--json")
    assert code == 0
    assert json.loads(scores) == json.loads((tmp_path / "small" / "metrics.json").read_text())
    code, *_ = script(train_multitask.main, "--from", tmp_path / "small", "--data", data, "--tasks",
                      "sst,para", "--steps", "1", "--out", tmp_path / "on")
    on = runs.open_run(tmp_path / "on")[0].bert
    assert code == 0 and on.config.pruned_heads == bert.config.pruned_heads
    assert on.edits == record["edits"]
    record, again, _ = pruned(script, tmp_path / "on", tmp_path / "smaller", "--heads", "2")
    assert sum(layer.attention.num_heads for layer in again.layers) == 2
    assert len(record["edits"]) == 2


def test_a_masked_run_scores_as_the_pruned_one(run, script, tmp_path):
    _, small, _ = pruned(script, run, tmp_path / "small", "--heads", "0.5")
    record, masked, _ = pruned(script, run, tmp_path / "masked", "--heads", "0.5", "--mask")
    assert masked.config.masked_heads == small.config.pruned_heads
    assert masked.layers[0].attention.num_heads == 4 and record["edits"][0]["kind"] == "mask_heads"
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())
              for name in ("small", "masked")]
    assert scores[0] == scores[1]
    _, fewer, _ = pruned(script, tmp_path / "masked", tmp_path / "fewer", "--heads", "3", "--mask")
    assert sum(map(len, fewer.config.masked_heads.values())) == 5


def test_rounds_measure_anew(run, script, tmp_path, monkeypatch):
    tokenized, real = [], measure.tokenize
    monkeypatch.setattr(measure, "tokenize", lambda *a: tokenized.append(1) or real(*a))
    record, bert, text = pruned(script, run, tmp_path / "small", "--heads", "2", "--rounds", "3")
    assert text.splitlines()[:3] == [f"{n} of 8 heads are left" for n in (6, 4, 2)]
    assert len(record["edits"]) == 3 and sum(la.attention.num_heads for la in bert.layers) == 2
    assert len(tokenized) == 2                               # once for each task
    for left in (6, 4, 2):                                   # the same in three commands
        _, again, _ = pruned(script, run, tmp_path / f"{left}", "--heads", left)
        run = tmp_path / f"{left}"
    assert again.config.pruned_heads == bert.config.pruned_heads


def test_importance_has_the_norm_that_the_flag_names(run, script, tmp_path):
    found = {}
    for norm in ("global", "layer"):
        code, *_ = script(pruning.main, "importance", run, "--examples", 8, "--tasks", "sst",
                          "--norm", norm, "--out", tmp_path / norm)
        assert code == 0
        with open(tmp_path / norm / "heads.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        raw = torch.tensor([float(row["raw"]) for row in rows]).view(2, 4)
        found[norm] = torch.tensor([float(row["importance"]) for row in rows]).view(2, 4)
        torch.testing.assert_close(found[norm], normalize(raw, norm))
    assert not torch.allclose(found["global"], found["layer"])
    _, bert, _ = pruned(script, run, tmp_path / "small", "--heads", 5, "--norm", "layer",
                        "--tasks", "sst")
    assert bert.config.pruned_heads == choose(found["layer"], 5)


@pytest.mark.parametrize("kind", ["heads", "neurons", "layers"])
def test_a_run_with_adapters_is_refused_before_importance_is_measured(checkpoint, data, script,
                                                                      tmp_path, monkeypatch, kind):
    code, *_ = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--tasks", "sst",
                      "--lora", "2", "--lora-targets", "query,fc_in", "--steps", "1",
                      "--out", tmp_path / "run")
    assert code == 0
    monkeypatch.setattr(pruning, "measure", None)
    code, _, errors = script(pruning.main, "prune", tmp_path / "run", f"--{kind}", "1",
                             "--out", tmp_path / "new")
    assert code == 2 and "merge" in errors and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("flags", "heads", "neurons", "layers"), [
    (("--neurons", "0.5"), 8, 64, 2), (("--layers", "1"), 4, 64, 1),
    (("--heads", "4", "--per-layer", "--order", "random"), 4, 128, 2),
    (("--heads", "2", "--per-layer", "--rounds", "9"), 2, 128, 2),
    (("--remove", "0:1,3", "--remove", "1:0"), 5, 128, 2), (("--remove", "1"), 4, 64, 1)])
def test_every_kind_of_budget_is_met(run, script, tmp_path, flags, heads, neurons, layers):
    _, bert, _ = pruned(script, run, tmp_path / "small", *flags)
    assert sum(layer.attention.num_heads for layer in bert.layers) == heads
    assert sum(layer.ffn.fc_in.out_features for layer in bert.layers) == neurons
    assert len(bert.layers) == layers


REFUSED = {
    "no command": (("prone",), "did you mean prune?"),
    "no budget": (("prune", "RUN"), "--heads", "required"),
    "two budgets": (("prune", "RUN", "--heads", "2", "--layers", "1"), "not allowed with"),
    "all heads kept": (("prune", "RUN", "--heads", "8"), "nothing would be removed"),
    "no head kept": (("prune", "RUN", "--heads", "0"), "--heads 0", "1 to 8"),
    "uneven": (("prune", "RUN", "--heads", "3", "--per-layer"), "2 or 4 can"),
    "masked layers": (("prune", "RUN", "--layers", "1", "--mask"), "--mask"),
    "a layer outside": (("prune", "RUN", "--remove", "7:0"), "no layer 7"),
    "a head outside": (("prune", "RUN", "--remove", "0:9"), "no head 9"),
    "all heads": (("prune", "RUN", "--remove", "0:0,1,2,3", "--remove", "1:0,1,2,3"), "all heads"),
    "a layer masked": (("prune", "RUN", "--remove", "1", "--mask"), "--mask"),
    "an order for what is named": (("prune", "RUN", "--remove", "1", "--order", "random"),
                                   "--remove says what goes"),
    "rounds for what is named": (("prune", "RUN", "--remove", "1", "--rounds", "2"),
                                 "--remove says what goes"),
    "layers for what is named": (("prune", "RUN", "--remove", "1", "--per-layer"),
                                 "--remove says what goes"),
    "no round": (("prune", "RUN", "--heads", "2", "--rounds", "0"), "--rounds is 0", "1 or more"),
    "a large seed": (("prune", "RUN", "--heads", "2", "--seed", str(2 ** 32)), "--seed is", "2^32"),
    "another norm": (("importance", "RUN", "--norm", "all"), "--norm", "global"),
    "no number": (("prune", "RUN", "--remove", "a:b"), "--remove 'a:b'"),
    "task unknown": (("importance", "RUN", "--tasks", "sts"), "task of the run 'sts'", "sst, para"),
    "no run": (("importance", "nowhere"), "nowhere", "run.json"),
    "negative examples": (("importance", "RUN", "--examples", "-1"), "--examples"),
    "a typo": (("importance", "RUN", "--example", "3"), "did you mean --examples?"),
    "in its own place": (("prune", "RUN", "--heads", "2", "--out", "RUN", "--overwrite"),
                         "would be replaced"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_a_sentence_and_leaves_no_run(run, script, tmp_path, case):
    given, *words = case
    arguments = [str(run) if a == "RUN" else a for a in given]
    if given[0] == "prune" and "--out" not in given:
        arguments += ["--out", tmp_path / "new"]
    before = (run / "run.json").read_bytes()
    code, _, errors = script(pruning.main, *arguments)
    assert code == 2 and errors.splitlines()[-1].count("error: ") == 1
    assert all(word in errors for word in words), errors
    assert not (tmp_path / "new").exists() and (run / "run.json").read_bytes() == before


def test_the_report_sets_runs_side_by_side(run, script, tmp_path):
    pruned(script, run, tmp_path / "small", "--heads", "4")
    code, text, _ = script(pruning.main, "report", run, tmp_path / "small",
                           "--csv", tmp_path / "table.csv")
    assert code == 0
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    small = "small"
    assert float(rows["parameters"][run.name]) - float(rows["parameters"][small]) == 4 * (
        4 * 32 * 8 + 3 * 8)
    assert float(rows["multiply-adds"][small]) < float(rows["multiply-adds"][run.name])
    step = "time a step, the first = 1"
    assert float(rows[step][run.name]) == 1 and rows[step][small] == ""      # it was not trained
    assert float(rows["peak bytes, training"][run.name]) > 0
    assert "peak bytes, inference" in rows and "paper" not in text           # it has other tasks
    assert float(rows["training seconds"][run.name]) > 0 == float(rows["training seconds"][small])
    assert float(rows["examples/s"][small]) > 0 and rows["trained"][small] == "0"


def test_the_papers_rows_stand_beside_runs_on_glue(script, monkeypatch):
    """With the paper's own numbers: Table 1 by task, Tables 2 to 4 for the whole model."""
    found = {"rte accuracy": 0.6, "parameters": 5, "trained": 5, report.PEAK: None,
             report.STEP_TIME: 0.5}
    monkeypatch.setattr(report, "measure_run", lambda folder, device: dict(found))
    code, text, _ = script(pruning.main, "report", "a", "b")
    rows = {line[:28].strip(): line[28:].split() for line in text.splitlines()}
    assert code == 0 and text.splitlines()[0].split("  ")[-1] == "paper Wang et al., Prune-LoRA"
    assert rows["rte accuracy"] == ["0.6000", "0.6000", "0.6245", "0.6065", "0.5993"]
    assert rows["parameters"] == ["5", "5", "109,480,000", "109,700,000", "101,290,000"]
    assert rows["trained"] == ["5", "5", "–", "259,600", "308,700"]
    assert rows["peak bytes, inference"] == ["–", "–", "418,700,000", "419,600,000", "392,400,000"]
    assert rows["time a step, the first = 1"] == ["1.0000", "1.0000", "1.0000", "0.7347",
                                                 "0.6531"]
    assert "mnli" not in text.splitlines()[1] and "the larger class" in text
