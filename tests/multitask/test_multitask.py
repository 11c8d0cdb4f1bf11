"""Tasks, heads, metrics, batches, and what a whole run leaves behind."""

import json
import math
import re
import shutil
from contextlib import nullcontext

import pytest
import torch
from conftest import NoWaiting, write_course_data, write_table

import evaluate as evaluate_script
import train_multitask
from bert import Bert, Tokenizer, UserError, transfer
from common.flags import command
from common.optimization import adamw, parameter_groups, warmup_then_decay
from multitask import runs
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import load_sets, mean_losses, run_split, run_splits
from multitask.heads import Cosine
from multitask.methods import settings_class
from multitask.metrics import accuracy, choose_by, pearson, summary
from multitask.model import MultitaskModel, build_head, build_model
from multitask.report import describe_prediction
from multitask.schedule import BatchSampler
from multitask.tasks import TASKS
from pruning import mask_heads

Settings = settings_class()

CPU = torch.device("cpu")
PAIRS = [Example(str(n), (f"the {a} is {b} .", f"a {a} was {b} and {b} ."), float(n % 2))
         for n, (a, b) in enumerate([("cat", "good"), ("dog", "bad"), ("film", "dull"),
                                     ("car", "fine")])]


@pytest.fixture
def parts(checkpoint):
    torch.manual_seed(0)
    return Bert.from_pretrained(checkpoint), Tokenizer.from_pretrained(checkpoint)


def test_course_scores_are_the_leaderboards():
    scores = summary({"sst": {"accuracy": .499}, "para": {"accuracy": .846},
                      "sts": {"pearson": .676}})
    assert round(scores["overall"], 3) == 0.728
    assert scores["mean"] == pytest.approx((.499 + .846 + .676) / 3)
    assert "overall" not in summary({"sst": {"accuracy": .5}, "para": {"accuracy": .5}})


def test_metrics_are_the_textbooks():
    assert accuracy([1, 2, 3], [1.0, 2.0, 4.0]) == pytest.approx(2 / 3)
    assert pearson([1, 2, 3], [2, 4, 6.5]) == pytest.approx(0.9979, abs=1e-4)
    assert pearson([1, 1, 1], [1, 2, 3]) == pearson([1], [2]) == 0.0
    assert pearson([1, 2], [5, 3]) == pytest.approx(-1)      # two values are enough


def test_the_best_epoch_is_chosen_by_all_that_is_scored():
    course = {"sst": {"accuracy": .5}, "para": {"accuracy": .8}, "sts": {"pearson": .2}}
    scores = summary(course)
    assert choose_by(scores) == scores["overall"] != scores["mean"]
    more = summary(course | {"rte": {"accuracy": .1}})
    assert choose_by(more) == more["mean"] != more["overall"]
    assert choose_by(summary({"sst": {"accuracy": .5}})) == .5


@pytest.mark.parametrize("pairs", ["joint", "separate"])
@pytest.mark.parametrize("read", ["cls", "pooler", "mean"])
def test_what_is_read_is_the_whole_encoders_output(parts, pairs, read):
    bert, tokenizer = parts
    head = build_head("para", "linear", 32, pairs, 0.0)
    model = MultitaskModel({"shared": bert}, {"para": head}, pairs, read).eval()
    split = tokenize(PAIRS, tokenizer, pairs)
    texts, partners = zip(*(example.texts for example in PAIRS))
    batch = tokenizer(texts, partners) if pairs == "joint" else tokenizer(texts + partners)
    whole = bert(**batch)
    mask = batch["attention_mask"][..., None]
    expected = {"cls": whole.last_hidden_state[:, 0], "pooler": whole.pooler_output,
                "mean": (whole.last_hidden_state * mask).sum(1) / mask.sum(1)}[read]
    vectors = model.vectors("para", split.batch(range(4)))
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)


def test_a_pair_encoded_separately_reaches_its_head_as_two_vectors(parts):
    bert, tokenizer = parts
    head = build_head("para", "linear", 32, "separate", 0.0)
    assert head.out.weight.shape == (1, 64)
    model = MultitaskModel({"shared": bert}, {"para": head}, "separate").eval()
    texts, partners = zip(*(example.texts for example in PAIRS))
    u, v = (bert(**tokenizer(side)).last_hidden_state[:, 0] for side in (texts, partners))
    outputs = model("para", tokenize(PAIRS, tokenizer, "separate").batch(range(4)))
    torch.testing.assert_close(outputs, head.out(torch.cat([u, v], dim=1)), atol=1e-5, rtol=0)


