"""LASER: the reduced matrix, the edited model, the one-pass replay, sweep and searches."""

import csv
import json
import os
import signal
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate as evaluate_script
import laser
import lora
import train_multitask
from bert import Bert, Tokenizer, UserError
from common.cli import UserStop
from laser.__main__ import main
from laser.additive import best_stack, posterior, prior
from laser.edit import apply
from laser.heldout import bootstrap, gain_with_interval, halves
from laser.interventions import MATRICES, Intervention, format_stack, parse
from laser.output_cache import OutputCache, fingerprint
from laser.reduce import Decomposition, keep_largest, keep_random, low_rank, rank_of
from laser.search import SEARCHES, StackScorer
from laser.shared_prefix import SharedPrefixEvaluator
from multitask import runs
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import load_split, run_split
from multitask.model import build_model
from multitask.settings import Settings
from multitask.tasks import TASKS
from pruning import mask_heads, remove_heads, remove_layers, remove_neurons

CPU = torch.device("cpu")
PAIRS = [Example(str(n), ("the film is good .", text), 1.0)
         for n, text in enumerate(("a dog", "the song was not very bad .", "a cat ?", "the book"))]
STACKS = [(), *(tuple(parse(text)) for text in (
    "0:query:0.5", "0:fc_in:0.3", "0:fc_in:0.3,0:fc_out:0.5", "0:fc_in:0.3,1:fc_out:0.5",
    "1:key:0.5,1:value:0.2", "1:attention_output:0.2", "1:fc_in:0.9", "1:fc_out:0.1",
    "1:fc_out:0.5:magnitude", "0:fc_out:0.5:random:3,1:query:0.4"))]


@pytest.fixture
def bert(checkpoint):
    bert = Bert.from_pretrained(checkpoint)
    with torch.no_grad():                                    # larger, so that edits show
        for layer in bert.layers:
            for name in MATRICES.values():
                layer.get_submodule(name).weight.mul_(20)
    return bert


def output(bert, tokenizer):
    with torch.no_grad():
        return bert(**tokenizer(["the film is good .", "a cat"])).last_hidden_state


