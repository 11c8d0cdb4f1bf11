"""Runs with adapters: trained, saved, opened, merged, swapped, and trained on."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from conftest import NoWaiting
from lora_models import close, perturb
from safetensors.torch import load_file
from torch import nn

import evaluate as evaluate_script
import multitask.model
import train_multitask
from benchmarks.surgery import one_pass
from bert import Bert, Tokenizer, UserError
from common.optimization import adamw, parameter_groups
from lora.__main__ import main as merge_main
from lora.binding import prepare
from multitask import runs
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import load_sets, run_split
from multitask.methods import settings_class
from multitask.model import MultitaskModel, build_model
from multitask.preparation import load_model
from multitask.schedule import Schedule, default_lr, trained_modules
from pruning.__main__ import main as prune_main

Settings = settings_class()


# in a run

TEXTS = [("the cat is good .", "a dog was bad ."), ("a film .", "the car is very fine ."),
         ("not dull .", "a book and a song"), ("a poor meal", "the house ?")]


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_one_pass_for_all_tasks_gives_what_a_pass_for_each_gives(checkpoint, pairs):
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    model = build_model(Bert.from_pretrained(checkpoint), Settings(pairs=pairs)).eval()
    prepare(model, None, Settings(pairs=pairs, lora=4, adapters="sst=a,para=b,sts=a",
                                  lora_norms=True), None)
    perturb(model.bert, "a", "b")
    batches = {task: tokenize([Example("", texts[:count], 1.0) for texts in TEXTS], tokenizer,
                              pairs).batch(range(4 - count))
               for task, count in (("sst", 1), ("para", 2), ("sts", 2))}
    together = one_pass(model, batches)
    assert together.keys() == batches.keys()
    for task, outputs in together.items():
        close(outputs, model(task, batches[task]))


@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    """A run with two adapters, LayerNorms among them."""
    return train(tmp_path_factory.mktemp("runs") / "lora", checkpoint, data)


def train(folder, checkpoint, data, *more):
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(folder),
                          "--batch-size", "8", "--epochs", "2", "--lora", "2", "--lora-norms",
                          "--adapters", "sst=a,para=b,sts=b", *map(str, more)])
    return folder


GOES_ON = ("--lora", "2", "--lora-norms", "--adapters", "sst=a,para=b,sts=b")


def predictions(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_keeps_its_adapters_and_heads_and_opens_again(run, checkpoint, script):
    edit, = json.loads((run / "run.json").read_text())["edits"]
    assert edit.keys() == {"method", "kind", "adapters", "flags"} and edit["method"] == "lora"
    assert edit["adapters"] == {"sst": "a", "para": "b", "sts": "b"}
    assert edit["flags"] == dict.fromkeys("ab", "--lora 2 --lora-norms")
    names = {"adapter_config.json", "adapter_model.safetensors", "heads.safetensors"}
    for adapter, tasks in (("a", {"sst"}), ("b", {"para", "sts"})):
        folder = run / "adapters" / adapter
        assert {file.name for file in folder.iterdir()} == names
        assert {key.split(".")[0] for key in load_file(folder / "heads.safetensors")} == tasks
    base, saved = (Bert.from_pretrained(f).state_dict() for f in (checkpoint, run / "model"))
    assert all(torch.equal(base[key], saved[key]) for key in base)       # it is frozen
    code, out, _ = script(evaluate_script.main, run, "--json")
    assert code == 0 and json.loads(out) == json.loads((run / "metrics.json").read_text())


def test_swapping_one_adapter_leaves_the_other_tasks_unchanged(run, checkpoint, data, script,
                                                               tmp_path):
    other = train(tmp_path / "other", checkpoint, data, "--seed", "7", "--lr", "0.1")
    before = predictions(run / "predictions")
    swap = f"sts={other / 'adapters' / 'b'}"
    code, out, err = script(evaluate_script.main, run, "--adapter", swap,
                            "--predictions", tmp_path / "p")
    assert code == 0 and "sts: the adapter in" in out and "and its head" in out, err
    after = predictions(tmp_path / "p")
    differ = {name for name in after if after[name] != before[name]}
    assert differ == {"sts-dev-output.csv"}
    assert after["sts-dev-output.csv"] == predictions(other / "predictions")["sts-dev-output.csv"]
    code, out, _ = script(evaluate_script.main, run, "--adapter", swap)
    assert code == 0 and "only to a --predictions FOLDER" in out
    assert predictions(run / "predictions") == before


@pytest.mark.parametrize("kind", ["lora", "xs-out"])
def test_a_merged_run_computes_the_same_and_can_be_pruned(checkpoint, data, script, tmp_path, kind):
    run = train(tmp_path / "run", checkpoint, data, "--lora-kind", kind, "--lora", "4")
    merged, pruned = tmp_path / "merged", tmp_path / "pruned"
    code, out, err = script(merge_main, "merge", run, "--task", "sts", "--out", merged)
    assert code == 0 and f"run: {merged}" in out, err
    before, tokenizer, settings, _ = runs.open_run(run)
    after, _, _, record = runs.open_run(merged)
    assert record["edits"] == [] and list(after.heads) == ["para", "sts"]     # b served both
    for task, splits in load_sets(after.heads, settings, tokenizer).items():
        close(run_split(after, task, splits["dev"], torch.device("cpu"), nullcontext),
              run_split(before, task, splits["dev"], torch.device("cpu"), nullcontext))
    code, _, err = script(prune_main, "prune", merged, "--remove", "0:1", "--out", pruned)
    assert code == 0, err
    edit, = runs.open_run(pruned)[3]["edits"]
    assert (edit["kind"], edit["heads"]) == ("remove_heads", {"0": [1]})


class Gated(MultitaskModel):
    """A student's model: a module for each task, whose width the subclass may change."""

    width = staticmethod(lambda heads: 32)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gates = nn.ModuleDict({task: nn.Linear(32, self.width(self.heads))
                                    for task in self.heads})

    def pool(self, task, hidden, layout):
        vectors = super().pool(task, hidden, layout)
        return vectors * self.gates[task](vectors).mean(dim=1, keepdim=True)