def test_cosine_head_starts_as_the_encoders_own_cosine():
    u, v = torch.randn(2, 6, 32)
    torch.testing.assert_close(Cosine(32, 2, 1, 0.0)(u, v)[:, 0], 5 * torch.cosine_similarity(u, v))
    with pytest.raises(UserError, match="--pairs separate"):
        build_head("sts", "cosine", 32, "joint", 0.0)
    with pytest.raises(UserError, match="sst has no 'cosine' head"):
        build_head("sst", "cosine", 32, "separate", 0.0)


@pytest.mark.parametrize("task", TASKS)
def test_each_row_of_the_task_table_fits_together(task):
    row = TASKS[task]
    labels = torch.arange(4.) % (row.max_label + 1)
    outputs = torch.randn(4, row.outputs, requires_grad=True)
    row.loss(outputs, labels).backward()
    assert outputs.grad.abs().sum() > 0 and row.predict(outputs).shape == (4,)
    assert row.loss(outputs, labels).item() > 0
    said = describe_prediction(task, outputs[0].detach())
    assert said["label"] in row.label_names


def test_answers_in_words_are_the_heads_probabilities():
    said = describe_prediction("sst", torch.tensor([0., 0., 0., 2., 0.]))
    odds = math.e ** 2
    assert said == {"label": "positive", "probability": pytest.approx(odds / (odds + 4))}
    assert describe_prediction("para", torch.tensor([-1.])) == {"label": "not a paraphrase",
                                                     "probability": pytest.approx(0.7311, abs=1e-4)}
    assert describe_prediction("sts", torch.tensor([5.4])) == {"label": "equivalent",
                                                    "similarity": pytest.approx(5.4)}


def test_every_pass_has_each_example_once_in_an_order_of_its_own():
    batches = BatchSampler(10, 4, seed=3)
    passes = [[next(batches) for _ in range(len(batches))] for _ in range(3)]
    assert all([len(b) for b in one] == [4, 4, 2] for one in passes)
    flat = [sum(one, []) for one in passes]
    assert all(sorted(one) == list(range(10)) for one in flat)
    assert flat[0] != flat[1] != flat[2]
    assert flat[0] != sum((next(b) for b in [BatchSampler(10, 4, seed=4)] * 3), [])


def test_batches_are_those_of_earlier_versions():
    batches = BatchSampler(5, 5, seed=3)
    assert [next(batches) for _ in range(2)] == [[4, 2, 1, 3, 0], [1, 3, 0, 4, 2]]


def test_batches_go_on_where_their_state_was_taken():
    batches = BatchSampler(10, 4, seed=3)
    for _ in range(5):
        next(batches)
    other = BatchSampler(10, 4, seed=3)
    other.load_state_dict(batches.state_dict())
    assert [next(other) for _ in range(5)] == [next(batches) for _ in range(5)]