# ------------------------------------------------------------------------------------ one matrix


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_rank_error_is_the_dropped_singular_values(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values, parts = torch.linalg.svdvals(weight.double()), Decomposition(weight)
    for rank in range(1, min(shape)):
        expected = values[rank:].square().sum().sqrt().item()
        assert torch.linalg.norm(weight - low_rank(weight, rank)).item() == pytest.approx(
            expected, rel=1e-5)
        assert parts.error(rank) == pytest.approx(expected, rel=1e-9)
        assert parts.energy(rank) == pytest.approx(1 - expected ** 2 / values.square().sum().item())
        assert torch.linalg.matrix_rank(low_rank(weight, rank)) == rank
        down, up = parts.factors(rank)
        torch.testing.assert_close(up @ down, low_rank(weight, rank))


def test_keep_is_the_fraction_of_the_largest_rank():
    assert [rank_of(keep, (40, 100)) for keep in (1, 0.9, 0.29, 0.025)] == [40, 36, 11, 1]
    assert rank_of(0.29, (100, 100)) == 29                   # 28.999… in floats
    assert rank_of(0.001, (40, 100)) == 1
    for keep in (0, 1.1):
        with pytest.raises(UserError, match="above 0"):
            rank_of(keep, (40, 100))


def test_magnitude_drops_the_smallest_entries_and_random_the_fraction():
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    kept = keep_largest(weight, 0.3)
    dropped = kept == 0
    assert int(dropped.sum()) == 1401                        # up to the 1400th, counted from 0
    assert weight[dropped].abs().max() < weight[~dropped].abs().min()
    assert torch.equal(kept[~dropped], weight[~dropped])
    small, large = keep_random(weight, 0.3, 7) != 0, keep_random(weight, 0.6, 7) != 0
    assert small.float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert not (small & ~large).any() and (small != (keep_random(weight, 0.3, 8) != 0)).any()


# -------------------------------------------------------------------------------------- in a model


def test_full_rank_changes_nothing_and_keep_one_not_a_bit(bert, checkpoint):
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    before, weight = output(bert, tokenizer), bert.layers[1].ffn.fc_in.weight
    torch.testing.assert_close(low_rank(weight, 32), weight, rtol=0, atol=1e-5)
    for variant in ("svd", "magnitude", "random"):
        apply(bert, [Intervention(1, matrix, 1.0, variant) for matrix in MATRICES])
        assert torch.equal(bert.layers[1].ffn.fc_in.weight, weight)
        assert torch.equal(output(bert, tokenizer), before)


@pytest.mark.parametrize("factored", [False, True])
def test_undo_is_bit_exact(bert, checkpoint, factored):
    tokenizer = Tokenizer.from_pretrained(checkpoint)
    before, state = output(bert, tokenizer), {k: v.clone() for k, v in bert.state_dict().items()}
    undo = apply(bert, parse("0:fc_out:0.3,1:query:0.2,1:fc_in:0.5:magnitude"), factored)
    assert not torch.equal(output(bert, tokenizer), before)
    undo()
    assert torch.equal(output(bert, tokenizer), before)
    assert list(state) == list(bert.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in bert.state_dict().items())


@pytest.mark.parametrize("matrix", MATRICES)
def test_only_the_named_matrix_is_touched(bert, matrix):
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    apply(bert, [Intervention(1, matrix, 0.3)])
    changed = [name for name, value in bert.state_dict().items()
               if not torch.equal(value, before[name])]
    assert changed == [f"layers.1.{MATRICES[matrix]}.weight"]


def test_factored_computes_what_the_dense_one_does_with_less(bert, checkpoint):
    tokenizer, stack = Tokenizer.from_pretrained(checkpoint), parse("0:fc_out:0.3,1:fc_in:0.9")
    undo = apply(bert, stack)
    with_weight = output(bert, tokenizer)
    undo()
    before = sum(p.numel() for p in bert.parameters())
    apply(bert, stack, factored=True)
    torch.testing.assert_close(output(bert, tokenizer), with_weight, rtol=0, atol=1e-4)
    saved = 32 * 64 - 9 * (32 + 64)                          # at rank 28 of 32 nothing is saved
    assert sum(p.numel() for p in bert.parameters()) == before - saved


@pytest.mark.parametrize("text, says", [
    ("4:fc_out:0.3", "layers are 0 to 1"), ("1:fc_ot:0.3", "did you mean fc_out"),
    ("1:fc_out", "not an intervention"), ("1:fc_out:0.3:svt", "variant 'svt'"),
    ("1:fc_out:0", "above 0"), ("1:fc_out:1.5", "at most 1"),
    ("1:fc_out:0.3,1:fc_out:0.2", "twice"), ("1:fc_out:1", "nothing would be changed"),
    ("1:fc_out:0.3:svd:4", "not an intervention"), ("", "not an intervention"),
])
def test_a_wrong_intervention_is_a_sentence_and_changes_nothing(bert, text, says):
    before = list(bert.modules())
    with pytest.raises(UserError, match=says):
        apply(bert, parse(text))
    assert list(bert.modules()) == before


def test_no_intervention_and_no_saving_are_errors(bert):
    with pytest.raises(UserError, match="no intervention"):
        apply(bert, [])
    with pytest.raises(UserError, match="no smaller"):
        apply(bert, parse("1:fc_out:0.9,0:fc_in:0.3:magnitude"), factored=True)
    apply(bert, parse("1:fc_out:0.2"), factored=True)
    with pytest.raises(UserError, match="1:fc_out is no single matrix any more but a Factored"):
        apply(bert, parse("0:fc_out:0.3,1:fc_out:0.1"))


def test_an_intervention_is_read_as_it_is_spelt():
    text = "1:fc_in:0.05,1:fc_out:0.3:magnitude,10:query:0.5:random:7"
    assert format_stack(parse(text)) == text and format_stack(parse(text)[::-1]) == text


# ---------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("settings", [{}, {"pairs": "separate", "head": "sts=cosine"},
                                      {"read": "mean"}, {"read": "pooler"}])
def test_replay_equals_evaluating_every_edited_model_whole(bert, checkpoint, settings):
    settings = Settings(tasks="sts", **settings | {"head": settings.get("head", "linear")})
    model = build_model(bert, settings)
    split = tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint), settings.pairs)
    found = SharedPrefixEvaluator(model).outputs("sts", split.batch(range(4)), STACKS)
    for stack, outputs in zip(STACKS, found):
        undo = apply(bert, stack) if stack else lambda: None
        whole = run_split(model, "sts", split, CPU, nullcontext)
        undo()
        torch.testing.assert_close(outputs, whole, rtol=0, atol=1e-4)
    assert (found[1:] - found[0]).abs().amax(dim=(1, 2)).min() > 1e-4        # every stack shows


