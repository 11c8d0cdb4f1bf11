"""The encoder: equal to transformers' numbers, and to itself on every path."""

import math

import pytest
import torch
from parity import (
    PROBES,
    REFERENCE,
    SMALL,
    gradient_probes,
    real_texts,
    summed_loss,
    tiny_batch,
)
from safetensors.torch import load_file

from bert import Bert, BertConfig, Layout, Tokenizer, UserError
from bert.checkpoint import FROM_HF, rename
from bert.config import ACTIVATIONS


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL)).eval()


def states_of(bert, batch):
    """Hidden states [N, H] of the embeddings and every layer, and the whole output."""
    out = bert(**batch, output_hidden_states=True)
    mask = batch["attention_mask"].bool()
    return [state[mask] for state in out.hidden_states], out


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gelu", "relu_three_types", "one_wide_head"])
def test_tiny_models_give_the_reference_outputs_and_gradients(name, attention):
    expected = load_file(REFERENCE / name / "expected.safetensors")
    bert = Bert.from_pretrained(REFERENCE / name, attention)
    batch = tiny_batch(bert.config.type_vocab_size)
    states, out = states_of(bert, batch)
    summed_loss(out, batch).backward()
    for number, state in enumerate(states):
        torch.testing.assert_close(state, expected[f"hidden.{number}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(out.pooler_output, expected["pooler"], atol=2e-5, rtol=0)
    ours = dict(bert.named_parameters())
    for key in (k for k in expected if k.startswith("gradient.")):
        name = rename(key.removeprefix("gradient."), FROM_HF)
        if name.endswith("key.bias"):                        # whose true gradient is zero
            query = ours[name.replace("key", "query")].grad.norm()
            assert ours[name].grad.norm() <= 1e-6 * query, name
        else:
            assert (ours[name].grad - expected[key]).norm() <= 1e-4 * expected[key].norm(), name


@pytest.mark.parametrize("kind", ["single", "pair"])
def test_real_model_gives_the_reference_outputs_and_gradients(real_weights, real_data, kind):
    expected = load_file(REFERENCE / "minilm.safetensors")
    bert = Bert.from_pretrained(real_weights)
    batch = Tokenizer.from_pretrained(real_weights)(*real_texts(real_data)[kind])
    assert torch.equal(batch["input_ids"].sum(dim=1), expected[f"{kind}.input_ids_sum"])
    states, out = states_of(bert, batch)
    summed_loss(out, batch).backward()
    for number, state in enumerate(states):
        torch.testing.assert_close(state[:, ::PROBES], expected[f"{kind}.hidden.{number}"],
                                   atol=2e-5, rtol=0)
    torch.testing.assert_close(out.pooler_output[:, ::PROBES], expected[f"{kind}.pooler"],
                               atol=2e-5, rtol=0)
    ours = dict(bert.named_parameters())
    prefix = f"{kind}.gradient."
    for key in (k for k in expected if k.startswith(prefix)):
        name = rename(key.removeprefix(prefix), FROM_HF)
        probes = gradient_probes(key.removeprefix(prefix), ours[name].grad)
        if name.endswith("key.bias"):                        # whose true gradient is zero
            query = ours[name.replace("key", "query")].grad.norm()
            assert probes[0] <= 1e-6 * query, name
            continue
        difference = (probes - expected[key])[1:].pow(2).mean().sqrt()   # estimates ‖Δg‖
        assert difference <= 1e-4 * expected[key][0], name


def test_gelu_is_the_exact_one():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    by_hand = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), by_hand, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_eager_attention_equals_the_sdpa_kernel(mode):
    results = []
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        bert = Bert(BertConfig(**SMALL, attention_probs_dropout_prob=0.0), attention)
        bert.train(mode == "train")
        torch.manual_seed(1)
        out = bert(**tiny_batch())
        summed_loss(out, tiny_batch()).backward()
        results.append((out.last_hidden_state, bert.layers[0].attention.query.weight.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
    assert results[0][1].norm() > 0


def test_attention_dropout_acts_in_training_on_both_paths(bert):
    for layer in bert.layers:
        layer.attention.dropout, layer.dropout.p = 0.5, 0.0
    bert.dropout.p = 0.0
    for attention in ("sdpa", "eager"):
        bert.use_attention(attention)
        bert.train()
        assert not torch.equal(bert(**tiny_batch())[0], bert(**tiny_batch())[0]), attention
        bert.eval()
        assert torch.equal(bert(**tiny_batch())[0], bert(**tiny_batch())[0]), attention


def test_padding_changes_nothing(bert):
    batch = tiny_batch()
    together = bert(**batch)
    for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
        alone = bert(**{name: tensor[row:row + 1, :length] for name, tensor in batch.items()})
        torch.testing.assert_close(together.last_hidden_state[row, :length],
                                   alone.last_hidden_state[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0],
                                   atol=1e-5, rtol=0)
        assert not together.last_hidden_state[row, length:].any()


def test_linear_layers_compute_real_tokens_only_and_the_last_layer_its_output_rows(bert):
    seen = {}
    for name, module in bert.named_modules():
        if name.endswith(("fc_in", "norm", "query", "key")):
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: len(x[0])}))
    batch = tiny_batch()
    tokens, sequences = int(batch["attention_mask"].sum()), len(batch["input_ids"])
    hidden, layout = bert.embed(**batch)
    assert bert.encode(hidden, layout, output_rows=layout.cls_rows()).shape == (sequences, 32)
    few = {f"layers.2.{name}" for name in
           ("ffn.fc_in", "attention.query", "attention_norm", "output_norm")}
    assert {name for name, rows in seen.items() if rows == sequences} == few
    assert {rows for name, rows in seen.items() if name not in few} == {tokens}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_computing_few_rows_equals_computing_all(bert, attention):
    bert.use_attention(attention)
    batch = tiny_batch()
    some = torch.zeros_like(batch["attention_mask"])
    some[0, [0, 3, 6]] = some[1, 11] = some[3, 2] = 1        # none of sequence 2
    gradients = []
    for picked in (False, True):
        bert.zero_grad()
        hidden, layout = bert.embed(**batch)
        read = layout.select(some)
        rows = bert.encode(hidden, layout, output_rows=read if picked else None)
        rows = rows if picked else rows[read.rows]
        (rows ** 3).sum().backward()
        gradients.append((rows, {name: p.grad.clone() for name, p in bert.named_parameters()
                                 if p.grad is not None}))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)
    assert len(gradients[0][0]) == 5


