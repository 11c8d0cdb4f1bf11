"""Numbers that are none: a loss, gradient, weight or output that is not finite ends a run in a
sentence with its examples, and is never saved."""

import json
import math
import shutil

import pytest
import torch
from conftest import NoWaiting
from safetensors.torch import load_file, save_file

import evaluate
import train_multitask
from attack.__main__ import main as attack_main
from bert import UserError
from bert.files import read_metadata
from common.finite import FiniteCheck
from common.optimization import adamw
from compression.__main__ import main as compression_main
from early_exit.__main__ import main as early_exit_main
from experts.__main__ import main as experts_main
from laser.__main__ import main as laser_main
from multitask.settings import Settings
from pretraining.__main__ import main as pretraining_main
from pruning.__main__ import main as pruning_main

SAVED = ("model/model.safetensors", "heads.safetensors", "last/state.pt")


@pytest.fixture
def flags(checkpoint, data, tmp_path):
    return ("--bert", checkpoint, "--data", data, "--out", tmp_path / "run", "--device", "cpu",
            "--batch-size", 8, "--steps", 9, "--log-every", 4, "--save-every", 2)


@pytest.fixture
def spoil(monkeypatch):
    """From the `call`-th loss of a task on, for `times` calls, make it `value` or its gradient."""
    def begin(task, call, times=1, value=math.nan, gradient=False):
        calls, loss_of = iter(range(1, 10 ** 6)), Settings.loss_of

        def spoilt(self, name):
            def loss(outputs, labels):
                found = loss_of(self, name)(outputs, labels)
                if name != task or not call <= next(calls) < call + times:
                    return found
                return found + 0 * (outputs - outputs.detach()).abs().sqrt().sum() if gradient \
                    else found * value
            return loss

        monkeypatch.setattr(Settings, "loss_of", spoilt)
        return monkeypatch
    return begin


