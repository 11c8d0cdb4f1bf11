"""Many edited models in one pass: outputs equal those of every model evaluated alone; the cache of
outputs."""

import os
import signal
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lora
from bert import Tokenizer, UserError
from bert.matrices import MATRICES
from common.cli import UserStop
from laser.interventions import Intervention, apply, parse
from laser.output_cache import OutputCache
from laser.shared_prefix import SharedPrefixEvaluator
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import model_fingerprint, run_split
from multitask.model import build_model
from multitask.session import RunSession
from multitask.settings import Settings
from multitask.tasks import TASKS
from pruning import mask_heads, remove_heads, remove_layers, remove_neurons

CPU = torch.device("cpu")
PAIRS = [Example(str(n), ("the film is good .", text), 1.0)
         for n, text in enumerate(("a dog", "the song was not very bad .", "a cat ?", "the book"))]
STACKS = [(), *(tuple(parse(text)) for text in (
    "0:query:0.5", "0:fc_in:0.3", "0:fc_in:0.3,0:fc_out:0.5", "0:fc_in:0.3,1:fc_out:0.5",
    "1:key:0.5,1:value:0.2", "1:attention_output:0.2", "1:fc_in:0.9", "1:fc_out:0.1",
    "1:fc_out:0.5:magnitude", "0:fc_out:0.5:magnitude,1:query:0.4"))]


@pytest.mark.parametrize("settings", [{}, {"pairs": "separate", "head": "sts=cosine"},
                                      {"pooling": "mean"}, {"pooling": "pooler"}])
def test_one_pass_equals_evaluating_every_edited_model_whole(bert, checkpoint, settings):
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


def adapter_layers(bert, targets=("query", "key", "value", "attention_output"), norms=False,
                   **options):
    """An adapter for each task, in every one of which all numbers are random."""
    lora.attach(bert, targets, 4, ("sst", "para", "sts"), layernorms=norms, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            if ".adapters." in name:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    bert.edits.append({"method": "lora", "adapters": {t: t for t in ("sst", "para", "sts")}})


CHANGES = {                                  # what is done to a Bert, and stacks it can take
    "plain": (lambda bert: None, STACKS),
    "adapters": (adapter_layers, FFN_STACKS),
    "adapters with norms": (lambda bert: adapter_layers(bert, norms=True), FFN_STACKS),
    "adapters everywhere": (lambda bert: adapter_layers(bert, MATRICES, norms=True), [()]),
    "LoRA-XS": (lambda bert: adapter_layers(bert, kind="xs", alpha=8), FFN_STACKS),
    "masked heads": (lambda bert: mask_heads(bert, {0: [1], 1: [0, 3]}), STACKS),
    "a layer without heads": (lambda bert: remove_heads(bert, {1: [0, 1, 2, 3], 0: [2]}),
                              FFN_STACKS),
    "unlike many neurons": (lambda bert: remove_neurons(bert, {0: [*range(40)], 1: [3]}), STACKS),
    "a layer less": (lambda bert: remove_layers(bert, [0]), [(), tuple(parse("0:fc_in:0.3"))]),
    "factored": (lambda bert: apply(bert, parse("0:query:0.2,1:key:0.2"), factored=True),
                 FFN_STACKS),
}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("change", CHANGES)
def test_one_pass_of_a_changed_model_equals_it_in_every_task(bert, checkpoint, change,
                                                                 pooling):
    """The unedited stack bit for bit; sentences of unlike lengths, so that layouts have groups."""
    work, stacks = CHANGES[change]
    work(bert)
    model = build_model(bert, replace(EVERY_TASK, pooling=pooling)).eval()
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


def test_keeping_all_changes_no_bit(bert, checkpoint):
    model = build_model(bert, Settings(tasks="sts"))
    batch = tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint)).batch(range(4))
    stacks = [(), (Intervention(0, "query", 1.0), Intervention(1, "fc_in", 1.0))]
    assert torch.equal(*SharedPrefixEvaluator(model).outputs("sts", batch, stacks))


def test_layers_below_an_edit_run_once(bert, checkpoint):
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


def test_the_evaluator_leaves_the_model_unchanged(bert, checkpoint):
    model = build_model(bert, Settings(tasks="sts"))
    before, modules = bert.state_dict(), list(bert.modules())
    split = tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint))
    SharedPrefixEvaluator(model).outputs("sts", split.batch(range(4)), STACKS)
    assert list(bert.modules()) == modules
    assert all(bert.state_dict()[name] is not None and torch.equal(value, bert.state_dict()[name])
               for name, value in before.items())


def test_a_walk_that_stops_early_stops_the_evaluator_too(bert, checkpoint, monkeypatch):
    model = build_model(bert, Settings(tasks="sts")).eval()
    monkeypatch.setattr(bert, "walk", lambda rows=None, start=0: iter([(0, bert.layers[0], rows)]))
    batch = tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint)).batch(range(4))
    found = SharedPrefixEvaluator(model).outputs("sts", batch, [(), *STACKS[1:4]])
    with torch.inference_mode():
        assert torch.equal(found[0], model("sts", batch))
    assert (found[1:] - found[0]).abs().amax(dim=(1, 2)).min() > 1e-4


def test_other_layers_and_feed_forward_networks_are_refused_in_a_sentence(bert):
    class Experts(nn.Module):
        pass

    for parent, name in ((bert.layers, "0"), (bert.layers[1], "ffn")):
        plain = getattr(parent, name)
        setattr(parent, name, Experts())
        with pytest.raises(UserError, match="Experts, which LASER cannot run in parts"):
            SharedPrefixEvaluator(build_model(bert, Settings(tasks="sts")))
        setattr(parent, name, plain)


# ------------------------------------------------------------------------------- cached outputs


def open_outputs(run, path):
    return OutputCache(RunSession(SimpleNamespace(run=run, device="cpu")), path)


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
    session, path = RunSession(SimpleNamespace(run=run, device="cpu")), tmp_path / "o.safetensors"
    OutputCache(session, path).add([()])
    OutputCache(session, path)
    with torch.no_grad():
        session.model.bert.layers[0].ffn.fc_in.weight[0, 0] += 1
    with pytest.raises(UserError, match="another model"):
        OutputCache(session, path)


@pytest.mark.parametrize("change", [
    lambda model, splits: mask_heads(model.bert, {1: [2]}),
    lambda model, splits: model.adapters.update(sts="sst"),
    lambda model, splits: setattr(model, "pooling", "mean"),
    lambda model, splits: setattr(model, "pairs", "separate"),
    lambda model, splits: splits["sts"].labels.add_(1),
    lambda model, splits: setattr(model.bert.layers[0].attention.query.adapters["sts"], "alpha", 2),
    lambda model, splits: setattr(model.bert.layers[0].output_norm.base, "eps", 1e-3),
], ids=["mask", "adapter", "pooling", "pairs", "labels", "alpha", "eps"])
def test_the_fingerprint_holds_what_scores_depend_on(bert, checkpoint, change):
    adapter_layers(bert, norms=True)
    model = build_model(bert, EVERY_TASK)
    splits = {"sts": tokenize(PAIRS, Tokenizer.from_pretrained(checkpoint))}
    before = model_fingerprint(model, splits, "fp32")
    assert model_fingerprint(deepcopy(model), deepcopy(splits), "fp32") == before
    assert model_fingerprint(model.train(), splits, "fp32") == before
    change(model, splits)
    assert model_fingerprint(model, splits, "fp32") != before
