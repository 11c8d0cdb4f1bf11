"""Every tool that opens a saved run measures the model that evaluate.py scores: kinds × tools.

The data's training and dev files hold the same rows, so that what importance measures on training
examples can be scored like dev.
"""

import csv
import json
import shutil
from contextlib import redirect_stdout
from copy import deepcopy
from functools import cache
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import write_course_data

import compression.__main__ as compression_script
import evaluate as evaluate_script
import laser.__main__ as laser_script
import pruning.__main__ as pruning_script
import train_multitask
from bert import UserError
from compression import autoencoder
from laser import search
from laser import sweep as laser_sweep
from multitask import runs
from multitask.evaluation import load_split
from multitask.metrics import main_scores, summary
from multitask.session import RunSession
from multitask.settings import Settings
from multitask.tasks import TASKS

TRAIN = ("--batch-size", "8", "--steps", "3", "--lr", "3e-2")
LORA = (*TRAIN, "--lora", "4")
ALL = "query,key,value,attention_output,fc_in,fc_out"


def prune(*flags, source="full"):
    return source, pruning_script.main, ("prune", "RUN", *flags)


def apply(what, *flags, source="full"):
    return source, laser_script.main, ("apply", "RUN", "--laser", what, *flags)


def compress(*flags, source="full"):
    return source, compression_script.main, ("RUN", *flags)


FREE = {                 # kind of run → the run it is made of, main, arguments
    "full": (None, train_multitask.main, (*TRAIN, "--head", "mlp")),
    "lora": (None, train_multitask.main, LORA),
    "lora-norms": (None, train_multitask.main, (*LORA, "--lora-norms", "--lora-alpha", "12")),
    "lora-xs": (None, train_multitask.main, (*LORA, "--lora-kind", "xs")),
    "lora-shared": (None, train_multitask.main, (*LORA, "--adapters", "shared")),
    "lora-groups": (None, train_multitask.main, (*LORA, "--adapters", "sst=a,para=b,sts=b")),
    "pairs-mean": (None, train_multitask.main, (*LORA, "--pairs", "separate", "--pooling", "mean",
                                                "--head", "sts=cosine", "--loss", "cosine")),
    "pooler": (None, train_multitask.main, (*TRAIN, "--pooling", "pooler")),
    "masked": prune("--remove", "0:1,3", "--remove", "1:0", "--mask"),
    "heads": prune("--remove", "0:0,1,2,3", "--remove", "1:2"),
    "neurons": prune("--neurons", "0.6", "--order", "random"),
    "layers": prune("--layers", "1"),
    "factored": apply("0:query:0.3,1:key:0.2", "--factored"),
    "compressed": compress("--methods", "svd", "--ratios", "2", "--save", "OUT"),
    "lora-masked": ("masked", train_multitask.main, LORA),
    "lora-then-masked": prune("--remove", "1:0", "--mask", source="lora-xs"),
    "lora-heads": ("heads", train_multitask.main, (*LORA, "--lora-norms")),
    "lora-neurons": ("neurons", train_multitask.main, LORA),
    "lora-laser": apply("0:fc_out:0.3,1:fc_in:0.4:magnitude", source="lora-norms"),
    "lora-compressed": compress("--methods", "weighted", "--ratios", "3", "--save", "OUT",
                                source="lora"),
}
KINDS = FREE | {         # of these LASER and compression refuse fc_in, and say why
    "lora-everywhere": (None, train_multitask.main, (*LORA, "--lora-norms", "--lora-targets", ALL)),
    "lora-factored": apply("0:fc_in:0.3,1:fc_in:0.3", "--factored", source="lora"),
    "encoders": (None, train_multitask.main, (*TRAIN, "--encoders", "separate")),
}
SAYS = {"lora-everywhere": "merge adapters",
        "lora-factored": "the run before the change",
        "encoders": "an encoder for each task"}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = write_course_data(tmp_path_factory.mktemp("tools") / "course", train=8, dev=24)
    for file in folder.glob("*-dev.csv"):
        shutil.copy(file, str(file).replace("-dev", "-train"))
    return folder


@pytest.fixture(scope="module")
def opened():
    return cache(runs.open_run)