class GatedByTask(Gated):
    width = staticmethod(len)


def test_a_students_modules_are_merged_and_swapped_with_their_task(checkpoint, data, script,
                                                                   tmp_path, monkeypatch):
    monkeypatch.setattr(multitask.model, "MultitaskModel", Gated)
    run, other = (train(tmp_path / name, checkpoint, data, "--seed", name) for name in "12")
    code, _, err = script(merge_main, "merge", run, "--task", "sts", "--out", tmp_path / "merged")
    assert code == 0, err
    before, after = (runs.open_run(folder)[0].own_state() for folder in (run, tmp_path / "merged"))
    assert {name.split(".")[1] for name in after if "gates" in name} == {"para", "sts"}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    code, _, err = script(evaluate_script.main, run, "--predictions", tmp_path / "p", "--adapter",
                          f"sts={other / 'adapters' / 'b'}")
    assert code == 0, err
    for name, kept in predictions(tmp_path / "p").items():
        assert kept == predictions((other if "sts" in name else run) / "predictions")[name]


def test_a_module_that_does_not_fit_the_merged_model_is_named(checkpoint, data, script, tmp_path,
                                                              monkeypatch):
    monkeypatch.setattr(multitask.model, "MultitaskModel", GatedByTask)
    run = train(tmp_path / "run", checkpoint, data)
    code, _, err = script(merge_main, "merge", run, "--task", "sts", "--out", tmp_path / "merged")
    assert code == 2 and "gates.sts.bias [3] instead of [2]" in err, err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("task, says", [
    ((), "has adapters for sst, para, sts, and an encoder can hold only one"),
    (("--task", "sst,sts"), "has adapters for sst, para, sts, and an encoder can hold only one"),
    (("--task", "stss"), "no task of the run 'stss' (did you mean sts?)"),
])
def test_an_impossible_merge_is_a_sentence(run, script, tmp_path, task, says):
    code, _, err = script(merge_main, "merge", run, "--out", tmp_path / "x", *task)
    assert code == 2 and says in err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("swap, says", [
    ("sts", "write task=folder"), ("cat=x", "no task of the run 'cat'; there are sst, para, sts"),
    ("sts={run}/adapters/a", "has no head for sts; it has one for sst"),
    ("sts=./nowhere", "is not a folder"), ("sst={run}/model", "holds no adapter_config.json"),
])
def test_a_wrong_swap_is_a_sentence(run, script, swap, says):
    code, _, err = script(evaluate_script.main, run, "--adapter", swap.format(run=run))
    assert code == 2 and says in err and "Traceback" not in err


def test_the_base_stays_frozen_when_adapters_go_on(run):
    settings = Settings(from_run=str(run), lora=2, adapters="sst=a,para=b,sts=b", lora_norms=True)
    model, _ = load_model(settings, torch.device("cpu"))
    assert all(".adapters." in name for name, p in model.bert.named_parameters() if p.requires_grad)


