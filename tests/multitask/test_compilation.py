"""--compile changes how layers are computed, not what; it compiles a few graphs for all batches.

torch.compile's backend is here one that runs each graph as it is, so that tests take moments; the
real one is in the long tests. Hidden states are not dropped, because dropout draws other numbers in
a graph; attention, which is not compiled, keeps its dropout.
"""

import json
from dataclasses import replace
from shutil import copy

import pytest
import torch
from lora_models import perturb
from parity import SMALL
from safetensors.torch import load_file

import evaluate
import laser
import lora
import train_multitask
from bert import Bert, BertConfig, Layout
from bert.attention import SelfAttention
from bert.model import BertLayer
from experts.split import insert_experts
from multitask import compilation
from multitask.compilation import check_compilation, compiled_layers
from multitask.model import MultitaskModel
from pruning import mask_heads, remove_heads, remove_neurons

CPU = torch.device("cpu")
FUNCTIONS = BertLayer.forward, SelfAttention.forward, Bert.with_products


@pytest.fixture
def graphs(monkeypatch):
    """Compile to graphs that run as they are → the list of graphs."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    yield found
    assert (BertLayer.forward, SelfAttention.forward, Bert.with_products) == FUNCTIONS


def small_bert(**fields):
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL | {"max_position_embeddings": 60, "hidden_dropout_prob": 0.0}
                           | fields))


def batches(count, adapters=None):
    """Ragged batches of 1 to 11 sequences → (ids, layout, its [CLS])."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 50, (int(torch.randint(1, 12, (), generator=generator)),),
                                generator=generator)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.randint(1, 60, mask.shape, generator=generator)
        layout = Layout(mask)
        if adapters:                                         # the sequences in turn
            first = len(mask) // 2
            layout = layout.with_adapters([(adapters[0], first), (adapters[1], len(mask) - first)]
                                          if first else [(adapters[1], 1)])
        yield ids, layout, layout.cls_rows()


def step(bert, ids, layout, first):
    """→ outputs, {name: gradient}"""
    bert.zero_grad()
    hidden, layout = bert.embed(ids, layout)
    found = bert.encode(hidden, layout, output_rows=first)
    found.square().mul(torch.arange(32)).sum().backward()
    return found.detach(), {name: p.grad.clone() for name, p in bert.named_parameters()
                            if p.grad is not None}


def steps(bert, given):
    torch.manual_seed(7)                                     # of dropout
    return [step(bert, *batch) for batch in given]


def assert_alike(found, expected, outputs=1e-5, gradients=1e-4):
    for (one, ours), (other, theirs) in zip(found, expected):
        torch.testing.assert_close(one, other, atol=outputs, rtol=0)
        assert ours.keys() == theirs.keys()
        for name in ours:
            if "key.bias" not in name:                       # whose true gradient is zero
                difference = (ours[name] - theirs[name]).norm()
                assert difference <= gradients * theirs[name].norm() + 1e-7, name


def test_thirty_batches_of_different_sizes_take_a_few_graphs_and_give_the_same(graphs):
    bert, given = small_bert(num_hidden_layers=2).train(), list(batches(30))
    assert len({len(layout) for _, layout, _ in given}) > 25
    expected = steps(bert, given)
    with compiled_layers():
        assert_alike(steps(bert, given), expected)
        assert len(graphs) <= 8                              # of all layers, and the last on [CLS]
        bert.eval()
        with torch.inference_mode():
            for ids, layout, first in given:
                bert.encode(*bert.embed(ids, layout), output_rows=first)
    assert len(graphs) <= 16


def two_adapters(bert):
    lora.attach(bert, adapters=("a", "b"), layernorms=True)
    return perturb(bert, "a", "b")


def pruned(bert):
    remove_heads(bert, {0: [1, 2], 1: [0, 1, 2, 3]})
    remove_neurons(bert, {0: range(9), 1: range(30)})
    mask_heads(bert, {2: [3]})


def factored(bert):
    laser.apply(bert, laser.parse("1:fc_in:0.3,1:fc_out:0.3"), factored=True)


def r_softmax(bert):
    bert.use_attention("r-softmax")


@pytest.mark.parametrize("change", [
    pruned, two_adapters, pytest.param(factored, marks=pytest.mark.long),
    pytest.param(r_softmax, marks=pytest.mark.long)])
def test_each_kind_of_model_gives_the_same_outputs_and_gradients_compiled(graphs, change):
    bert = small_bert()
    change(bert)
    bert.train()
    adapters = ("a", "b") if change is two_adapters else None
    given = list(batches(4, adapters))
    expected = steps(bert, given)
    with compiled_layers():
        assert_alike(steps(bert, given), expected)
        known = len(graphs)
        steps(bert, batches(8, adapters))
    assert 0 < known and len(graphs) <= known + 2            # no graph for each size