def test_forward_is_made_of_parts_that_anyone_may_call(bert):
    batch = tiny_batch()
    hidden, layout = bert.embed(**batch)
    for layer in bert.layers:
        hidden = layer(hidden, layout)
    assert torch.equal(layout.pad(hidden), bert(**batch).last_hidden_state)


def test_own_embeddings_take_the_place_of_ids(bert):
    batch = tiny_batch()
    words = bert.word_embeddings(batch["input_ids"])
    ids = batch.pop("input_ids")
    assert torch.equal(bert(inputs_embeds=words, **batch)[0], bert(ids, **batch)[0])
    assert torch.equal(bert(inputs_embeds=words)[0], bert(ids)[0])
    with pytest.raises(UserError, match="either"):
        bert(ids, inputs_embeds=words)


def test_a_masked_head_gives_nothing(bert):
    batch = tiny_batch()
    mask = torch.ones(3, 4)
    assert torch.equal(bert(**batch, head_mask=mask)[0], bert(**batch)[0])
    mask[1, 2] = 0
    masked = bert(**batch, head_mask=mask)[0]
    each = torch.stack([torch.ones(3, 4), mask, mask, torch.ones(3, 4)])
    mixed = bert(**batch, head_mask=each)[0]
    plain = bert(**batch)[0]
    torch.testing.assert_close(mixed, torch.stack([plain[0], masked[1], masked[2], plain[3]]))
    with torch.no_grad():                                    # head 2 has the numbers 16..23
        bert.layers[1].attention.output.weight[:, 16:24] = 0
    torch.testing.assert_close(bert(**batch)[0], masked)
    assert not torch.allclose(plain, masked)
    with pytest.raises(UserError, match="3 layers"):
        bert(**batch, head_mask=torch.ones(2, 4))


def test_layout_pads_and_unpads_any_mask():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]])
    layout = Layout(mask)
    rows = torch.arange(1., 8.)[:, None]
    assert torch.equal(layout.unpad(layout.pad(rows)), rows)
    assert layout.pad(rows)[..., 0].tolist() == [[1, 2, 0, 0], [0, 3, 4, 5], [6, 0, 7, 0]]
    assert layout.sequence.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert layout.positions.tolist() == [0, 1, 1, 2, 3, 0, 2]
    assert layout.cls_rows().rows.tolist() == [0, 2, 5]


def test_impossible_input_is_an_error_that_says_why(bert):
    with pytest.raises(UserError, match="21 tokens is longer than the model's 20"):
        bert(torch.ones(1, 21, dtype=torch.long))
    with pytest.raises(UserError, match="every token of sequence 1"):
        bert(torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [0, 0, 0]]))
    with pytest.raises(UserError, match="no attention 'flash'; there are sdpa, eager"):
        bert.use_attention("flash")
    with pytest.raises(UserError, match=r"input is \[2, 3\] but attention_mask is \[2, 2\]"):
        bert(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 2))


def test_bf16_autocast_runs_every_linear_in_bf16_and_keeps_fp32_weights(bert):
    seen = set()
    for layer in bert.layers:
        layer.ffn.fc_in.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = bert.train()(**tiny_batch())
    summed_loss(out, tiny_batch()).backward()
    assert seen == {torch.bfloat16}
    assert {p.grad.dtype for p in bert.parameters()} == {torch.float32}


def test_lengths_share_a_grid_where_another_would_save_little(monkeypatch):
    def buckets(*lengths):
        return len(Layout(torch.arange(90) < torch.tensor(lengths)[:, None]).length_buckets)

    assert buckets(20, 13) == 2 and buckets(20, 14) == 0     # 14 is 0.7 of 20
    monkeypatch.undo()                                       # of conftest.py
    assert buckets(71, 30) == 2 and buckets(60, 30) == 0     # 4,141 and 2,700 pairs less
    assert buckets(60, 30, 30) == 2


def test_attention_in_length_buckets_is_attention_on_one_grid():
    torch.manual_seed(0)
    bert = Bert(BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2,
                           num_attention_heads=4, intermediate_size=48)).eval()
    ids, mask = torch.randint(0, 60, (7, 60)), torch.zeros(7, 60, dtype=torch.long)
    for row, length in enumerate([20, 60, 3, 41, 58, 19, 2]):
        mask[row, :length] = 1
    grouped, whole = Layout(mask), Layout(mask)
    assert [bucket.mask.shape for bucket in grouped.length_buckets] == [(2, 60), (1, 41), (2, 20),
                                                                        (2, 3)]
    whole.length_buckets = []
    results = [bert.encode(bert.embed(ids, layout)[0], layout) for layout in (grouped, whole)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)
    assert Layout(torch.ones(3, 60)).length_buckets == [] == grouped.to("meta").length_buckets