def test_training_or_adding_one_adapter_leaves_the_others_unchanged(run, data, script, tmp_path):
    code, out, err = script(train_multitask.main, "--from", run, "--data", data, "--lora", "2",
                            "--adapters", "sst=a,para=b,sts=c", "--train-tasks", "sts",
                            "--steps", "2", "--out", tmp_path / "more")
    assert code == 0 and "a: its adapter in the run" in out, err
    for adapter in "ab":
        file = f"adapters/{adapter}/adapter_model.safetensors"
        assert (tmp_path / "more" / file).read_bytes() == (run / file).read_bytes()
    assert {f.name for f in (tmp_path / "more" / "adapters").iterdir()} == {"a", "b", "c"}
    before = predictions(run / "predictions")
    after = predictions(tmp_path / "more" / "predictions")
    assert {name for name in after if after[name] != before[name]} == {"sts-dev-output.csv"}


def test_a_stopped_run_goes_on_to_the_same_bytes(checkpoint, data, script, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", checkpoint, data, "--lora-kind", "xs", "--save-every", "3")
    real, steps = torch.optim.AdamW.step, []

    def stopping(self, *arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", checkpoint, data, "--lora-kind", "xs", "--save-every", "3")
    monkeypatch.undo()
    assert script(train_multitask.main, "--resume", tmp_path / "part")[0] == 0
    for file in ("metrics.json", "heads.safetensors", "adapters/b/adapter_model.safetensors"):
        assert (tmp_path / "part" / file).read_bytes() == (whole / file).read_bytes()


def test_an_interrupted_save_is_noticed(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "broken")
    shutil.copy(folder / "adapters/a/adapter_model.safetensors",
                folder / "adapters/b/adapter_model.safetensors")
    with pytest.raises(UserError, match="stopped while it was saved"):
        runs.open_run(folder)


@pytest.mark.parametrize("flags, says", [
    (("--lora", "2", "--encoders", "separate"), "leave out --encoders separate"),
    (("--lora", "2", "--freeze"), "leave out --encoders separate and --freeze"),
    (("--lora", "2", "--adapters", "sst=a"), "task=adapter for each task (sst, para, sts)"),
    (("--lora", "2", "--lora-targets", "query,kye"), "no matrix 'kye' (did you mean key?)"),
    (("--lora", "2", "--surgery", "pcgrad"), "with one encoder, or with one adapter"),
    (("--lora", "33", "--lora-kind", "xs"), "rank 33 is more than a matrix of [32, 32] has"),
])
def test_settings_that_cannot_work_are_refused(checkpoint, data, script, tmp_path, flags, says):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--out", tmp_path / "run", *flags)
    assert code == 2 and says in err and not (tmp_path / "run").exists()


def test_a_run_with_adapters_is_not_trained_on_without_lora(run, data, script, tmp_path):
    code, _, err = script(train_multitask.main, "--from", run, "--data", data,
                          "--out", tmp_path / "x")
    assert code == 2 and "the run has adapters (a, b), which only --lora goes on with" in err


@pytest.mark.parametrize("flags, says", [
    (("--lora", "16"), "--lora 16 --lora-norms"),
    (("--lora-kind", "xs"), "--lora 2 --lora-kind xs --lora-norms"),
    (("--lora-targets", "fc_in"), "--lora 2 --lora-targets fc_in --lora-norms"),
    (("--lora-top", "4"), "--lora 2 --lora-norms --lora-top 4"),
    (("--lora-alpha", "4"), "--lora 2 --lora-alpha 4.0 --lora-norms"),
    (("--lora-dropout", "0.5"), "--lora 2 --lora-dropout 0.5 --lora-norms"),
    (("--no-lora-norms",), "--lora 2"),
])
def test_an_adapter_goes_on_only_with_its_own_flags(run, data, script, tmp_path, flags, says):
    code, _, err = script(train_multitask.main, "--from", run, "--data", data, "--steps", "1",
                          *GOES_ON, "--out", tmp_path / "x", *flags)
    assert code == 2 and not (tmp_path / "x").exists()
    assert (f"adapter a goes on as it is, which is --lora 2 --lora-norms, and the flags say {says};"
            in err)


@pytest.mark.parametrize("flags, wrong", [
    (("--lora-kind", "xs-out", "--lora-alpha", "8"), ("--lora-kind", "xs", "--lora-alpha", "8")),
    (("--lora-dropout", "0.1", "--lora-targets", "key,value"),
     ("--lora-dropout", "0.1", "--lora-targets", "key,value,query")),
    (("--lora-top", "4"), ()),
])
def test_the_flags_that_made_an_adapter_let_it_go_on(checkpoint, data, script, tmp_path, flags,
                                                     wrong):
    """Targets may be in another order, and --lora-top measures nothing."""
    run = train(tmp_path / "run", checkpoint, data, "--epochs", "0", "--steps", "1", *flags)
    again = [",".join(reversed(flag.split(","))) for flag in flags]
    for given, code in ((again, 0), (wrong, 2)):
        done, _, err = script(train_multitask.main, "--from", run, "--data", data, "--steps", "1",
                              *GOES_ON, "--out", tmp_path / f"code{code}", *given)
        assert done == code, err
    ranks = [[edit.get("ranks") for edit in runs.read_fields(folder)["edits"]]
             for folder in (run, tmp_path / "code0")]
    assert sorted(ranks[0][0] or ()) == sorted(ranks[1][0] or ())


@pytest.mark.parametrize("flags", [
    ("--lora-kind", "xs"), ("--lora-norms",), ("--adapters", "shared"), ("--lora-dropout", "0.1"),
    ("--lora-alpha", "8"), ("--lora-targets", "query"), ("--lora-top", "4"),
])
def test_a_lora_flag_without_lora_is_an_error(checkpoint, data, script, tmp_path, flags):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--out", tmp_path / "run", *flags)
    assert code == 2 and f"{flags[0]} has no effect here: it needs --lora" in err
    assert not (tmp_path / "run").exists()


def test_lora_flags_at_their_defaults_are_allowed_without_lora(checkpoint, data, script, tmp_path):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--out", tmp_path / "run", "--lora-kind", "lora", "--no-lora-norms",
                          "--lora-dropout", "0")
    assert code == 0, err


def test_a_merged_run_describes_no_adapters(run, script, tmp_path):
    assert script(merge_main, "merge", run, "--task", "sts", "--out", tmp_path / "merged")[0] == 0
    record, settings, _ = runs.read_settings(tmp_path / "merged")
    assert "lora" not in record["methods"] and settings.adapter_by_task == {}
    assert not [name for name in record["settings"] if name.startswith(("lora", "adapters"))]


@pytest.mark.parametrize("apart", [("--lora", "2"), ("--encoders", "separate")])
def test_an_untrained_task_is_saved_too(checkpoint, data, script, tmp_path, apart):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--steps", 1,
                          "--train-tasks", "sst,sts", "--out", tmp_path / "run", *apart)
    assert code == 0, err
    assert set(runs.open_run(tmp_path / "run")[0].heads) == {"sst", "para", "sts"}