def test_evaluation_order_and_batches_do_not_matter(parts, monkeypatch):
    bert, tokenizer = parts
    model = build_model(bert, Settings(tasks="para"))
    split = tokenize(PAIRS, tokenizer)
    whole = model.eval()("para", split.batch(range(4)))
    for tokens in (1, 15, 10 ** 6):
        monkeypatch.setattr("multitask.evaluation.TOKENS", tokens)
        outputs = run_split(model, "para", split, CPU, nullcontext)
        torch.testing.assert_close(outputs, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("masked", [{}, {0: [1], 1: [0, 2]}])
@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_no_operation_of_a_step_waits_for_the_device(parts, pairs, masked):
    bert, tokenizer = parts
    if masked:
        mask_heads(bert, masked)
    model = build_model(bert, Settings(tasks="para", pairs=pairs)).train()
    optimizer = adamw(parameter_groups([(model, {"max_lr": 0.1})], 0.01))
    batch = tokenize(PAIRS, tokenizer, pairs).batch(range(4))
    before = model.heads["para"].out.weight.clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    with NoWaiting():
        TASKS["para"].loss(model("para", batch), batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert not torch.equal(before, model.heads["para"].out.weight)


def test_each_part_has_its_learning_rate_and_only_matrices_decay(parts):
    model = build_model(parts[0], Settings())
    modules = [(model.bert, {"max_lr": 2e-5}), (model.heads, {"max_lr": 3e-4})]
    groups = adamw(parameter_groups(modules, 0.01)).param_groups
    assert [group["max_lr"] for group in groups] == [2e-5, 2e-5, 3e-4, 3e-4]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0, 0.01, 0.0]
    assert all((p.dim() > 1) == (group["weight_decay"] > 0) for group in groups
               for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {0.0}       # the loop sets it


def test_learning_rate_rises_then_falls_to_nothing():
    rates = [warmup_then_decay(step, 100, 0.1) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[9] == max(rates) == 1 and rates[-1] == pytest.approx(1 / 91)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert [warmup_then_decay(step, 5, 0.0) for step in range(1, 8)] == pytest.approx(
        [1, 0.8, 0.6, 0.4, 0.2, 0, 0])
    assert warmup_then_decay(1, 5, 0.0, decay=False) == 1


def test_settings_are_the_flags(script):
    settings = Settings(head="mlp,sts=cosine", pairs="separate", strict_rows=True, lr=3e-5,
                        decay=False)
    assert settings.head_kinds == {"sst": "mlp", "para": "mlp", "sts": "cosine"}
    given = train_multitask.parse(command(settings).split())
    for name in ("resume", "recipe", "recipes"):
        del given[name]
    assert Settings(**given) == settings
    code, out, _ = script(train_multitask.main, "--help")
    assert code == 0 and "--head-dropout" in out and "(default: joint)" in out


@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    train_multitask.main(["--bert", str(checkpoint), "--data", str(data), "--out", str(folder),
                          "--batch-size", "8", "--epochs", "2", "--lr", "1e-3",
                          "--tasks", "sst,para,sts,cfimdb"])
    return folder


def test_a_run_leaves_all_that_it_promises(run):
    others = {"adapters", "importance", "laser", "compression", "attack", "early_exit",
              "exits.safetensors", "experts", "experts.safetensors"}
    names = {file.partition("/")[0] for file in runs.CONTENT}
    assert {f.name for f in run.iterdir()} == names - others
    record = json.loads((run / "run.json").read_text())
    assert record["edits"] == [] and record["complete"] and record["settings"]["epochs"] == 2
    assert {"python", "torch", "threads"} <= set(record["versions"])
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "dev" in line] == [5, 10]
    assert set(log[0]["loss" if "loss" in log[0] else "dev"]) >= {"sst", "para", "sts", "cfimdb"}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_dev_loss_in_the_log_is_the_saved_models(run):
    model, tokenizer, settings, record = runs.open_run(run)
    splits = load_sets(settings.task_names, settings, tokenizer)
    found = mean_losses(splits, run_splits(model, splits, CPU, nullcontext), settings.loss_of)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["dev_loss"] for line in lines if "dev" in line}
    assert found == pytest.approx(logged[record["best_step"]["shared"]]) and len(found) == 4


def test_prediction_files_are_in_the_courses_format(run, script, data):
    assert script(evaluate_script.main, run, "--split", "test")[0] == 0
    headers = {"sst": "Predicted_Sentiment", "para": "Predicted_Is_Paraphrase",
               "sts": "Predicted_Similiary", "cfimdb": "Predicted_Sentiment"}
    for task, header in headers.items():
        for split, name in (("dev", "dev"), ("test", "test-student")):
            lines = (run / "predictions" / f"{task}-{split}-output.csv").read_text().split("\n")
            assert lines[0] == f"id \t {header} " and lines[-1] == "" and len(lines) == 18
            stem = TASKS[task].files["dev"].removesuffix("-dev.csv")
            value = {"sst": "[0-4]", "cfimdb": "[01]", "para": r"[01]\.0", "sts": r"-?\d+\.\d+"}
            for number, line in enumerate(lines[1:-1]):
                assert re.fullmatch(f"{stem}{name}{number} , {value[task]} ", line), line


def test_evaluate_prints_what_training_wrote_and_leaves_it_alone(run, script):
    before = (run / "metrics.json").read_bytes()
    code, out, _ = script(evaluate_script.main, run, "--json")
    assert code == 0 and json.loads(out) == json.loads(before)
    assert (run / "metrics.json").read_bytes() == before


def test_another_folder_is_scored_without_touching_the_runs_scores(run, script, tmp_path):
    other = write_course_data(tmp_path / "other", seed=5)
    before = (run / "metrics.json").read_bytes()
    code, out, _ = script(evaluate_script.main, run, "--data", other, "--json",
                          "--tasks", "sst,sts", "--predictions", tmp_path / "p")
    assert code == 0 and set(json.loads(out)) == {"sst", "sts", "mean"}
    assert json.loads(out)["sts"] != json.loads(before)["sts"]
    assert (run / "metrics.json").read_bytes() == before
    assert {file.name for file in (tmp_path / "p").iterdir()} == {"sst-dev-output.csv",
                                                                  "sts-dev-output.csv"}


def test_test_files_with_labels_are_scored_too(run, script, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "labeled")
    shutil.copy(folder / "sts-dev.csv", folder / "sts-test-student.csv")
    code, out, _ = script(evaluate_script.main, run, "--data", folder, "--split", "test", "--json",
                          "--predictions", tmp_path / "p")
    dev = json.loads((run / "metrics.json").read_text())
    assert code == 0 and json.loads(out) == {"sts": dev["sts"], "mean": dev["sts"]["pearson"]}


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_all_of_a_batch_goes_to_a_device_in_one_buffer(parts, monkeypatch, pairs):
    buffers = []
    monkeypatch.setattr(transfer, "copy_together", lambda tensors, device: buffers.append(tensors)
                        or [tensor.to(device) for tensor in tensors])
    batch = tokenize(PAIRS, parts[1], pairs).batch(range(3))
    moved = batch.to(torch.device("meta"))
    tensors = [batch.input_ids, batch.token_type_ids, *batch.layout.tensors().values(),
               *batch.cls_rows.tensors().values(), batch.labels]
    assert list(map(id, *buffers)) == list(map(id, tensors))
    assert moved.layout.flat_index.is_meta and moved.cls_rows.rows.is_meta
    assert moved.input_ids.is_meta and moved.labels.is_meta
    assert all(a is b for a, b in zip(batch, batch.to(torch.device("cpu"))))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_lone_task_with_one_example_a_batch_runs(checkpoint, data, script, tmp_path, precision):
    code, out, _ = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--limit", 3,
                          "--tasks", "sts", "--batch-size", 1, "--steps", 2,
                          "--precision", precision, "--out", tmp_path / "lone")
    assert code == 0 and "2 steps, 3 an epoch" in out
    record = json.loads((tmp_path / "lone" / "run.json").read_text())
    assert record["resolved"]["lr"] == pytest.approx((3.84 / 32) ** 2)


