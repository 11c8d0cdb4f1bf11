"""Every setting of training makes a forward pass on a GPU: no devices are mixed, and nothing waits.
Fake tensors stand for a GPU's (tests/fake_cuda.py), so a build of torch with CUDA is enough:

    pytest -q -s tests/test_fake_cuda.py                     # -s: and print the counts
"""

from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from fake_cuda import Operations, fake_gpu, move
from torch._subclasses.fake_tensor import unset_fake_temporarily

import experts
import lora
import train_multitask
from bert import Bert, Layout, transfer
from bert.r_softmax import configure
from common.finite import FiniteCheck
from common.log import Log
from common.tables import text_table
from early_exit import DepthHeads, Exits, layer_states, netcut_loss
from early_exit.training import mean_cross_entropy
from laser import apply, parse
from multitask import methods
from multitask.course import Example
from multitask.data import tokenize
from multitask.preparation import load_model
from multitask.tasks import TASKS
from pretraining.corpus import Corpus
from pretraining.distillation import sentence_vectors
from pretraining.masking import Masking, masked_batch
from pretraining.model import MaskedLM, open_checkpoint
from pruning import mask_heads, remove_heads, remove_layers, remove_neurons

if not torch.backends.cuda.is_built():
    pytest.skip("needs a build of torch with CUDA", allow_module_level=True)
GPU = torch.device("cuda")
TEXTS = [("the film was good", "a dull film ."), ("the cat", "the dog is not a cat , and the cat"),
         ("is the song very bad ?", "great"), ("a house", "the car is fine")]
COUNTS = {}                      # {setting: [operations in fp32, in bf16]}
ALL = "query,key,value,attention_output,fc_in,fc_out"


@pytest.fixture(scope="module", autouse=True)
def table():
    """With -s, print the operations of a training step's forward passes, for three tasks."""
    yield
    rows = [["setting", "fp32", "bf16"]] + [[name, *map(str, row)] for name, row in COUNTS.items()]
    print(f"\n\noperations of a step's forward passes\n{text_table(rows)}")


def autocast(bf16):
    return partial(torch.autocast, "cuda", torch.bfloat16, bf16)


def build(checkpoint, **flags):
    """→ settings, model on the CPU, {task: Batch on the CPU}"""
    settings = methods.settings_class()(bert=str(checkpoint), **flags)
    with redirect_stdout(StringIO()):
        model, tokenizer = load_model(settings, torch.device("cpu"))
    batches = {}
    for task in settings.task_names:
        row = TASKS[task]
        examples = [Example(str(n), texts[:len(row.columns)], float(n % (row.max_label + 1)))
                    for n, texts in enumerate(TEXTS)]
        batches[task] = tokenize(examples, tokenizer, settings.pairs).batch(range(len(TEXTS)))
    return settings, model, batches


def to_gpu(model):
    move(model)
    for bert in model.encoders.values():
        if getattr(getattr(bert, "recorder", None), "teacher", None):
            move(bert.recorder.teacher)


def training_run(settings, model, batches, bf16):
    """What train_multitask.add_gradients reads of a run."""
    return SimpleNamespace(
        settings=settings, model=model, device=GPU, autocast=autocast(bf16), checked_tasks=set(),
        train={task: SimpleNamespace(batch=lambda indices, batch=batch: batch, ids="abcd")
               for task, batch in batches.items()},
        progress=SimpleNamespace(step=1), schedule=SimpleNamespace(steps=2),
        optimizer=SimpleNamespace(param_groups=[{"params": list(model.parameters())}]),
        log=Log(None, 0, finite_only=settings.skip_nonfinite), finite=FiniteCheck(model))


def check(setting, settings, model, batches):
    """Make every task's forward pass in training and in evaluation; nothing but the batch goes to
    the GPU, by one copy, and nothing comes back."""
    with fake_gpu(), patch.object(torch.Tensor, "backward", lambda loss: None):
        to_gpu(model)
        for bf16 in (False, True):
            run, count = training_run(settings, model.train(), batches, bf16), 0
            for task in batches:
                with Operations() as step:
                    train_multitask.add_gradients(run, task, range(len(TEXTS)), 0.5)
                assert (step.to_gpu, step.to_cpu) == (1, 0)
                count += step.count
            if setting:
                COUNTS.setdefault(setting, []).append(count)
            model.eval()
            for task, batch in batches.items():
                with torch.no_grad(), autocast(bf16)(), Operations() as step:
                    outputs = model(task, batch.to(GPU))
                assert (step.to_gpu, step.to_cpu) == (1, 0)
                assert outputs.is_cuda and outputs.dtype == torch.float32


