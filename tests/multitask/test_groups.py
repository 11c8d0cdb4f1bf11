"""What is trained and kept together: training groups, modules that a student adds, runs made of
runs, and flags that would change nothing."""

import json

import pytest
import torch
from conftest import write_course_data
from torch import nn

import evaluate as evaluate_script
import multitask.model
import train_multitask
from bert import Bert, BertConfig, Tokenizer, UserError
from bert.files import read_tensors
from lora import binding as adapters  # noqa: I001
from multitask import preparation, runs
from multitask.course import Example
from multitask.data import tokenize
from multitask.methods import settings_class
from multitask.model import MultitaskModel, build_model
from multitask.settings import Settings as base

Settings = settings_class()

CPU = torch.device("cpu")
PAIRS = [Example(str(n), (f"the {a} is {b} .", f"a {a} was {b} and {b} ."), float(n))
         for n, (a, b) in enumerate([("cat", "good"), ("dog", "bad"), ("film", "dull")])]


@pytest.fixture(scope="module")
def still(checkpoint, tmp_path_factory):
    """The small checkpoint without dropout: no task's random numbers move another's."""
    folder = tmp_path_factory.mktemp("still") / "checkpoint"
    bert = Bert.from_pretrained(checkpoint)
    bert.config = BertConfig.from_dict(bert.config.to_dict() | {
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    bert.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((checkpoint / "vocab.txt").read_bytes())
    return folder


@pytest.fixture
def train(still, data, tmp_path):
    """Train a few steps → the run's folder."""
    def call(name, *more, start=("--bert", still)):
        train_multitask.main([str(a) for a in (
            *start, "--data", data, "--out", tmp_path / name, "--device", "cpu", "--batch-size", 8,
            "--steps", 6, *more)])
        return tmp_path / name
    return call


def scores(folder, script):
    """The scores in metrics.json, which evaluate.py must find again."""
    kept = json.loads((folder / "metrics.json").read_text())
    code, out, err = script(evaluate_script.main, folder, "--json")
    assert code == 0 and json.loads(out) == kept, err
    return kept


# ---- training groups

APART = {"encoders": ("--encoders", "separate"), "adapters": ("--lora", 2, "--lora-norms")}


def weights_of(folder, task):
    """The bytes that a task alone has."""
    heads = read_tensors(folder / "heads.safetensors")
    own = [*folder.glob(f"model/{task}/model.safetensors"),
           *folder.glob(f"adapters/{task}/adapter_model.safetensors")]
    return [file.read_bytes() for file in own] + [
        tensor.numpy().tobytes() for name, tensor in heads.items() if name.startswith(task)]


@pytest.mark.parametrize("kind", APART)
def test_tasks_that_share_nothing_train_as_each_alone(train, kind):
    flags = ("--tasks", "sst,para", *APART[kind], "--lr", 0.01)
    both, alone = train("both", *flags), train("alone", *flags, "--train-tasks", "sst")
    assert weights_of(both, "sst") == weights_of(alone, "sst")
    assert weights_of(both, "para") != weights_of(alone, "para")


@pytest.mark.parametrize("kind", APART)
def test_huge_gradients_of_one_task_leave_what_another_learns(train, kind, monkeypatch):
    flags = ("--tasks", "sst,para", *APART[kind], "--lr", 0.01)
    plain, loss_of = train("plain", *flags), Settings.loss_of
    monkeypatch.setattr(Settings, "loss_of", lambda self, task: lambda outputs, labels: (
        loss_of(self, task)(outputs, labels) * (1e4 if task == "para" else 1)))
    assert weights_of(train("huge", *flags), "sst") == weights_of(plain, "sst")


def test_gradients_of_a_tasks_vectors_reach_its_own_adapter_alone(checkpoint):
    settings = Settings(lora=2)
    model = build_model(Bert.from_pretrained(checkpoint), settings)
    adapters.prepare(model, None, settings, None)
    for name, parameter in model.bert.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(parameter)                       # at 0, nothing would reach A
    batch = tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint)).batch(range(3))
    model.vectors("sts", batch).square().sum().backward()
    reached = {name.split(".adapters.")[1].split(".")[0]
               for name, parameter in model.bert.named_parameters() if parameter.grad is not None}
    assert reached == {"sts"}


# ---- modules that a student adds

class AttentivePooling(nn.Module):
    """Σ softmax(tanh(W h) · q) h over a sequence's tokens."""

    def __init__(self, width):
        super().__init__()
        self.dense, self.query = nn.Linear(width, width), nn.Parameter(torch.randn(width))

    def forward(self, hidden, layout):
        scores = layout.pad(torch.tanh(self.dense(hidden)) @ self.query[:, None]).squeeze(-1)
        weights = scores.masked_fill(~layout.mask.bool(), -torch.inf).softmax(dim=-1)
        return (weights[..., None] * layout.pad(hidden)).sum(dim=1)


