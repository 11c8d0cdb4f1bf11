"""What a run can be set to: samplers, heads, what learns how fast and how long, recipes."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F

import evaluate as evaluate_script
import train_multitask
from bert import Bert, UserError
from common.flags import command
from common.optimization import adamw, parameter_groups, warmup_then_decay
from laser.__main__ import main as laser_main
from lora import binding as adapters  # noqa: I001
from multitask import runs
from multitask.heads import ReLUCosine
from multitask.methods import settings_class
from multitask.model import build_head, build_model
from multitask.recipes import RECIPES
from multitask.schedule import (
    SAMPLERS,
    Schedule,
    annealing_exponent,
    default_lr,
    draw,
    steps_in_epoch,
    trained_modules,
)
from multitask.tasks import TASKS

Settings = settings_class()

SIZES = {"sst": 100, "para": 600, "sts": 300}


def drawn(sampling, epoch, epochs, steps=4000, **more):
    """How often each task is drawn."""
    settings = Settings(sampling=sampling, **more)
    tasks = [t for step in range(1, steps + 1)
             for t in SAMPLERS[sampling](SIZES, step, epoch, epochs, settings)]
    return {task: tasks.count(task) / len(tasks) for task in SIZES}


# ------------------------------------------------------------------------------------- samplers


def test_a_step_has_one_batch_of_every_task_or_of_each_in_turn():
    settings = Settings()
    assert SAMPLERS["all"](SIZES, 7, 1, 1, settings) == list(SIZES)
    turns = [SAMPLERS["round-robin"](SIZES, step, 1, 1, settings) for step in range(1, 7)]
    assert turns == [["sst"], ["para"], ["sts"]] * 2


def test_proportional_sampling_draws_by_size():
    assert drawn("proportional", 1, 1) == pytest.approx(
        {"sst": 0.1, "para": 0.6, "sts": 0.3}, abs=0.03)


def test_annealed_sampling_begins_by_size_and_ends_evenly():
    assert drawn("annealed", 1, 5) == pytest.approx(drawn("proportional", 1, 1))
    assert drawn("annealed", 5, 5, annealing=1.0) == pytest.approx(dict.fromkeys(SIZES, 1 / 3),
                                                                   abs=0.03)
    weights = {task: n ** (1 - 0.8 * 2 / 4) for task, n in SIZES.items()}
    expected = {task: w / sum(weights.values()) for task, w in weights.items()}
    assert drawn("annealed", 3, 5, annealing=0.8) == pytest.approx(expected, abs=0.03)


def test_annealing_is_defined_for_a_single_epoch():
    assert annealing_exponent(1, 1, 0.8) == 1.0
    assert [annealing_exponent(e, 3, 0.8) for e in (1, 2, 3)] == pytest.approx([1.0, 0.6, 0.2])


def test_draws_follow_from_the_seed_and_the_step():
    first = [draw(SIZES, 1.0, 0, step) for step in range(50)]
    assert first == [draw(SIZES, 1.0, 0, step) for step in range(50)]
    assert first != [draw(SIZES, 1.0, 1, step) for step in range(50)]


def test_draws_are_those_of_earlier_versions():
    assert [draw(SIZES, 0.5, 2, step)[0] for step in range(8)] == [
        "para", "para", "sst", "sts", "para", "sts", "para", "para"]


def test_an_epoch_passes_over_every_task():
    batches = {"sst": 4, "para": 10, "sts": 7}
    assert [steps_in_epoch(batches, name) for name in SAMPLERS] == [10, 30, 21, 21]


# ---------------------------------------------------------------------------------------- heads


def test_relu_cosine_is_the_papers_and_learns_where_the_cosine_is_negative():
    head = ReLUCosine(4, 2, 1, 0.0)
    u = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    v = torch.tensor([[-1.0, 0.2, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    outputs = head(u, v)
    expected = 5 * F.relu(F.cosine_similarity(u, v))
    torch.testing.assert_close(outputs.squeeze(1), expected)
    assert outputs[0] == 0
    TASKS["sts"].loss(outputs[:1], torch.tensor([4.0])).backward()
    assert head.dense.weight.grad.abs().sum() > 0


def test_cosine_loss_is_the_papers():
    cosine, labels = torch.tensor([0.9, -0.1]), torch.tensor([5.0, 1.0])
    loss = Settings(loss="cosine").loss_of("sts")((5 * cosine)[:, None], labels)
    torch.testing.assert_close(loss, ((cosine - labels / 5) ** 2).mean())
    assert Settings(loss="cosine").loss_of("sst") is TASKS["sst"].loss


def test_a_graded_heads_bias_starts_in_the_middle_of_the_labels():
    assert build_head("sts", "linear", 8, "joint", 0.0).out.bias.item() == 2.5
    assert build_head("sts", "mlp", 8, "joint", 0.0).out.bias.item() == 2.5


# ------------------------------------------------------------------------------ what learns how


@pytest.fixture
def bert(checkpoint):
    return Bert.from_pretrained(checkpoint)


def groups_of(bert, **more):
    settings = Settings(**more)
    model = build_model(bert, settings)
    schedule = Schedule(settings, {task: 64 for task in settings.trained_tasks}, 1)
    modules = trained_modules(model, settings, schedule, 1e-3)
    return model, adamw(parameter_groups(modules, 0.01)).param_groups


def test_every_weight_learns_in_one_group(bert):
    for encoders in ("shared", "separate"):
        model, groups = groups_of(bert, encoders=encoders)
        members = [p for group in groups for p in group["params"]]
        assert len(members) == len(set(members)) == len(list(model.parameters()))


def test_each_layer_learns_slower_than_the_one_above_it(bert):
    model, groups = groups_of(bert, layer_decay=0.5)
    peak = {p: group["max_lr"] for group in groups for p in group["params"]}
    shared = model.bert
    assert peak[shared.pooler.weight] == peak[shared.layers[1].ffn.fc_in.weight] == 1e-3
    assert peak[shared.layers[0].ffn.fc_in.weight] == 0.5e-3
    assert peak[shared.word_embeddings.weight] == 0.25e-3
    assert peak[model.heads["sst"].out.weight] == Settings().head_lr


def test_tasks_that_share_nothing_are_groups_of_their_own(bert):
    model, groups = groups_of(bert, encoders="separate")
    of = {p: group["group"] for group in groups for p in group["params"]}
    for task in model.heads:
        assert of[model.encoder(task).layers[1].ffn.fc_in.weight] == task
        assert of[model.heads[task].out.weight] == task


def test_an_adapter_and_the_heads_of_its_tasks_are_a_group(bert):
    settings = Settings(lora=2, adapters="sst=a,para=b,sts=b", epochs=3)
    model = build_model(bert, settings)
    adapters.prepare(model, None, settings, None)
    schedule = Schedule(settings, dict.fromkeys(settings.trained_tasks, 64), 1)
    assert schedule.groups == {"a": ["sst"], "b": ["para", "sts"]}
    modules = trained_modules(model, settings, schedule, 1e-3)
    groups = adamw(parameter_groups(modules, 0.01)).param_groups
    of = {p: (group["group"], group["max_lr"]) for group in groups for p in group["params"]}
    query = model.bert.layers[0].attention.query.adapters
    assert [of[query[name].A] for name in "ab"] == [("a", 1e-3), ("b", 1e-3)]
    heads = [of[model.heads[task].out.weight] for task in ("sst", "para", "sts")]
    assert heads == [(name, settings.head_lr) for name in "abb"]


def test_steps_go_before_epochs():
    for more, expected in (({}, 6), ({"steps": 100}, 100), ({"steps": 4}, 4)):
        schedule = Schedule(Settings(epochs=3, **more), {"sst": 64, "para": 64, "sts": 40}, 1)
        assert (schedule.steps, schedule.epochs) == (expected, -(-expected // 2))


def test_a_short_epoch_is_repeated_up_to_500_steps_and_each_three_times():
    for in_an_epoch, epochs in ((20, 25), (40, 12), (100, 5), (400, 3)):
        schedule = Schedule(Settings(tasks="sst", batch_size=8), {"sst": 8 * in_an_epoch}, 1)
        assert (schedule.steps, schedule.epochs) == (in_an_epoch * epochs, epochs)
    settings = Settings(tasks="sst", batch_size=8, accumulate=2, epochs=1)
    assert Schedule(settings, {"sst": 96}, processes=3).steps == 2


def test_an_epoch_begins_after_the_last_step_of_the_one_before(monkeypatch):
    schedule, seen = Schedule(Settings(epochs=3), {"sst": 64, "para": 64, "sts": 40}, 1), []
    monkeypatch.setitem(SAMPLERS, "all", lambda sizes, *more: seen.append((sizes, *more[:3])))
    for step in (1, 2, 3, 6):
        schedule.tasks_of(step, ["shared"])
    sizes = {"sst": 64, "para": 64, "sts": 40}
    assert seen == [(sizes, 1, 1, 3), (sizes, 2, 1, 3), (sizes, 3, 2, 3), (sizes, 6, 3, 3)]


def test_the_ramp_is_0_in_the_first_step_and_1_after_its_fraction(bert, monkeypatch):
    monkeypatch.setattr("multitask.schedule.configure", lambda bert, ramp: ramps.append(ramp))
    model = build_model(bert, Settings())
    for fraction, expected in ((0.5, [0, 0.25, 0.5, 0.75, 1, 1]), (0, [1] * 6)):
        ramps = []
        schedule = Schedule(Settings(steps=8, zeros_ramp=fraction), {"sst": 8}, 1)
        for step in range(1, 7):
            schedule.set_ramps(model, step)
        assert ramps == expected


def test_a_wider_encoder_learns_slower(bert):
    lr = default_lr(build_model(bert, Settings()), Settings())
    assert lr == pytest.approx((3.84 / 32) ** 2)             # 1e-4 at 384, 2.5e-5 at 768


def test_learning_rate_without_decay_stays():
    assert [warmup_then_decay(step, 10, 0.2, decay=False) for step in range(1, 11)] == (
        [0.5] + [1.0] * 9)


def test_l2_is_added_to_the_gradient_of_the_loss():
    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    idle = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 1.0])
    train_multitask.add_l2([weight, idle], 0.1)
    torch.testing.assert_close(weight.grad, torch.tensor([1.2, 0.9]))
    assert idle.grad is None


# ---------------------------------------------------------------------------------------- runs


def train(checkpoint, data, out, *more):
    train_multitask.main([str(a) for a in (
        "--bert", checkpoint, "--data", data, "--out", out, "--device", "cpu", "--batch-size", 8,
        "--steps", 5, *(() if "--freeze" in more else ("--lr", 0.01)), *more)])
    return runs.open_run(out)[0]


def test_a_frozen_encoder_stays_as_it_was(checkpoint, data, tmp_path, bert):
    model = train(checkpoint, data, tmp_path / "run", "--freeze")
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(tensor, bert.state_dict()[name]), name
    start = build_head("sst", "linear", 32, "joint", 0.0).out.weight
    assert not torch.equal(model.heads["sst"].out.weight, start)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["parameters"]["trained"] == sum(p.numel() for p in model.heads.parameters())


def test_only_the_tasks_to_learn_are_trained_and_all_are_scored(checkpoint, data, tmp_path):
    model = train(checkpoint, data, tmp_path / "run", "--train-tasks", "sst")
    torch.manual_seed(0)
    untrained = build_model(Bert.from_pretrained(checkpoint), Settings())
    for task in ("sst", "para", "sts"):
        same = torch.equal(model.heads[task].out.weight, untrained.heads[task].out.weight)
        assert same == (task != "sst")
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())) == {
        "sst", "para", "sts", "overall", "mean"}


def test_separate_encoders_learn_apart_and_open_again(checkpoint, data, tmp_path, script):
    together = train(checkpoint, data, tmp_path / "three", "--encoders", "separate")
    alone = train(checkpoint, data, tmp_path / "one", "--encoders", "separate", "--train-tasks",
                  "sst")
    moved = together.encoder("sst").layers[0].ffn.fc_in.weight
    assert not torch.equal(moved, together.encoder("sts").layers[0].ffn.fc_in.weight)
    assert torch.equal(alone.encoder("sts").layers[0].ffn.fc_in.weight,
                       Bert.from_pretrained(checkpoint).layers[0].ffn.fc_in.weight)
    assert Bert.from_pretrained(tmp_path / "three" / "model" / "sst") is not None
    scores = json.loads((tmp_path / "three" / "metrics.json").read_text())
    code, out, _ = script(evaluate_script.main, tmp_path / "three", "--json")
    assert code == 0 and json.loads(out) == scores
    with pytest.raises(UserError, match="an encoder for each task"):
        together.bert  # noqa: B018


def test_each_separate_task_keeps_its_own_best_epoch(checkpoint, data, tmp_path):
    train(checkpoint, data, tmp_path / "run", "--encoders", "separate", "--steps", 0, "--epochs", 4)
    lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    looks = [line["dev"] for line in lines if "dev" in line]
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for task in ("sst", "para", "sts"):
        metric = next(iter(scores[task]))
        assert scores[task][metric] == max(look[task][metric] for look in looks)
    assert len(looks) == 4


def test_patience_stops_a_run_that_does_not_get_better(checkpoint, data, tmp_path):
    train(checkpoint, data, tmp_path / "run", "--steps", 0, "--epochs", 30, "--lr", 0,
          "--head-lr", 1e-9, "--patience", 2)
    lines = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    looks = [line["step"] for line in lines if "dev" in line]
    best = json.loads((tmp_path / "run" / "run.json").read_text())["best_step"]["shared"]
    assert len(looks) < 30 and looks[-1] == best + 2 * looks[0]


def test_accumulated_batches_are_one_large_batch(checkpoint, data, tmp_path):
    flags = ("--tasks", "sst", "--steps", 2, "--limit", 32, "--log-every", 1)
    for name, more in (("whole", ("--batch-size", 8)),
                       ("parts", ("--batch-size", 4, "--accumulate", 2))):
        train(checkpoint, data, tmp_path / name, *flags, *more)
    first = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"]["sst"]
             for name in ("whole", "parts")]
    assert first[0] == pytest.approx(first[1], abs=0.2)      # dropout is drawn otherwise
    steps = [json.loads((tmp_path / name / "run.json").read_text())["resolved"]["steps"]
             for name in ("whole", "parts")]
    assert steps == [2, 2]


@pytest.mark.parametrize("more, says", [
    (("--sampling", "anneal"), "did you mean"), (("--layer-decay", 1.5), "at most 1"),
    (("--train-tasks", "cfimdb"), "there is no task"),
    (("--head", "relu-cosine"), "has no 'relu-cosine' head"), (("--recipe", "mb-com"), "mb-comb"),
])
def test_settings_that_cannot_be_are_sentences(checkpoint, data, tmp_path, script, more, says):
    code, _, err = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--out",
                          tmp_path / "run", *more)
    assert code == 2 and (says in err or "invalid choice" in err)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------- recipes, comparison


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_settings_a_user_could_type(name):
    settings = train_multitask.new_settings({}, name)
    typed = train_multitask.parse(command(settings).split())
    for flag in ("resume", "recipe", "recipes"):
        del typed[flag]
    assert Settings(**typed) == settings


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name, checkpoint, data, tmp_path, capsys):
    if name.startswith("glue"):
        data = write_rte(tmp_path / "glue" / "RTE")
    train(checkpoint, data, tmp_path / name, "--recipe", name, "--steps", 2, "--lr", 0)
    assert f"python train_multitask.py {'--bert'}" in capsys.readouterr().out
    scores = json.loads((tmp_path / name / "metrics.json").read_text())
    summed = ("mean",) if name.startswith("glue") else ("overall", "mean")
    assert all(math.isfinite(scores[key]) for key in summed)


def write_rte(folder):
    folder.mkdir(parents=True)
    lines = [f"{n}\tthe cat is good\ta cat\t{('not_', '')[n % 2]}entailment" for n in range(8)]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(
            ["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
    return folder


def test_a_flag_goes_before_its_recipe():
    settings = train_multitask.new_settings({"epochs": 1, "head": "linear"}, "mb-comb-csd")
    assert (settings.epochs, settings.head, settings.pairs) == (1, "linear", "separate")


def test_recipes_are_listed(script):
    code, out, _ = script(train_multitask.main, "--recipes")
    assert code == 0 and len(out.splitlines()) == len(RECIPES) and "MB-COMB-gs" in out


def test_runs_are_compared_beside_the_papers(checkpoint, data, tmp_path, script):
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / f"comb{seed}")
        train(checkpoint, data, folders[-1], "--recipe", "mb-comb", "--seed", seed, "--steps", 2)
    folders.append(tmp_path / "mine")
    train(checkpoint, data, folders[-1], "--tasks", "sst", "--steps", 2)
    code, out, _ = script(evaluate_script.main, "--compare", *folders, "--out", tmp_path / "to")
    header, comb, mine, *_ = out.splitlines()
    assert code == 0 and comb.split()[:2] == ["mb-comb", "2"] and "±" in comb
    assert comb.split()[-3:] == ["0.506", "0.779", "0.360"] and mine.split()[:2] == ["mine", "1"]
    table = (tmp_path / "to" / "comparison.md").read_text().splitlines()
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1
    assert (tmp_path / "to" / "comparison.png").stat().st_size > 5_000


def test_runs_that_were_edited_differently_have_rows_of_their_own(checkpoint, data, tmp_path,
                                                                   script):
    """Each is named by what tells it apart, and none stands beside its recipe's figures but those
    that were trained by it."""
    for name, more in (("a", ()), ("b", ("--lr", "1e-4"))):
        train(checkpoint, data, tmp_path / name, "--recipe", "mb-sst", "--steps", 2, *more)
    for name, keep in (("l1", "0.1"), ("l2", "0.5")):
        assert script(laser_main, "apply", tmp_path / "a", "--laser", f"0:fc_in:{keep}", "--out",
                      tmp_path / name)[0] == 0
    code, out, _ = script(evaluate_script.main, "--compare", *map(tmp_path.joinpath, (
        "a", "b", "l1", "l2")), "--out", tmp_path / "to")
    rows = [line.split() for line in out.splitlines()[1:5]]
    assert code == 0 and [row[0] for row in rows] == ["mb-sst", "mb-sst", "l1", "l2"]
    assert [row[1] for row in rows[:2]] == [f"({tmp_path / name})" for name in "ab"]
    published = f"{RECIPES['mb-sst'].published['sts']:.3f}"
    assert [row[-1] == published for row in rows] == [True, True, False, False]
    page = tmp_path / "page.html"
    assert script(evaluate_script.main, tmp_path / "l1", "--report", page)[0] == 0
    assert "none of train_multitask.py: it was made of" in page.read_text()


def test_comparing_what_is_no_run_is_a_sentence(tmp_path, script):
    code, _, err = script(evaluate_script.main, "--compare", tmp_path)
    assert code == 2 and "not a saved run" in err
    code, _, err = script(evaluate_script.main)
    assert code == 2 and "name one run" in err


DECAYS = {"all": ({}, lambda p: p.dim() > 1), "adapters": ({"lora": 2}, lambda p: p.dim() > 1),
          "LayerNorms of adapters": ({"lora": 2, "lora_norms": True}, lambda p: p.dim() > 1),
          "LoRA-XS": ({"lora": 2, "lora_kind": "xs"}, None)}


@pytest.mark.parametrize("case", DECAYS)
def test_weight_decay_leaves_biases_layernorms_and_lora_xs_as_they_are(case, bert):
    given, decays = DECAYS[case]
    settings = Settings(weight_decay=0.5, **given)
    model = build_model(copy.deepcopy(bert), settings)
    if settings.lora:
        adapters.prepare(model, None, settings, None)
    schedule = Schedule(settings, dict.fromkeys(settings.trained_tasks, 8), 1)
    optimizer = adamw(parameter_groups(trained_modules(model, settings, schedule, 1e-3), 0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for group in optimizer.param_groups:
        group["lr"] = 0.1
        for parameter in group["params"]:
            parameter.data += 1.0                            # none of them is 0
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name in before:
            heads = not name.startswith("encoders.") and parameter.dim() > 1
            shrinks = heads or (decays is not None and decays(parameter))
            torch.testing.assert_close(parameter, (before[name] + 1) * (0.95 if shrinks else 1))