@pytest.fixture(scope="module")
def made(checkpoint, course, tmp_path_factory):
    """A function: kind of run → its folder. Each run is made once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("made")

    def make(kind):
        if not (folder / kind).exists():
            source, main, arguments = KINDS[kind]
            parent = make(source) if source else None
            named = [{"RUN": parent, "OUT": folder / kind}.get(a, a) for a in arguments]
            if main is train_multitask.main:
                named += ["--data", course, "--seed", "3",
                          *(("--from", parent) if parent else ("--bert", checkpoint))]
            if "OUT" not in arguments:
                named += ["--out", folder / kind]
            call(main, *named)
        return folder / kind

    return make


@pytest.fixture(autouse=True)
def faster(monkeypatch, opened):
    """A run is opened once, and every tool gets a copy; no pictures, no splits, short fits."""
    monkeypatch.setattr(runs, "open_run", lambda folder: deepcopy(opened(str(folder))))
    for name in ("draw_heat_maps", "draw_spectra"):
        monkeypatch.setattr(laser_sweep, name, lambda *_: None)
    monkeypatch.setattr(compression_script, "draw_curves", lambda *_, **options: None)
    monkeypatch.setattr(train_multitask, "draw_training", lambda *_: None)
    monkeypatch.setattr(pruning_script, "draw_heat_maps", lambda *_: None)
    monkeypatch.setattr(search, "held_out", lambda *_: [])
    monkeypatch.setattr(autoencoder, "STEPS", 0)


def call(main, *arguments):
    main([str(argument) for argument in arguments])


def first_row(path):
    row = next(csv.DictReader(path.open()))
    return {name: float(row[name]) for name in ("sst", "para", "sts", "overall", "mean")}


def sweep(run, out, monkeypatch):
    call(laser_script.main, "sweep", run, "--out", out, "--layers", "all", "--keep", "0.3")
    return first_row(out / "sweep.csv")


def searched(run, out, monkeypatch):
    found, protocol = [], search.paper_protocol
    monkeypatch.setattr(search, "paper_protocol", lambda *a: found.extend(protocol(*a)) or found)
    call(laser_script.main, "search", run, "--out", out, "--matrices", "fc_in", "--keep", "0.3")
    assert found[0]["chosen and scored on all of dev"] == "as it is"
    return {name: value for name, value in found[0].items() if isinstance(value, float)}


def compressed(run, out, monkeypatch):
    call(compression_script.main, run, "--out", out, "--methods", "svd,weighted",
         "--ratios", "3")
    return first_row(out / "compress-fc_in-fc_out.csv")


def importance(run, out, monkeypatch, of="heads"):
    """The scores of what the model says while importance is measured."""
    said, real = {}, Settings.loss_of

    def loss_of(settings, task):
        def loss(outputs, labels):
            said.setdefault(task, []).append((outputs.detach(), labels))
            return real(settings, task)(outputs, labels)
        return loss

    monkeypatch.setattr(Settings, "loss_of", loss_of)
    call(pruning_script.main, "importance", run, "--of", of, "--examples", "0", "--out", out)
    scores = {}
    for task, batches in said.items():
        outputs, labels = (torch.cat(part) for part in zip(*batches))
        name, metric = next(iter(TASKS[task].metrics.items()))
        scores[task] = {name: metric(TASKS[task].predict(outputs).tolist(), labels.tolist())}
    return main_scores(summary(scores))


def report(run, out, monkeypatch):
    call(pruning_script.main, "report", run, "--csv", out / "report.csv")
    rows = {row["measure"]: row for row in csv.DictReader((out / "report.csv").open())}
    scores = {task: {name: float(rows[f"{task} {name}"][run.name]) for name in TASKS[task].metrics}
              for task in ("sst", "para", "sts")}
    return main_scores(summary(scores))


REFUSING = (sweep, searched, compressed)
ALWAYS = (importance, report)


@pytest.fixture(scope="module")
def evaluated(made, tmp_path_factory):
    """A function: kind of run → what evaluate.py scores it."""
    folder = tmp_path_factory.mktemp("predictions")

    @cache
    def scores(kind):
        run, out = made(kind), StringIO()
        with redirect_stdout(out):
            call(evaluate_script.main, run, "--json", "--predictions", folder)
        return main_scores(json.loads(out.getvalue()))

    return scores


@pytest.mark.parametrize("tool", [*REFUSING, *ALWAYS], ids=lambda tool: tool.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_every_tool_measures_the_model_that_evaluate_scores(kind, tool, made, evaluated, tmp_path,
                                                            monkeypatch):
    run = made(kind)
    if tool in REFUSING and kind not in FREE:
        with pytest.raises(UserError, match=SAYS[kind]):
            tool(run, tmp_path, monkeypatch)
    else:
        assert tool(run, tmp_path, monkeypatch) == pytest.approx(evaluated(kind), abs=1e-6)


@pytest.mark.parametrize("of", ["neurons", "layers"])
@pytest.mark.parametrize("kind", ["lora-norms", "lora-heads", "pairs-mean", "factored", "masked"])
def test_gates_leave_scores_as_they_are(kind, of, made, evaluated, tmp_path, monkeypatch):
    assert importance(made(kind), tmp_path, monkeypatch, of) == pytest.approx(evaluated(kind),
                                                                              abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_opens_with_the_scores_it_was_saved_with(kind, made, evaluated):
    assert evaluated(kind) == main_scores(json.loads((made(kind) / "metrics.json").read_text()))


@pytest.mark.parametrize("tool, flags", [
    ("sweep", ("--layers", "all", "--keep", "0.5")),
    ("search", ("--layers", "all", "--keep", "0.5")),
    ("sweep", ("--layers", "all", "--keep", "0.5", "--variant", "magnitude")),
    ("compression", ("--methods", "svd,weighted,bits", "--ratios", "2"))])
def test_matrices_of_a_layer_without_heads_are_left_out(tool, flags, made, tmp_path):
    command = (laser_script.main, tool) if tool != "compression" else (compression_script.main,)
    call(*command, made("heads"), "--matrices", "all", "--out", tmp_path, *flags)
    if tool == "sweep":
        rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))[1:]
        assert [(row["layer"], row["matrix"]) for row in rows if row["layer"] == "0"] == [
            ("0", "fc_in"), ("0", "fc_out")]
        assert len(rows) == 2 + 6


@pytest.mark.parametrize("arguments", [
    ("apply", "--laser", "0:query:0.5:magnitude"), ("apply", "--laser", "0:attention_output:0.5"),
    ("sweep", "--layers", "0", "--matrices", "query,attention_output")])
def test_a_matrix_without_entries_is_refused_in_a_sentence(arguments, made, script, tmp_path):
    tool, *flags = arguments
    code, _, err = script(laser_script.main, tool, made("heads"), *flags, "--out", tmp_path / "o")
    assert code == 2 and "empty, because all heads" in err and "Traceback" not in err


def test_heat_maps_leave_out_what_has_no_gain(tmp_path, monkeypatch):
    monkeypatch.undo()                                       # real pictures
    rows = [{"laser": "", "sst": 0.5}] + [
        {"laser": "x", "layer": layer, "matrix": matrix, "keep": 0.5, "sst": 0.6}
        for layer, matrix in ((0, "fc_in"), (1, "fc_in"), (1, "query"))]
    texts = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda *args, **_: texts.append(args[3]))
    laser_sweep.draw_heat_maps(rows, tmp_path / "map.png")
    assert texts == ["+10.0"] * 3


@pytest.mark.parametrize("kind, matrices", [("neurons", "fc_in,fc_out"),
                                            ("heads", "query,attention_output")])
def test_shared_decoders_after_uneven_pruning_store_and_open_alike(kind, matrices, made, script,
                                                                   tmp_path):
    code, _, err = script(compression_script.main, made(kind), "--matrices", matrices,
                          "--methods", "shared", "--ratios", "1.2", "--save", tmp_path / "new")
    assert code == 0, err
    saved = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert json.loads(script(evaluate_script.main, tmp_path / "new", "--json")[1]) == saved


def test_a_compressed_lora_run_takes_its_own_adapters_again(made, evaluated, script):
    run = made("lora-compressed")
    code, out, err = script(evaluate_script.main, run, "--json", "--adapter",
                            f"sts={run / 'adapters' / 'sts'}")
    assert code == 0, err
    assert main_scores(json.loads(out)) == pytest.approx(evaluated("lora-compressed"), abs=1e-9)


@pytest.mark.parametrize("kind", ["pairs-mean", "lora", "full"])
def test_fisher_weights_are_of_the_loss_the_run_was_trained_with(kind, made):
    """Against a literal sum: every task's squared gradients, batch by batch."""
    session = RunSession(SimpleNamespace(run=made(kind), device="cpu"))
    found = compression_script.fisher_importance(session, ["fc_out"])[1, "fc_out"]
    weight, expected = session.model.bert.layers[1].ffn.fc_out.weight, torch.zeros(32)
    for task in session.model.heads:
        split = load_split(task, "train", session.settings.data, session.tokenizer,
                           session.settings)
        for rows in (range(0, 16), range(16, 24)):
            batch = split.batch(list(rows))
            outputs = session.model(task, batch)
            loss = (F.mse_loss(outputs.squeeze(1) / 5, batch.labels / 5)
                    if task == "sts" and kind == "pairs-mean" else
                    TASKS[task].loss(outputs, batch.labels))
            expected += torch.autograd.grad(loss, weight)[0].square().sum(dim=1)
    torch.testing.assert_close(found, expected)
