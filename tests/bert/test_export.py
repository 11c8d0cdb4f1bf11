"""The dense path: equal to the packed one, and what docs/export.md says about it runs."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from parity import SMALL, summed_loss, tiny_batch

from bert import Bert, BertConfig, DenseLayout, Layout, Tokenizer
from lora import attach

PAGE = (Path(__file__).parent.parent.parent / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.fixture(params=["sdpa", "eager"])
def bert(request):
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL), request.param).eval()


def close(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize("heads", [None, [3, 4], [4, 3, 4]], ids=["plain", "heads", "of each"])
def test_dense_states_are_the_packed_ones_with_any_mask(bert, heads):
    batch = tiny_batch()
    batch["attention_mask"][1, :4] = 0                       # padding on the left
    batch["attention_mask"][3, 2] = 0                        # and a hole
    mask = None if heads is None else torch.rand(heads).round()
    bert.layers[0].attention.set_masked_heads(bert.config, [1])
    more = {"head_mask": mask, "output_hidden_states": True}
    packed, dense = bert(**batch, **more), bert(**batch, **more, dense=True)
    close(dense.hidden_states, packed.hidden_states)
    close(dense[:2], packed[:2])


def test_dense_gradients_are_the_packed_ones(bert):
    gradients = []
    for dense in (False, True):
        bert.zero_grad()
        summed_loss(bert(**tiny_batch(), dense=dense), tiny_batch()).backward()
        gradients.append([p.grad.clone() for p in bert.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_dense_poolings_are_the_packed_ones(bert):
    batch, poolings = tiny_batch(), []
    for kind in (Layout, DenseLayout):
        hidden, layout = bert.embed(batch["input_ids"], kind(batch["attention_mask"]))
        first = bert.encode(hidden, layout, output_rows=layout.cls_rows())
        some = layout.select(batch["input_ids"] % 2)
        read = bert.encode(hidden, layout, output_rows=some)
        mean = layout.pad(bert.encode(hidden, layout)).sum(1) / layout.mask.sum(1, keepdim=True)
        poolings.append((first, bert.pool(first), mean, read))
        assert len(some) == len(read)
    close(*poolings)


def test_a_sequence_of_padding_is_zeros_and_the_others_do_not_notice(bert):
    batch = tiny_batch()
    plain = bert(**batch)
    batch["attention_mask"][2] = 0
    found = bert(**batch, dense=True)
    assert not found.last_hidden_state[2].any() and found.pooler_output.isfinite().all()
    others = torch.tensor([0, 1, 3])
    close(found.last_hidden_state[others], plain.last_hidden_state[others])
    found.last_hidden_state.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in bert.parameters() if p.grad is not None)


def test_what_stands_at_padding_is_never_read(bert):
    batch = tiny_batch()
    expected = bert(**batch, dense=True)
    padding = batch["attention_mask"] == 0
    batch["input_ids"][padding], batch["token_type_ids"][padding] = -100, 99
    assert torch.equal(bert(**batch, dense=True)[0], expected[0])


SERVED = {"one": [("b", 4)], "several": [("a", 1), (None, 1), ("b", 2)]}


def adapter_layers(bert):
    attach(bert, adapters=("a", "b"), layernorms=True)
    for name, parameter in bert.named_parameters():
        if ".adapters." in name:
            parameter.data.normal_(std=0.3)
    return bert


@pytest.mark.parametrize("served", SERVED)
def test_adapters_serve_the_same_sequences_on_the_dense_path(bert, served):
    batch, outputs = tiny_batch(), []
    for kind in (Layout, DenseLayout):
        layout = kind(batch["attention_mask"]).with_adapters(SERVED[served])
        outputs.append(adapter_layers(bert)(batch["input_ids"], layout)[:2] if not outputs
                       else bert(batch["input_ids"], layout)[:2])
    close(*outputs)
    plain = kind(batch["attention_mask"]).with_adapters([(None, 4)])
    assert not torch.allclose(bert(batch["input_ids"], plain)[0], outputs[0][0])


def shapes_of(batch, bert):
    dims = {0: torch.export.Dim("batch"),
            1: torch.export.Dim("tokens", max=bert.config.max_position_embeddings)}
    return dict.fromkeys(batch, dims) | {"dense": None}


def test_an_encoder_with_an_active_adapter_and_switched_off_heads_is_exported(bert):
    adapter_layers(bert).layers[1].attention.set_masked_heads(bert.config, [2])
    batch = tiny_batch()
    program = torch.export.export(bert, (), {**batch, "dense": True},
                                  dynamic_shapes=shapes_of(batch, bert))
    for rows, columns in ((4, 12), (1, 1), (2, 20)):
        other = {"input_ids": torch.full((rows, columns), 7),
                 "attention_mask": torch.ones(rows, columns, dtype=torch.long),
                 "token_type_ids": torch.zeros(rows, columns, dtype=torch.long)}
        other["attention_mask"][0, columns // 2 + 1:] = 0
        close(program.module()(**other, dense=True)[:2], bert(**other)[:2])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the snippets of docs/export.md leave, run in their order."""
    names, patch = {}, pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("page"))
    patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))         # no compiler
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 5
    try:
        for snippet in snippets:
            exec(snippet, names)
        yield names
    finally:
        patch.undo()