SETTINGS = {
    "one encoder, sdpa, [CLS]": {},
    "--attention eager": dict(attention="eager"),
    "--attention r-softmax": dict(attention="r-softmax"),
    "--pooling mean": dict(pooling="mean"),
    "--pairs separate": dict(pairs="separate"),
    "--freeze": dict(freeze=True),
    "--encoders separate": dict(encoders="separate"),
    "--lora 8": dict(lora=8),
    "--lora 8, all targets": dict(lora=8, lora_targets=ALL),
    "--lora 8 --lora-norms --lora-dropout .1": dict(lora=8, lora_norms=True, lora_dropout=0.1),
    "--lora 8 --adapters shared": dict(lora=8, adapters="shared"),
    "--lora 8 --lora-kind xs": dict(lora=8, lora_kind="xs", lora_norms=True, lora_dropout=0.1),
    "--lora 8 --lora-kind xs-out": dict(lora=8, lora_kind="xs-out"),
    "--mask-heads": dict(mask_heads="0:1 1:0,2"),
    "--mask-heads --lora 8": dict(mask_heads="0:1 1:0,2", lora=8),
    "--skip-nonfinite": dict(skip_nonfinite=True),
    "--relu --sparsity relu-l1 --distill 1": dict(relu=True, sparsity="relu-l1:1e-4", distill=1.0),
    "--sparsity gelu-hoyer": dict(sparsity="gelu-hoyer:1e-4"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_training_runs_on_a_gpu_without_waiting(checkpoint, setting):
    check(setting, *build(checkpoint, **SETTINGS[setting]))


@pytest.mark.parametrize("attention", ["sdpa", "eager", "r-softmax"])
@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
@pytest.mark.parametrize("pairs, head", [
    ("joint", "linear"), ("joint", "mlp"), ("separate", "linear"), ("separate", "mlp"),
    ("separate", "mlp,sts=cosine"), ("separate", "sts=relu-cosine")])
def test_every_head_reads_every_pooling_with_every_attention(checkpoint, attention, pooling, pairs,
                                                             head):
    check("", *build(checkpoint, attention=attention, pooling=pooling, pairs=pairs, head=head,
                     loss="cosine" if "cosine" in head else "mse"))


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_every_task_of_the_table_runs_without_waiting(checkpoint, pairs):
    check("", *build(checkpoint, tasks=",".join(TASKS), pairs=pairs))


@pytest.mark.parametrize("flags", [
    dict(zeros=0.0), dict(zeros=0.9), dict(zeros=0.5, zeros_gradient="detached"), dict(lora=4)])
@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_r_softmax_runs_without_waiting(checkpoint, flags, ramp):
    settings, model, batches = build(checkpoint, attention="r-softmax", **flags)
    configure(model.bert, ramp=ramp)
    check("", settings, model, batches)


def all_neurons(bert, layer):
    return {layer: range(bert.config.ffn_size(layer))}


EDITS = {
    "removed heads": lambda bert: remove_heads(bert, {0: [1], 1: [0, 3]}),
    "removed and masked heads": lambda bert: (remove_heads(bert, {0: [1], 1: [0, 3]}),
                                              mask_heads(bert, {0: [2], 1: [1]})),
    "a layer without heads": lambda bert: remove_heads(bert, {1: range(4)}),
    "removed neurons": lambda bert: remove_neurons(bert, {0: range(8), 1: [3]}),
    "a layer without neurons": lambda bert: remove_neurons(bert, all_neurons(bert, 0)),
    "a removed layer": lambda bert: remove_layers(bert, [0]),
    "factored matrices (LASER)": lambda bert: apply(bert, parse("1:fc_out:0.1,0:query:0.5")),
    "experts, all of them": lambda bert: experts.split(bert, 4),
}


@pytest.mark.parametrize("pairs", ["joint", "separate"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_encoder_runs_without_waiting(checkpoint, edit, pairs):
    settings, model, batches = build(checkpoint, pairs=pairs)
    EDITS[edit](model.bert)
    check("", settings, model, batches)


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit != "experts, all of them"])
def test_adapters_on_an_edited_encoder_run_without_waiting(checkpoint, edit):
    settings, model, batches = build(checkpoint)
    EDITS[edit](model.bert)
    factored = "LASER" in edit
    lora.attach(model.bert, ("key", "value") if factored else ALL.split(","), 4, ("a",),
                layernorms=True)
    check("", settings, model, batches)


KINDS = [dict(kind="lora"), dict(kind="lora", dropout=0.1, layernorms=True), dict(kind="xs"),
         dict(kind="xs-out", dropout=0.1, layernorms=True),
         dict(kind="lora", targets=ALL.split(","))]


@pytest.mark.parametrize("pairs", ["joint", "separate"])
@pytest.mark.parametrize("how", KINDS)
def test_three_adapters_in_a_batch_run_without_waiting(checkpoint, how, pairs):
    settings, model, batches = build(checkpoint, pairs=pairs)
    lora.attach(model.bert, rank=4, adapters=("a", "b", "c"), **how)
    for task, batch in batches.items():
        copies = batch.layout.batch // 4
        batches[task] = batch.with_adapters([("a", copies), ("b", 2 * copies), ("c", copies)])
    check("three adapters in the batch" if pairs == "joint" and how == KINDS[0] else "", settings,
          model, batches)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("shape", [(2, 4), (4, 2, 4)], ids=["layers", "batch"])
@pytest.mark.parametrize("edit", [None, "removed and masked heads", "a layer without heads"])
def test_head_masks_on_the_gpu_run_without_waiting(checkpoint, shape, edit, pooling):
    _, model, batches = build(checkpoint, pooling=pooling)
    if edit:
        EDITS[edit](model.bert)
    bert, batch = model.train().bert, batches["sst"]
    with fake_gpu():
        to_gpu(model)
        batch, head_mask = batch.to(GPU), torch.ones(shape, device=GPU)
        for bf16 in (False, True):
            with Operations() as step, autocast(bf16)():
                hidden, layout = bert.embed(batch.input_ids, batch.layout)
                bert.encode(hidden, layout, head_mask, model.pooled_rows("sst", batch))
            assert (step.to_gpu, step.to_cpu) == (0, 0)


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
@pytest.mark.parametrize("cascade, ensemble", [(True, "geometric"), (False, "none"),
                                               (True, "arithmetic")])
def test_exits_are_trained_without_waiting(checkpoint, pooling, cascade, ensemble):
    _, model, batches = build(checkpoint, pooling=pooling)
    exits = Exits(1, 32, 5, cascade=cascade, ensemble=ensemble)
    with fake_gpu():
        to_gpu(model.eval())
        move(exits)
        batch = batches["sst"].to(GPU)
        for bf16 in (False, True):
            with Operations() as step:
                with autocast(bf16)():
                    states, _ = layer_states(model, "sst", batch, 1)
                exits.standardize(states)
                mean_cross_entropy(exits(states.clone()), batch.labels)
            assert (step.to_gpu, step.to_cpu) == (0, 0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_netcut_is_trained_without_waiting(checkpoint, pooling):
    _, model, batches = build(checkpoint, tasks="sst,para", pooling=pooling)
    heads = DepthHeads(model)
    with fake_gpu():
        to_gpu(model.train())
        move(heads)
        for bf16 in (False, True):
            for task, batch in batches.items():
                with Operations() as step:
                    batch = batch.to(GPU)
                    with autocast(bf16)():
                        log_probs = heads(model, task, batch)
                    netcut_loss(log_probs, batch.labels, heads.alpha, 0.1)
                assert (step.to_gpu, step.to_cpu) == (1, 0)


@contextmanager
def answered(mode, mask):
    """Within this context a Layout counts on the CPU with the numbers of `mask`, which is what a
    GPU's mask holds → the tensors that it brought to the CPU."""
    asked, cells, copy_together = [], Layout._cells, transfer.copy_together

    def without_mode(layout):
        with unset_fake_temporarily():
            return cells(layout)

    def with_mode(tensors, device):
        with mode:
            return copy_together(tensors, device)

    with (patch.object(Layout, "_cells", without_mode),
          patch.object(torch.Tensor, "cpu", lambda tensor: asked.append(tensor) or mask),
          patch.object(transfer, "copy_together", with_mode)):
        yield asked


@pytest.mark.parametrize("padded", [True, False])
def test_a_mask_on_the_gpu_is_waited_for_once(checkpoint, padded):
    mask = torch.arange(7) < torch.tensor([[3], [7], [5]])
    bert, mask = Bert.from_pretrained(checkpoint), mask if padded else torch.ones_like(mask)
    with fake_gpu() as mode, answered(mode, mask) as asked, Operations() as step:
        move(bert)
        moved = step.to_gpu
        ids = torch.ones(3, 7, dtype=torch.long, device=GPU)
        given = torch.ones(3, 7, device=GPU) if padded else None
        out = bert(ids, given)
    assert out.pooler_output.is_cuda and out.last_hidden_state.shape == (3, 7, 32)
    assert [tensor.is_cuda for tensor in asked] == [padded] and not step.to_cpu
    assert step.to_gpu == moved + 1


@pytest.mark.parametrize("all_rows", [False, True], ids=["masked alone", "all, as for a teacher"])
def test_masked_language_modelling_runs_without_waiting(checkpoint, all_rows):
    tokenizer, bert = open_checkpoint(checkpoint)
    lines = torch.arange(len(TEXTS))
    batch = masked_batch(Corpus(tokenizer, ["\t".join(pair) for pair in TEXTS]), lines,
                         Masking(tokenizer))
    model = MaskedLM(bert, 48).train()
    with fake_gpu():
        move(model)
        for bf16 in (False, True):
            with Operations() as step, autocast(bf16)():
                moved = batch.to(GPU)
                logits, hidden = model(moved, all_rows)
                F.cross_entropy(logits.float(), moved.labels)
                if all_rows:
                    model.distillation_head(sentence_vectors(hidden.float(), moved.layout))
            assert (step.to_gpu, step.to_cpu) == (1, 0)