FFN_STACKS = [stack for stack in STACKS if {i.matrix for i in stack} <= {"fc_in", "fc_out"}]
EVERY_TASK = Settings(tasks="sst,para,sts")


def adapter_layers(bert, targets=("query", "key", "value", "attention_output"), norms=False, **options):
    """An adapter for each task, in every one of which all numbers are random."""
    lora.attach(bert, targets, 4, ("sst", "para", "sts"), layernorms=norms, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            if ".adapters." in name:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    bert.edits.append({"kind": "lora", "adapters": {t: t for t in ("sst", "para", "sts")}})


CHANGES = {                                  # what is done to a Bert, and stacks it can take
    "plain": (lambda bert: None, STACKS),
    "adapters": (adapter_layers, FFN_STACKS),
    "adapters with norms": (lambda bert: adapter_layers(bert, norms=True), FFN_STACKS),
    "adapters everywhere": (lambda bert: adapter_layers(bert, lora.TARGETS, norms=True), [()]),
    "LoRA-XS": (lambda bert: adapter_layers(bert, kind=lora.LoRAXS, alpha=8), FFN_STACKS),
    "masked heads": (lambda bert: mask_heads(bert, {0: [1], 1: [0, 3]}), STACKS),
    "a layer without heads": (lambda bert: remove_heads(bert, {1: [0, 1, 2, 3], 0: [2]}),
                              FFN_STACKS),
    "unlike many neurons": (lambda bert: remove_neurons(bert, {0: [*range(40)], 1: [3]}), STACKS),
    "a layer less": (lambda bert: remove_layers(bert, [0]), [(), tuple(parse("0:fc_in:0.3"))]),
    "factored": (lambda bert: apply(bert, parse("0:query:0.2,1:key:0.2"), factored=True),
                 FFN_STACKS),
}


@pytest.mark.parametrize("read", ["cls", "mean"])
@pytest.mark.parametrize("change", CHANGES)
def test_replay_of_a_changed_model_equals_it_in_every_task(bert, checkpoint, change, read):
    """The unedited stack bit for bit; sentences of unlike lengths, so that layouts have groups."""
    work, stacks = CHANGES[change]
    work(bert)
    model = build_model(bert, replace(EVERY_TASK, pooling=read)).eval()
    texts = ["a dog"] * 3 + [" ".join(["the film is good"] * 6)]
    for task in model.heads:
        examples = [Example(str(n), (text, "a cat")[:1 + TASKS[task].pair], 1.0)
                    for n, text in enumerate(texts)]
        batch = tokenize(examples, Tokenizer.from_pretrained(checkpoint)).batch(range(4))
        assert batch.layout.length_buckets
        found = SharedPrefixEvaluator(model).outputs(task, batch, stacks)
        with torch.inference_mode():
            assert torch.equal(found[0], model(task, batch))
            for stack, outputs in zip(stacks[1:], found[1:]):
                undo = apply(bert, stack)
                torch.testing.assert_close(outputs, model(task, batch), rtol=0, atol=1e-4)
                undo()


def test_replay_runs_what_is_below_an_edit_once(bert, checkpoint):
    model = build_model(bert, Settings(tasks="sts"))
    split = tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint))
    counts = {name: 0 for name in ("0.attention", "0.ffn.fc_in", "1.attention", "1.ffn.fc_in")}

    def count(name):
        def hook(*_):
            counts[name] += 1
        return hook

    hooks = [bert.layers[int(n[0])].get_submodule(n[2:]).register_forward_hook(count(n))
             for n in counts]
    stacks = [(), *((Intervention(1, "fc_out", keep),) for keep in (0.1, 0.2, 0.5))]
    SharedPrefixEvaluator(model).outputs("sts", split.batch(range(4)), stacks)
    assert set(counts.values()) == {1}
    stacks = [(), *((Intervention(0, "fc_out", keep),) for keep in (0.1, 0.2, 0.5))]
    SharedPrefixEvaluator(model).outputs("sts", split.batch(range(4)), stacks)
    assert counts == {"0.attention": 2, "0.ffn.fc_in": 2, "1.attention": 5, "1.ffn.fc_in": 5}
    for hook in hooks:
        hook.remove()