@pytest.mark.parametrize("surgery", ["pcgrad", "pcgrad-tensor"])
def test_gradient_surgery_works_on_an_adapter_that_tasks_share(checkpoint, data, tmp_path, surgery):
    folder = train(tmp_path / "run", checkpoint, data, "--surgery", surgery)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    cosines = next(line["cosine"] for line in lines if "cosine" in line)
    assert cosines["sst·para"] == 0 and cosines["para·sts"] != 0         # sst has its own adapter


def test_no_operation_of_a_step_with_adapters_waits_for_the_device(checkpoint):
    settings = Settings(lora=4, lora_norms=True)
    model = build_model(Bert.from_pretrained(checkpoint), settings).train()
    prepare(model, None, settings, None)
    batch = tokenize([Example("", texts[:1], 1.0) for texts in TEXTS],
                     Tokenizer.from_pretrained(checkpoint)).batch(range(4))
    mixed = batch.layout.with_adapters([("sst", 1), ("para", 3)])
    with NoWaiting():
        model("sst", batch).sum().backward()
        model.bert.encode(model.bert.embed(batch.input_ids, mixed)[0], mixed).sum().backward()
    assert {name.split(".")[-2] for name, p in model.named_parameters()
            if p.grad is not None and "adapters" in name} == {"sst", "para"}


def test_learning_rates_of_adapters_and_heads_differ_and_r_does_not_decay(checkpoint):
    for kind, decay in (("lora", 0.01), ("xs", 0.0)):
        settings = Settings(lora=4, lora_kind=kind, head_lr=0.5)
        model = build_model(Bert.from_pretrained(checkpoint), settings)
        prepare(model, None, settings, None)
        schedule = Schedule(settings, dict.fromkeys(settings.trained_tasks, 40), 1)
        parts = trained_modules(model, settings, schedule, default_lr(model, settings))
        groups = adamw(parameter_groups(parts, 0.01)).param_groups
        assert {group["max_lr"] for group in groups} == {0.5, default_lr(model, settings)}
        for group in groups:
            if group["max_lr"] != 0.5:
                assert group["weight_decay"] == decay
        assert sum(p.numel() for group in groups for p in group["params"]) == sum(
            p.numel() for p in model.parameters() if p.requires_grad)