class Attentive(MultitaskModel):
    """The model as a student would change it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.pooling = AttentivePooling(32)

    def pooled_rows(self, task, batch):
        return None

    def pool(self, task, hidden, layout):
        return self.pooling(hidden, layout)


class AttentiveEach(Attentive):
    """One for each task."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.pooling = nn.ModuleDict({task: AttentivePooling(32) for task in self.heads})

    def pool(self, task, hidden, layout):
        return self.pooling[task](hidden, layout)


class Scaled(MultitaskModel):
    """A bare parameter."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.scale = nn.Parameter(torch.ones(1))

    def pool(self, task, hidden, layout):
        return self.scale * hidden


@pytest.fixture
def student(monkeypatch):
    return lambda model: monkeypatch.setattr(multitask.model, "MultitaskModel", model)


ADDED = {"shared": (Attentive, ()), "a parameter": (Scaled, ()),
         "shared adapter": (Attentive, ("--lora", 2, "--adapters", "shared")),
         "each": (AttentiveEach, ("--encoders", "separate")),
         "each, adapters": (AttentiveEach, ("--lora", 2))}


@pytest.mark.parametrize("case", ADDED)
def test_a_module_added_to_the_model_is_trained_saved_and_opened(train, student, script, still,
                                                                 case):
    model, flags = ADDED[case]
    student(model)
    run = train("run", *flags, "--tasks", "sst,sts", "--steps", 10, "--lr", 0.01)
    scores(run, script)
    opened, _, settings, _ = runs.open_run(run)
    torch.manual_seed(0)
    start = build_model(Bert.from_pretrained(still), settings).own_state()
    learned = opened.own_state()
    added = [name for name in learned if name.startswith(("pooling", "scale"))]
    assert added and all(not torch.equal(learned[name], start[name]) for name in added)
    again = train("again", *flags, "--tasks", "sst,sts", "--lr", 1e-9, "--head-lr", 1e-9, "--steps",
                  1, start=("--from", run))
    for name, tensor in runs.open_run(again)[0].own_state().items():
        torch.testing.assert_close(tensor, learned[name])


def test_a_module_added_to_the_model_resumes(train, student):
    student(Attentive)
    run = train("run", "--lr", 0.01)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"complete": False}))
    before = (run / "heads.safetensors").read_bytes()
    train_multitask.main(["--resume", str(run)])
    assert (run / "heads.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", APART)
def test_a_module_that_tasks_kept_apart_would_share_is_refused(train, student, tmp_path, kind):
    student(Attentive)
    with pytest.raises(UserError, match="all tasks use pooling, but sst, para, sts are trained"):
        train("run", *APART[kind])
    assert not (tmp_path / "run").exists()


STRAYS = {"beside the layers": lambda bert: setattr(bert, "gate", nn.Linear(32, 32)),
          "in a layer": lambda bert: setattr(bert.layers[0].attention, "gate",
                                             nn.Parameter(torch.ones(4))),
          "of another shape": lambda bert: setattr(bert.layers[0].ffn, "fc_out", nn.Linear(64, 33))}


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("flags", [(), ("--lora", 2)], ids=["all", "lora"])
def test_a_parameter_that_no_saved_file_holds_is_refused_by_name(train, monkeypatch, tmp_path,
                                                                 stray, flags):
    load, name = preparation.load_model, "fc_out" if stray == "of another shape" else "gate"

    def changed(*arguments):
        model, tokenizer = load(*arguments)
        STRAYS[stray](model.bert)
        return model, tokenizer

    monkeypatch.setattr(preparation, "load_model", changed)
    with pytest.raises(UserError, match=rf"encoders.shared.*{name}.* would not be trained"):
        train("run", *flags)
    assert not (tmp_path / "run").exists()


class InAList(MultitaskModel):
    """A module where torch does not see it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.further = [nn.Linear(32, 32)]

    def pool(self, task, hidden, layout):
        return self.further[0](hidden)


@pytest.mark.parametrize("flags", [(), ("--lora", 2), ("--surgery", "pcgrad")])
def test_a_module_in_a_list_is_refused_before_the_first_step(train, student, tmp_path, flags):
    student(InAList)
    with pytest.raises(UserError, match=r"shape \[32, 32\], .* in its __init__"):
        train("run", *flags)
    assert not (tmp_path / "run" / "model").exists()