def test_replay_leaves_the_model_as_it_was(bert, checkpoint):
    model = build_model(bert, Settings(tasks="sts"))
    before, modules = bert.state_dict(), list(bert.modules())
    split = tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint))
    SharedPrefixEvaluator(model).outputs("sts", split.batch(range(4)), STACKS)
    assert list(bert.modules()) == modules
    assert all(bert.state_dict()[name] is not None and torch.equal(value, bert.state_dict()[name])
               for name, value in before.items())


# ------------------------------------------------------------------------------- sweep and search


def open_outputs(run, path):
    model, tokenizer, settings, _ = runs.open_run(run)
    splits = {task: load_split(task, "dev", settings.data, tokenizer, settings)
              for task in model.heads}
    return OutputCache(model, splits, CPU, nullcontext, path)


def test_a_stopped_pass_goes_on_where_it_was(run, tmp_path, monkeypatch):
    stacks, path = [(), tuple(parse("1:fc_in:0.3"))], tmp_path / "o.safetensors"
    whole = open_outputs(run, tmp_path / "whole.safetensors")
    whole.add(stacks)
    first, seen = open_outputs(run, path), []
    real = first.evaluator.outputs

    def stopping(task, batch, those):
        seen.append(task)
        if len(seen) == 2:                                   # as a SIGTERM would
            os.kill(os.getpid(), signal.SIGTERM)
        return real(task, batch, those)

    monkeypatch.setattr(first.evaluator, "outputs", stopping)
    with pytest.raises(UserStop, match="the same command goes on"):
        first.add(stacks)
    second, calls = open_outputs(run, path), []
    real = second.evaluator.outputs
    monkeypatch.setattr(second.evaluator, "outputs",
                        lambda task, *rest: calls.append(task) or real(task, *rest))
    second.add(stacks)
    assert len(seen) == 2 and calls == ["sts"]
    for task, table in whole.tables.items():
        assert torch.equal(table, second.tables[task])


def test_outputs_of_another_model_are_refused(run, tmp_path):
    outputs = open_outputs(run, tmp_path / "o.safetensors")
    outputs.add([()])
    model = outputs.model
    with torch.no_grad():
        model.bert.layers[0].ffn.fc_in.weight[0, 0] += 1
    with pytest.raises(UserError, match="another model"):
        OutputCache(model, outputs.splits, CPU, nullcontext, tmp_path / "o.safetensors")


@pytest.mark.parametrize("change", [
    lambda model, splits: mask_heads(model.bert, {1: [2]}),
    lambda model, splits: model.adapters.update(sts="sst"),
    lambda model, splits: setattr(model, "read", "mean"),
    lambda model, splits: setattr(model, "pairs", "separate"),
    lambda model, splits: splits["sts"].labels.add_(1),
    lambda model, splits: setattr(model.bert.layers[0].attention.query.adapters["sts"], "alpha", 2),
    lambda model, splits: setattr(model.bert.layers[0].output_norm.base, "eps", 1e-3),
], ids=["mask", "adapter", "pooling", "pairs", "labels", "alpha", "eps"])
def test_the_fingerprint_holds_what_scores_depend_on(bert, checkpoint, change):
    adapter_layers(bert, norms=True)
    model = build_model(bert, EVERY_TASK)
    splits = {"sts": tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint))}
    before = fingerprint(model, splits, "fp32")
    assert fingerprint(deepcopy(model), deepcopy(splits), "fp32") == before
    assert fingerprint(model.train(), splits, "fp32") == before
    change(model, splits)
    assert fingerprint(model, splits, "fp32") != before


def test_sweep_leaves_csv_and_pictures_and_scores_as_evaluate_does(run, script, tmp_path):
    code, out, _ = script(main, "sweep", run, "--out", tmp_path / "s", "--layers", "all",
                          "--matrices", "all", "--keep", "0.5,0.1")
    assert code == 0 and "the run as it is" in out and "python -m laser search" in out
    rows = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
    assert len(rows) == 1 + 2 * 6 * 2
    for row in (rows[0], rows[5], rows[-1]):
        flags = ["--laser", row["laser"]] if row["laser"] else []
        scores = json.loads(script(evaluate_script.main, run, "--json", "--predictions",
                                   tmp_path / "p", *flags)[1])
        assert float(row["sst"]) == scores["sst"]["accuracy"]
        assert float(row["sts"]) == pytest.approx(scores["sts"]["pearson"], abs=1e-4)
        assert float(row["overall"]) == pytest.approx(scores["overall"], abs=1e-4)
    for picture in ("heatmap.png", "spectra.png"):
        assert (tmp_path / "s" / picture).read_bytes().startswith(b"\x89PNG")