KINDS = {"plain": (), "pcgrad": ("--surgery", "pcgrad"), "tensor": ("--surgery", "pcgrad-tensor"),
         "no clipping": ("--clip", 0), "lora": ("--lora", 2),
         "separate": ("--encoders", "separate"),
         "shared adapter": ("--lora", 2, "--adapters", "shared", "--surgery", "pcgrad"),
         "r-softmax": ("--attention", "r-softmax", "--zeros-ramp", 0)}


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_stops_at_the_step_and_keeps_the_last_good_save(script, flags, spoil, tmp_path,
                                                                 kind, gradient):
    with spoil("para", 5, gradient=gradient).context():
        code, _, err = script(train_multitask.main, *flags, *KINDS[kind])
    run, what = tmp_path / "run", "the gradient of" if gradient else "the loss of para is not"
    assert code == 2 and "error: step 5: " in err and what in err and "Traceback" not in err
    assert ("quoratrain" in err or gradient) and f"--resume {run} --skip-nonfinite" in err
    state = torch.load(run / "last" / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_stopped_run_resumes_and_leaves_the_update_out(script, flags, spoil, tmp_path):
    spoil("para", 5)
    assert script(train_multitask.main, *flags)[0] == 2
    spoil("para", 1)                                         # step 5, the first after the save
    code, out, err = script(train_multitask.main, "--resume", tmp_path / "run", "--skip-nonfinite")
    assert code == 0 and "1 of 9 updates were left out" in out, err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["skipped"] == 1
    assert script(evaluate.main, tmp_path / "run")[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_updates_are_left_out_and_counted(script, flags, spoil, tmp_path, kind):
    spoil("sst", 3, times=2)
    code, out, err = script(train_multitask.main, *flags, *KINDS[kind], "--skip-nonfinite")
    assert code == 0 and "2 of 9 updates were left out" in out, err
    text = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    assert [line.get("skipped") for line in lines] == [2, 2, 2] and "NaN" not in text
    assert script(evaluate.main, tmp_path / "run")[0] == 0


def test_skipping_where_nothing_is_skipped_changes_no_byte(script, flags, tmp_path):
    saved = []
    for more in ((), ("--skip-nonfinite",)):
        assert script(train_multitask.main, *flags, *more)[0] == 0
        saved.append([load_file(tmp_path / "run" / name) for name in SAVED[:2]])
        shutil.rmtree(tmp_path / "run")
    for before, after in zip(*saved):
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("fused", [True, False])
def test_an_update_left_out_leaves_weights_and_state_as_they_were(fused):
    weight = torch.nn.Linear(3, 3)
    optimizer = (adamw([{"params": weight.parameters(), "lr": 0.1}]) if fused else
                 torch.optim.RAdam(weight.parameters(), lr=0.1))
    finite, found = FiniteCheck(weight, skip=True), []
    for step, value in enumerate((1.0, math.nan, 1.0), 1):
        (weight(torch.ones(2, 3)).sum() * value).backward()
        finite.add(torch.tensor(value), "the loss", ["a"])
        finite.update(optimizer, step)
        optimizer.zero_grad()
        found.append((weight.weight.detach().clone(), int(optimizer.state[weight.weight]["step"])))
    finite.read()
    assert finite.skipped == 1 and [steps for _, steps in found] == [1, 1, 2]
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[1][0], found[2][0])


@pytest.mark.parametrize("skip", [True, False])
def test_nothing_waits_for_the_device_until_it_is_read(skip):
    weight = torch.nn.Linear(3, 3)
    optimizer = adamw([{"params": weight.parameters(), "lr": 0.1}])
    finite = FiniteCheck(weight, skip=skip)
    weight(torch.ones(2, 3)).sum().backward()
    finite.processes = None if skip else object()            # the CPU alone reads at once
    loss = torch.tensor(math.nan)
    with NoWaiting():
        finite.add(loss, "the loss", ["a"])
        finite.update(optimizer, 7)
    finite.processes = None
    if skip:
        return finite.read()
    with pytest.raises(UserError, match="step 7: the loss is not finite"):
        finite.read()


class Two:
    """Stands for multitask.distributed in the first of two processes that do alike."""

    def __init__(self, size=2):
        self.size = size

    def world(self):
        return self.size

    def all_reduce(self, tensors):
        for tensor in tensors:
            tensor *= 2

    def gather(self, value):
        return [value, value]


def spoilt_steps(values, **more):
    """FiniteCheck after steps of these losses, and the weights after each."""
    layer = torch.nn.Linear(3, 3)
    optimizer = adamw([{"params": layer.parameters(), "lr": 0.1}])
    finite, weights = FiniteCheck(layer, **more), []
    for step, value in enumerate(values, 1):
        layer(torch.ones(2, 3)).sum().backward()
        finite.add(torch.tensor(value), "the loss", ["a", "b"])
        finite.add(torch.tensor(1.0), "the gradient")
        finite.update(optimizer, step)
        weights.append(layer.weight.detach().clone())
    return finite, weights


def test_an_update_is_counted_once_by_all_processes():
    finite, weights = spoilt_steps([1.0, math.inf, math.nan], skip=True, processes=Two())
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])
    finite.read()
    assert finite.skipped == 2
    finite.read()                                            # nothing new
    assert finite.skipped == 2 and "2 of 3 updates were left out" in finite.summary(3)


def test_the_first_step_is_named_where_several_were_not_finite():
    finite, _ = spoilt_steps([1.0, math.nan, math.inf], processes=Two())
    with pytest.raises(UserError, match=r"step 2: the loss is not finite \(a, b\)"):
        finite.read()


def test_one_process_reads_in_each_step():
    with pytest.raises(UserError, match="step 2"):
        spoilt_steps([1.0, math.nan, 1.0], processes=Two(1))


def test_a_gradient_that_is_no_number_names_all_examples_of_its_step():
    finite, _ = spoilt_steps([1.0])
    finite.add(torch.tensor(1.0), "the loss", ["a", "b"])
    finite.add(torch.tensor(math.nan), "the gradient")
    with pytest.raises(UserError, match=r"step 2: the gradient is not finite \(a, b\)"):
        finite.update(None, 2)


def test_a_model_that_took_no_step_is_checked_before_it_is_saved():
    layer = torch.nn.Linear(3, 3)
    FiniteCheck(layer).before_save()
    layer.bias.data[0] = math.inf
    with pytest.raises(UserError, match="step 0: bias are no longer finite"):
        FiniteCheck(layer).before_save()


@pytest.mark.parametrize("more", [("--lr", 1e38), ("--lr", 1e39, "--save-every", 1),
                                  ("--lr", 1e38, "--skip-nonfinite")])