def test_a_module_added_after_the_model_was_made_is_refused(train, monkeypatch, tmp_path):
    load = preparation.load_model

    def changed(*arguments):
        model, tokenizer = load(*arguments)
        model.further = nn.Linear(32, 32)
        return model, tokenizer

    monkeypatch.setattr(preparation, "load_model", changed)
    with pytest.raises(UserError, match="further.weight, further.bias would not be trained"):
        train("run")
    assert not (tmp_path / "run").exists()


# ---- what learns, and in which precision

def test_a_pooler_that_nothing_reads_does_not_count_and_learns_again_when_read(train):
    first = train("first", "--tasks", "sst")
    learned = json.loads((first / "run.json").read_text())["parameters"]
    assert learned["stored"] - learned["trained"] == 32 * 32 + 32
    second = train("second", "--tasks", "sst", "--pooling", "pooler", "--lr", 0.01,
                   start=("--from", first))
    learned = json.loads((second / "run.json").read_text())["parameters"]
    assert learned["stored"] == learned["trained"]
    poolers = [runs.open_run(folder)[0].bert.pooler.weight for folder in (first, second)]
    assert not torch.equal(*poolers)


def test_heads_are_in_float32_under_autocast(checkpoint):
    model = build_model(Bert.from_pretrained(checkpoint), Settings(
        tasks="sts", head="cosine", pairs="separate")).eval()
    vectors = torch.randn(2, 400, 32)
    vectors[1] = vectors[0] + 0.2 * vectors[1]               # cosines near 1, where bf16 has few
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model.apply_head("sts", vectors.flatten(0, 1))
        halved = model.apply_head("sts", vectors.flatten(0, 1).bfloat16())
    assert outputs.dtype == halved.dtype == torch.float32
    assert len(outputs.unique()) > 390 and len(halved.unique()) > 390
    loss = Settings(tasks="sts").loss_of("sts")(outputs, torch.ones(400))
    assert loss.dtype == torch.float32


# ---- a run made of a run

FROM = {   # (flags of the first run, flags of the second) → words of the refusal, or None
    "separate, the same": (("--encoders", "separate"), ("--encoders", "separate"), None),
    "separate, fewer": (("--encoders", "separate"), ("--encoders", "separate", "--tasks", "sts"),
                        None),
    "separate, one learns": (("--encoders", "separate"), ("--encoders", "separate", "--train-tasks",
                                                          "sts"), None),
    "separate, others": (("--encoders", "separate", "--tasks", "sst,para"),
                         ("--encoders", "separate", "--tasks", "sst,sts"),
                         "encoders for sst, para and none for sts"),
    "separate to shared": (("--encoders", "separate"), (), "model/sst"),
    "separate to LoRA": (("--encoders", "separate"), ("--lora", 2), "model/sst"),
    "shared to separate": ((), ("--encoders", "separate"), None),
    "shared to LoRA": ((), ("--lora", 2), None),
    "LoRA, fewer": (("--lora", 2), ("--lora", 2, "--tasks", "sts"), None),
    "LoRA, others": (("--lora", 2, "--tasks", "sst,para"), ("--lora", 2, "--tasks", "sst,sts"),
                     None),
    "LoRA to all": (("--lora", 2), (), "adapters"),
    "LoRA to separate": (("--lora", 2), ("--encoders", "separate"), "adapters"),
}


@pytest.mark.parametrize("case", FROM)
def test_a_run_starts_from_any_other_or_says_why_not(train, script, tmp_path, case):
    first, second, refusal = FROM[case]
    source = train("first", *first)
    if refusal:
        with pytest.raises(UserError, match=refusal):
            train("second", *second, start=("--from", source))
        assert not (tmp_path / "second").exists()
    else:
        scores(train("second", *second, start=("--from", source)), script)


# ---- predictions of a run

def test_predictions_of_other_data_go_to_another_folder_only(train, script, data, tmp_path):
    run = train("run", "--tasks", "sst")
    file = run / "predictions" / "sst-dev-output.csv"
    before = file.read_bytes()
    other = write_course_data(tmp_path / "other", seed=5)
    for more in (("--data", other), ("--data", other, "--laser", "0:fc_in:0.5")):
        code, out, _ = script(evaluate_script.main, run, *more)
        assert code == 0 and "other data" in out and "--predictions FOLDER" in out
    assert file.read_bytes() == before and not (run / "laser").exists()
    code, out, _ = script(evaluate_script.main, run, "--split", "test", "--data", data)
    assert code == 0 and (run / "predictions" / "sst-test-output.csv").is_file()


# ---- flags that would change nothing