def test_search_reports_on_the_half_it_did_not_see(run, script, tmp_path):
    arguments = ("search", run, "--out", tmp_path / "s", "--keep", "0.5,0.1", "--splits", "2",
                 "--layers", "all", "--matrices", "fc_in")
    code, out, _ = script(main, *arguments)
    assert code == 0 and "survive" in out and "best for sst" in out
    rows = list(csv.DictReader((tmp_path / "s" / "search.csv").open()))
    assert {row["search"] for row in rows} == set(SEARCHES) and len(rows) == 8
    assert all(float(r["low"]) <= float(r["high"]) for r in rows)
    assert max(int(r["evaluations"]) for r in rows if r["search"] in ("backwards", "additive")) <= 4
    assert script(main, *arguments)[1] == out                # from the outputs on the disk


class Pretended:
    """A Trial whose gains are a given function of the stack."""

    def __init__(self, function, noise=0.001):
        self.function, self.gains, self.error = function, {(): 0.0}, noise
        weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        layer = SimpleNamespace(place=None)
        self.outputs = SimpleNamespace(evaluator=SimpleNamespace(weight=weight, layer=layer))

    def __call__(self, stacks):
        for stack in map(tuple, map(sorted, stacks)):
            self.gains.setdefault(stack, self.function(stack))
        return [self.gains[tuple(sorted(stack))] for stack in stacks]

    def noise(self, stack):
        return self.error

    evaluations, best = StackScorer.evaluations, StackScorer.best


GRID = [Intervention(layer, "fc_in", keep) for layer in (0, 1, 2) for keep in (0.8, 0.5, 0.2)]


def sum_of(effects):
    return lambda stack: sum(effects.get(format_stack([i]), -0.02) for i in stack)


@pytest.mark.parametrize("search", SEARCHES)
def test_searches_find_the_effects_that_add_up(search, monkeypatch):
    monkeypatch.setattr("laser.additive.describe", lambda _, i: {"energy": i.keep})
    scorer = Pretended(sum_of({"0:fc_in:0.5": 0.01, "2:fc_in:0.5": 0.02, "2:fc_in:0.8": 0.01}))
    stack = SEARCHES[search](scorer, GRID, budget=len(GRID), seed=0)
    best = "2:fc_in:0.5" if search == "single" else "0:fc_in:0.5,2:fc_in:0.5"
    assert format_stack(stack) == best or search == "additive"
    assert scorer.evaluations <= len(GRID) + 2 * (search == "forwards")
    if search == "additive":
        assert scorer.gains[stack] >= 0.02


@pytest.mark.parametrize("search", SEARCHES)
def test_searches_keep_nothing_where_nothing_helps(search, monkeypatch):
    monkeypatch.setattr("laser.additive.describe", lambda _, i: {"energy": i.keep})
    assert SEARCHES[search](Pretended(sum_of({})), GRID, budget=len(GRID), seed=0) == ()


def test_the_posterior_is_ridge_regression():
    """Against the textbook's other form: (XᵀX/σ² + K⁻¹)⁻¹ Xᵀy/σ²."""
    rng = np.random.default_rng(0)
    design, gains = (rng.random((12, 4)) < 0.4).astype(float), rng.normal(size=12)
    covariance = prior(np.array([0.1, 0.4, 0.2, 0.3]), [(0,), (0,), (1,), (2,)])
    assert covariance[0, 1] == 0.1 and covariance[0, 2] == 0
    monkey = posterior.__globals__
    scales, monkey["SCALES"] = monkey["SCALES"], np.array([1.0])
    mean, spread = posterior(design, gains, np.full(12, 0.25), covariance)
    monkey["SCALES"] = scales
    precision = design.T @ design / 0.25 + np.linalg.inv(covariance)
    np.testing.assert_allclose(spread, np.linalg.inv(precision), atol=1e-10)
    np.testing.assert_allclose(mean, spread @ design.T @ gains / 0.25, atol=1e-10)


def test_the_best_stack_takes_what_helps_once_a_matrix():
    effects = [0.1, 0.3, 0.2, -0.1, -0.2, -0.3, 0.0, 0.01, -1]
    assert format_stack(best_stack(effects, GRID)) == "0:fc_in:0.5,2:fc_in:0.5"


# -------------------------------------------------------------------------------------- held out