def test_weights_that_are_no_numbers_are_never_saved(script, flags, tmp_path, more):
    code, _, err = script(train_multitask.main, *flags, "--tasks", "sst", "--steps", 1, *more)
    assert code == 2 and "no longer finite" in err
    assert not [name for name in SAVED if (tmp_path / "run" / name).exists()]


# ---- evaluation

@pytest.fixture(scope="module")
def broken(run, tmp_path_factory):
    """A run whose head of sst gives NaN."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("broken") / "run")
    heads = load_file(folder / "heads.safetensors")
    metadata = read_metadata(folder / "heads.safetensors")
    heads["sst.out.bias"][2] = math.nan
    save_file(heads, folder / "heads.safetensors", metadata)
    return folder


COMMANDS = {
    "evaluate": (evaluate.main, "RUN"), "test": (evaluate.main, "RUN", "--split", "test"),
    "text": (evaluate.main, "RUN", "--text", "the film is good ."),
    "json": (evaluate.main, "RUN", "--json"),
    "report": (evaluate.main, "RUN", "--report", "OUT.html"),
    "with LASER": (evaluate.main, "RUN", "--laser", "0:fc_in:0.5"),
    "laser sweep": (laser_main, "sweep", "RUN"), "laser search": (laser_main, "search", "RUN"),
    "laser apply": (laser_main, "apply", "RUN", "--laser", "0:fc_in:0.5", "--out", "OUT"),
    "compression": (compression_main, "RUN"),
    "weighted": (compression_main, "RUN", "--methods", "weighted"),
    "importance": (pruning_main, "importance", "RUN"),
    "prune": (pruning_main, "prune", "RUN", "--heads", "4", "--out", "OUT"),
    "exits": (early_exit_main, "train", "RUN", "--out", "OUT", "--tasks", "sst"),
    "experts": (experts_main, "split", "RUN", "--experts", "4", "--out", "OUT"),
    "attack": (attack_main, "RUN", "--task", "sst"),
    "pruning report": (pruning_main, "report", "RUN"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_that_are_no_numbers_are_an_error(script, broken, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    main, *arguments = COMMANDS[command]
    given = [{"RUN": broken, "OUT": tmp_path / "out"}.get(word, word) for word in arguments]
    code, _, err = script(main, *given)
    assert code == 2 and "sst: the model's outputs for " in err and "Traceback" not in err, err
    assert ("for --text are" if command == "text" else "for ids-sst") in err
    assert not (tmp_path / "out").exists()


def test_netcut_stops_at_a_loss_that_is_no_number(script, run, tmp_path, monkeypatch):
    monkeypatch.setattr("early_exit.netcut_training.netcut_loss",
                        lambda log_probs, *_: log_probs.sum() * math.nan)
    source = tmp_path / "source"
    record = json.loads((run / "run.json").read_text())["settings"]
    train_multitask.main(["--bert", record["bert"], "--data", record["data"], "--tasks", "sst",
                          "--steps", "1", "--out", str(source), "--device", "cpu"])
    code, _, err = script(early_exit_main, "netcut", source, "--out", tmp_path / "cut")
    assert code == 2 and "step 1: the loss of sst is not finite (ids-ssttrain" in err
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("skip", [(), ("--skip-nonfinite",)], ids=["stop", "skip"])
def test_pretraining_stops_or_leaves_out(script, tmp_path, monkeypatch, skip):
    import pretraining.__main__ as pretraining

    calls, whole = iter(range(1, 100)), pretraining.compute_losses
    monkeypatch.setattr(pretraining, "compute_losses", lambda *arguments: {
        name: loss * (math.nan if next(calls) == 3 else 1)
        for name, loss in whole(*arguments).items()})
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the {a} of number {n} is {b} ." for n, (a, b) in enumerate(
        [("film", "good"), ("dog", "bad"), ("cat", "dull")] * 40)))
    code, out, err = script(pretraining_main, "--text", text, "--out", tmp_path / "out", "--steps",
                            5, "--vocab-size", 90, "--hidden", 16, "--layers", 1, "--heads", 2,
                            "--batch-tokens", 128, "--save-every", 1, "--heldout", 0.1, *skip)
    state = torch.load(tmp_path / "out" / "last" / "state.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    if skip:
        assert code == 0 and "1 of 5 updates were left out" in out and state["skipped"] == 1, err
    else:
        assert code == 2 and "step 3: masked_lm is not finite (line " in err
        assert state["step"] == 2 and f"{tmp_path / 'out'} --skip-nonfinite" in err