VAIN = {
    "sampling": ("--sampling", "round-robin", "--train-tasks", "sst"),
    "annealing": ("--annealing", 0.5),
    "pairs": ("--pairs", "separate", "--tasks", "sst"),
    "head_dropout": ("--head-dropout", 0.5, "--head", "mlp,sst=linear", "--train-tasks", "sst"),
    "loss": ("--loss", "cosine", "--tasks", "sst,para"),
    "lr": ("--lr", 1e-3, "--freeze"),
    "layer_decay": ("--layer-decay", 0.5, "--freeze"),
    "zeros": ("--zeros", 0.2), "zeros_ramp": ("--zeros-ramp", 0.2, "--attention", "eager"),
    "zeros_gradient": ("--zeros-gradient", "detached"),
    "patience": ("--patience", 3, "--epochs", 3), "epochs": ("--epochs", 3, "--steps", 9),
    "overwrite": ("--overwrite",),
}
ACTS = {
    "sampling": ("--sampling", "round-robin"),
    "annealing": ("--annealing", 0.5, "--sampling", "annealed"),
    "pairs": ("--pairs", "separate"),
    "head_dropout": ("--head-dropout", 0.5, "--head", "sst=mlp"), "loss": ("--loss", "cosine"),
    "lr": ("--lr", 1e-3, "--encoders", "separate"),
    "layer_decay": ("--layer-decay", 0.5), "patience": ("--patience", 1, "--epochs", 3),
    "epochs": ("--epochs", 3, "--steps", 0),
    "overwrite": ("--overwrite", "--out", "here"), **{
        name: (*VAIN[name][:2], "--attention", "r-softmax")
        for name in ("zeros", "zeros_ramp", "zeros_gradient")},
}


def settings_of(flags, recipe=""):
    given = train_multitask.parse([str(flag) for flag in flags])
    for name in ("resume", "recipe", "recipes"):
        del given[name]
    return train_multitask.new_settings(given, recipe)


@pytest.mark.parametrize("name", base.NEEDS)
def test_a_flag_that_would_change_nothing_is_an_error(name):
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(UserError, match=f"{flag} has no effect here: it needs .*; leave it out"):
        settings_of(VAIN[name])
    assert getattr(settings_of(ACTS[name]), name) != getattr(Settings, name)


def test_what_a_recipe_says_in_vain_is_left_out_of_its_settings():
    assert settings_of(("--freeze",), "mb-comb").lr == 0
    assert settings_of((), "mb-comb").lr == 1e-5
    with pytest.raises(UserError, match="--lr has no effect"):
        settings_of(("--freeze", "--lr", 1e-3), "mb-comb")


def test_a_run_made_with_a_flag_that_changes_nothing_still_opens(train):
    run = train("run", "--tasks", "sst", "--freeze")
    record = json.loads((run / "run.json").read_text())
    record["settings"] |= {"lr": 1e-3, "annealing": 0.5}
    (run / "run.json").write_text(json.dumps(record))
    assert runs.open_run(run)[2].lr == 1e-3


# ---- other versions, other folders

def test_runs_of_other_versions_are_compared_by_what_is_shown(train, script, tmp_path):
    folders = [train("mine", "--tasks", "sst"), train("branch", "--tasks", "sst")]
    record = json.loads((folders[1] / "run.json").read_text())
    record["settings"] |= {"tasks": "sst,nli", "head": "nli=bilinear", "depth": 3}
    record.pop("versions")
    (folders[1] / "run.json").write_text(json.dumps(record))
    kept = json.loads((folders[1] / "metrics.json").read_text())
    (folders[1] / "metrics.json").write_text(json.dumps({"nli": {"accuracy": 0.625}} | kept))
    code, out, err = script(evaluate_script.main, "--compare", *folders, "--out", tmp_path / "to")
    header, mine, branch = (line.split() for line in out.splitlines()[:3])
    assert code == 0 and header[:4] == ["run", "seeds", "sst", "nli"], err
    assert mine[0] == "mine" and branch[0] == "branch" and branch[3] == "0.625"


def test_the_default_data_and_checkpoint_lie_beside_the_code(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()                              # a folder of that name is another one
    code, out, err = script(train_multitask.main, "--tasks", "sst", "--limit", 8, "--steps", 1)
    assert code == 0 and "--data" not in out.splitlines()[0], err
    record = json.loads((tmp_path / "runs" / "tiny-1" / "run.json").read_text())
    assert record["settings"]["data"] == str(train_multitask.SAMPLE)
    code, out, err = script(train_multitask.main, "--tasks", "sst", "--data", "data")
    assert code == 2 and f"{tmp_path / 'data'}/ids-sst-train.csv does not exist" in err
    assert "--data ./data" in out