def test_halves_are_disjoint_whole_and_seeded():
    choose, report = halves({"sst": 11, "sts": 8}, seed=3)
    assert len(choose["sst"]) == 5 and not set(choose["sst"]) & set(report["sst"])
    assert sorted({*choose["sts"], *report["sts"]}) == list(range(8))
    assert np.array_equal(halves({"sst": 11}, 3)[0]["sst"], choose["sst"])
    assert not np.array_equal(halves({"sst": 11}, 4)[0]["sst"], choose["sst"])


def test_the_bootstrap_interval_has_the_standard_error_of_a_proportion():
    rng = np.random.default_rng(0)
    labels = {"sst": np.ones(400)}
    base, edited = {"sst": np.zeros(400)}, {"sst": (rng.random(400) < 0.5).astype(float)}
    rows = {"sst": np.arange(400)}
    assert bootstrap(rows, edited, base, labels, "sst", 500).std() == pytest.approx(0.025, rel=0.1)
    found = gain_with_interval(rows, edited, base, labels, "sst")
    assert found.value == edited["sst"].mean() and found.survives
    assert found.high - found.low == pytest.approx(4 * 0.0245, rel=0.1)
    assert not gain_with_interval(rows, base, base, labels, "sst").survives


# --------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("factored", [(), ("--factored",)])
def test_an_applied_run_opens_in_evaluate_with_the_same_scores(run, script, tmp_path, factored):
    text = "0:fc_out:0.3,1:fc_in:0.2,1:query:0.5:magnitude"
    code, out, _ = script(main, "apply", run, "--laser", text, "--out", tmp_path / "new", *factored)
    assert code == 0 and "parameters" in out
    saved = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert json.loads(script(evaluate_script.main, tmp_path / "new", "--json")[1]) == saved
    query_layout = json.loads(script(evaluate_script.main, run, "--laser", text, "--json",
                              "--predictions", tmp_path / "p")[1])
    assert query_layout["sst"] == saved["sst"]
    assert query_layout["sts"]["pearson"] == pytest.approx(saved["sts"]["pearson"], abs=1e-4)
    edit, = json.loads((tmp_path / "new" / "run.json").read_text())["edits"]
    assert edit["interventions"] == format_stack(parse(text))
    assert edit["ranks"] == ({"0:fc_out": 9, "1:fc_in": 6} if factored else {})
    size = [(folder / "model" / "model.safetensors").stat().st_size
            for folder in (run, tmp_path / "new")]
    assert (size[1] < size[0]) == bool(factored)


def test_an_applied_run_keeps_the_rows_and_precision_it_was_scored_with(run, script, tmp_path):
    code, *_ = script(main, "apply", run, "--laser", "0:fc_out:0.3", "--out", tmp_path / "new",
                      "--precision", "bf16", "--limit", "9")
    saved = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert json.loads(script(evaluate_script.main, tmp_path / "new", "--json")[1]) == saved


def test_a_factored_run_can_be_trained_on(run, script, data, tmp_path):
    script(main, "apply", run, "--laser", "1:fc_in:0.2", "--factored", "--out", tmp_path / "new")
    code, _, err = script(train_multitask.main, "--from", tmp_path / "new", "--data", data,
                          "--steps", "1", "--out", tmp_path / "more")
    assert code == 0, err
    assert runs.open_run(tmp_path / "more")[0].bert.layers[1].ffn.fc_in.down.out_features == 6


@pytest.mark.parametrize("arguments, says", [
    (["swep"], "did you mean sweep"), (["apply", "RUN", "--out", "RUN", "--laser", "1:fc_in:0.3"],
                                       "saved run; --overwrite"),
    (["sweep", "RUN", "--layers", "7"], "layers are 0 to 1"),
    (["sweep", "RUN", "--matrices", "fc"], "no matrix 'fc'"),
    (["sweep", "RUN", "--keep", "2"], "--keep 2"), (["search", "RUN", "--metric", "sst5"], "no score"),
    (["search", "RUN", "--splits", "0"], "1 or more"), (["sweep", "nowhere"], "not a saved run"),
])
def test_a_wrong_command_is_a_sentence(run, script, tmp_path, arguments, says):
    named = [str(run) if a == "RUN" else a for a in arguments]
    out = [] if arguments[0] in ("swep", "apply") else ["--out", tmp_path / "o"]
    code, _, err = script(main, *named, *out)
    assert code == 2 and says in err and "Traceback" not in err


def test_the_public_names_are_there():
    assert laser.parse("1:fc_in:0.5")[0] == laser.Intervention(1, "fc_in", 0.5)