def test_bf16_is_compiled_too(graphs):
    bert, given = small_bert(num_hidden_layers=1).train(), list(batches(2))
    with torch.autocast("cpu", torch.bfloat16):
        expected = steps(bert, given)
        with compiled_layers():
            assert_alike(steps(bert, given), expected)
    assert graphs


def test_layers_with_experts_run_as_they_are(graphs):
    bert = small_bert(hidden_act="relu").eval()
    insert_experts(bert, 4, 8)
    with pytest.raises(Exception, match="nothing to compile"):
        check_compilation(MultitaskModel({"shared": bert}, {}), CPU)
    ids, layout, _ = next(batches(1))
    expected = bert(ids, layout)[0]
    with compiled_layers():
        assert torch.equal(bert(ids, layout)[0], expected)
    assert not graphs


def test_an_error_leaves_the_layers_as_they_were(graphs):
    with pytest.raises(ZeroDivisionError):
        with compiled_layers():
            assert BertLayer.forward is not FUNCTIONS[0]
            raise ZeroDivisionError
    with compiled_layers(False):
        assert BertLayer.forward is FUNCTIONS[0]


# ---- runs

@pytest.fixture
def flags(checkpoint, data, tmp_path):
    bert = Bert.from_pretrained(checkpoint)
    bert.config = replace(bert.config, hidden_dropout_prob=0.0)
    bert.save_pretrained(tmp_path / "checkpoint")
    copy(checkpoint / "vocab.txt", tmp_path / "checkpoint")
    return ["--bert", tmp_path / "checkpoint", "--data", data, "--batch-size", 8, "--steps", 6,
            "--lr", 3e-3, "--save-every", 3]


RUNS = {"lora": ("--lora", 2, "--surgery", "pcgrad", "--adapters", "shared"),
        "separate": ("--encoders", "separate", "--pooling", "mean", "--pairs", "separate")}


@pytest.mark.parametrize("kind", ["lora", pytest.param("separate", marks=pytest.mark.long)])
def test_a_compiled_run_learns_what_the_plain_one_does(graphs, script, flags, tmp_path, kind):
    scores = []
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        code, _, err = script(train_multitask.main, *flags, *RUNS[kind], *more,
                              "--out", tmp_path / name)
        assert code == 0, err
        assert bool(graphs) == (name == "compiled")
        scores.append(load_file(tmp_path / name / "heads.safetensors"))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-3)
    known = len(graphs)
    reports = []
    for more in ((), ("--compile",)):
        code, out, err = script(evaluate.main, tmp_path / "compiled", "--json", *more)
        assert code == 0, err
        reports.append(json.loads(out))
    assert reports[0] == reports[1] and len(graphs) >= known


@pytest.mark.long
def test_a_run_may_be_resumed_compiled(graphs, script, flags, tmp_path, monkeypatch):
    from common.cli import StopSignal

    run = tmp_path / "run"
    monkeypatch.setattr(StopSignal, "asked", True, raising=False)
    code, _, err = script(train_multitask.main, *flags, "--log-every", 2, "--out", run)
    assert code == 130 and not graphs, err
    monkeypatch.undo()
    monkeypatch.setattr(compilation, "BACKEND", lambda graph, _: graphs.append(graph) or graph)
    code, _, err = script(train_multitask.main, "--resume", run, "--compile")
    assert code == 0 and graphs, err


def test_where_nothing_can_be_compiled_a_sentence_says_so(script, flags, tmp_path, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no compiler, which\nis needed")

    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    code, _, err = script(train_multitask.main, *flags, "--compile", "--out", tmp_path / "new")
    assert code == 2 and err.splitlines()[-1].startswith("error: --compile: torch.compile does")
    assert "no compiler, which" in err and "C++ compiler" in err and "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_what_compiling_would_not_serve_is_refused(script, flags, tmp_path):
    code, _, err = script(train_multitask.main, *flags, "--compile", "--relu")
    assert code == 2 and "leave out --compile" in err
    for more in (("--text", "a film"), ("--report", "page.html")):
        code, _, err = script(evaluate.main, tmp_path, "--compile", *more)
        assert code == 2 and "--compile is for scoring files" in err


# ---- the real compiler

@pytest.mark.long
def test_the_compiler_gives_the_same_outputs_and_gradients():
    torch._dynamo.reset()
    bert = small_bert().train()
    given = list(batches(30))
    expected = steps(bert, given)
    check_compilation(MultitaskModel({"shared": bert}, {}), CPU)
    with compiled_layers():
        assert_alike(steps(bert, given), expected)


@pytest.mark.long
def test_a_compiled_run_repeats_its_bytes_with_dropout(script, checkpoint, flags, tmp_path):
    saved = []
    for name in ("one", "two"):
        torch._dynamo.reset()
        code, _, err = script(train_multitask.main, *flags, "--compile", "--bert", checkpoint,
                              "--out", tmp_path / name)
        assert code == 0, err
        saved.append((tmp_path / name / "heads.safetensors").read_bytes())
    assert saved[0] == saved[1]