def other_batches():
    """Of other sizes than the exported one, each also with padding."""
    tokenizer = Tokenizer.from_pretrained("tiny")
    yield tokenizer(["a"])
    yield tokenizer(["the film was good . " * 20, "bad", "a story"])
    yield tokenizer(["the book"] * 2, pairs=["not very good", ""])


def test_the_page_gives_the_packed_outputs_four_times(page):
    expected = page["bert"](**page["batch"])[:2]
    close(page["out"][:2], expected)
    close(page["exported"][:2], expected)
    close((torch.from_numpy(page["states"]), torch.from_numpy(page["pooled"])), expected)
    close(page["fast"][:2], expected)


def test_onnx_and_export_take_any_batch_and_length(page):
    for batch in other_batches():
        expected = page["bert"](**batch)[:2]
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        close(tuple(map(torch.from_numpy, page["session"].run(None, arrays))), expected)
        close(page["program"].module()(**batch, dense=True)[:2], expected)


def test_the_compiled_encoder_is_one_graph_for_all_batches(page):
    for batch in other_batches():
        known = len(batch["input_ids"]) > 1                  # a batch of one has its own graph
        with torch.compiler.set_stance("fail_on_recompile" if known else "default"):
            close(page["compiled"](**batch, dense=True)[:2], page["bert"](**batch)[:2])


def test_vmap_gives_the_gradients_of_each_example(page):
    bert, batch = page["bert"], page["batch"]
    for number in range(len(batch["input_ids"])):
        bert.zero_grad()
        example = {name: tensor[number:number + 1] for name, tensor in batch.items()}
        bert(**example).last_hidden_state[0, 0].square().sum().backward()
        for name, parameter in bert.named_parameters():
            expected = torch.zeros(()) if parameter.grad is None else parameter.grad
            difference = (page["gradients"][name][number] - expected).norm()
            assert difference <= 1e-4 * expected.norm() + 1e-5, name


def test_the_jacobian_of_own_embeddings_is_that_of_the_packed_path(bert):
    bert.use_attention("eager")
    batch = tiny_batch()
    words = bert.word_embeddings(batch.pop("input_ids")[:2, :5]).detach()
    mask = batch["attention_mask"][:2, :5]

    def first(words, dense):
        return bert(inputs_embeds=words, attention_mask=mask, dense=dense)[0][:, 0]

    found = torch.func.jacrev(first)(words, True)
    packed = torch.autograd.functional.jacobian(lambda words: first(words, False), words)
    torch.testing.assert_close(found, packed, atol=1e-4, rtol=1e-4)