def test_one_text_or_pair_is_answered_in_words(run, script):
    code, out, _ = script(evaluate_script.main, run, "--text", "the film is good .")
    assert code == 0 and out.count("probability") == 2
    assert out.startswith("sst: ") and "\ncfimdb: " in out
    code, out, _ = script(evaluate_script.main, run, "--text", "a cat", "--pair", "a dog", "--json")
    assert code == 0 and set(json.loads(out)) == {"para", "sts"}
    code, out, _ = script(evaluate_script.main, run, "--text", "a film", "--tasks", "sst", "--json")
    assert code == 0 and set(json.loads(out)) == {"sst"}


@pytest.mark.parametrize("flags, words", [
    (("--tasks", "nonsense"), "nonsense"), (("--tasks", "sts"), "add --pair"),
    (("--split", "test"), "--split has no effect"), (("--limit", 3), "--limit has no effect"),
    (("--data", "nowhere"), "--data has no effect"),
    (("--predictions", "to"), "--predictions has no effect")])
def test_a_flag_that_one_text_cannot_heed_is_an_error(run, script, flags, words):
    code, out, err = script(evaluate_script.main, run, "--text", "a film", *flags)
    assert code == 2 and words in err and not out


def test_a_new_run_starts_from_a_saved_one(run, script, data, tmp_path):
    code, out, _ = script(train_multitask.main, "--from", run, "--data", data,
                          "--out", tmp_path / "next", "--tasks", "sst,sts", "--head", "sts=mlp",
                          "--steps", "1", "--lr", "1e-9", "--head-lr", "1e-9")
    assert code == 0 and "sst: its head in the run" in out and "sts: a new head" in out
    before, after = (runs.open_run(folder)[0] for folder in (run, tmp_path / "next"))
    torch.testing.assert_close(before.heads["sst"].out.weight, after.heads["sst"].out.weight)
    torch.testing.assert_close(before.bert.layers[0].ffn.fc_in.weight,
                               after.bert.layers[0].ffn.fc_in.weight)


def test_limit_takes_the_first_examples_of_train_and_dev(checkpoint, data, script, tmp_path):
    code, *_ = script(train_multitask.main, "--bert", checkpoint, "--data", data, "--limit", "5",
                      "--tasks", "sst", "--steps", "1", "--out", tmp_path / "small")
    assert code == 0
    predictions = tmp_path / "small" / "predictions" / "sst-dev-output.csv"
    assert predictions.read_text().count("\n") == 6


def test_fewer_rows_do_not_take_the_place_of_a_runs_predictions(run, script):
    file = run / "predictions" / "sst-dev-output.csv"
    before = file.read_bytes()
    code, out, _ = script(evaluate_script.main, run, "--limit", "3", "--tasks", "sst")
    assert code == 0 and "sst 3\n" in out and file.read_bytes() == before


def test_a_task_is_learnt(checkpoint, script, tmp_path):
    """Whether `good` or `bad` is in the sentence decides: two epochs must find that."""
    for split, count in (("train", 200), ("dev", 40)):
        rows = [(f"{split}{n}", f"the film is {('bad', 'good')[n % 2]} .", n % 2)
                for n in range(count)]
        write_table(tmp_path / f"ids-cfimdb-{split}.csv", ("id", "sentence", "sentiment"), rows)
    code, out, _ = script(train_multitask.main, "--bert", checkpoint, "--data", tmp_path,
                          "--tasks", "cfimdb", "--epochs", "2", "--batch-size", "8",
                          "--lr", "1e-3", "--out", tmp_path / "run")
    assert code == 0 and json.loads((tmp_path / "run/metrics.json").read_text())["mean"] == 1.0
