"""The places where another method changes the encoder: feed-forward network, layout, walk over the
layers, attention function, embeddings."""

import math
import warnings

import pytest
import torch
from parity import SMALL, tiny_batch
from safetensors.torch import load_file
from torch import nn

from bert import Bert, BertConfig, DenseLayout, Layout, UserError
from bert.attention import ATTENTIONS, eager_attention


def small_bert(**fields):
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL | fields)).eval()


@pytest.fixture
def bert():
    return small_bert()


def ragged(lengths, tokens):
    """→ ids and mask [batch, tokens] with these numbers of real tokens."""
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, 60, mask.shape, generator=generator), mask


def close(one, other, atol=3e-6):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


# ---- the feed-forward network

class Doubled(nn.Module):
    """Another feed-forward network: it calls the halves of the one whose place it takes."""

    def __init__(self, ffn):
        super().__init__()
        self.inner = ffn

    def forward(self, hidden, layout):
        assert len(hidden) == len(layout)
        return 2 * self.inner.project(self.inner.activate(hidden, layout), layout)


def test_another_module_takes_the_place_of_the_feed_forward_network(bert, tmp_path):
    batch, plain = tiny_batch(), bert(**tiny_batch())[0]
    bert.layers[1].ffn = Doubled(bert.layers[1].ffn)
    found = bert(**batch)[0]
    assert not torch.allclose(found, plain)
    hidden, layout = bert.embed(**batch)
    first = bert.encode(hidden, layout, output_rows=layout.cls_rows())
    close(first, found[:, 0], atol=1e-5)
    with pytest.raises(UserError, match=r"missing encoder\.layer\.1\.intermediate\.dense\.weight"):
        bert.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with torch.no_grad():
        bert.layers[1].ffn.inner.fc_out.weight /= 2
        bert.layers[1].ffn.inner.fc_out.bias /= 2
    close(bert(**batch)[0], plain, atol=1e-5)


# ---- layout.keep

LENGTHS = [20, 60, 3, 41, 58, 19, 2]


@pytest.mark.parametrize("sequences", [[0, 2, 5], [6, 1, 3], [4], list(range(7))])
def test_kept_sequences_go_on_as_in_the_whole_batch(sequences):
    bert = small_bert(max_position_embeddings=60)
    ids, mask = ragged(LENGTHS, 60)
    mask[3, 0] = mask[1, 5:9] = 0                            # padding on the left, and a hole
    hidden, layout = bert.embed(ids, mask)
    assert layout.length_buckets
    hidden = bert.layers[0](hidden, layout)
    whole = layout.pad(bert.encode(hidden, layout, start=1))
    kept = layout.keep(torch.tensor(sequences))
    some = hidden.index_select(0, kept.rows)
    assert kept.batch == len(sequences) and kept.tokens == max(LENGTHS[n] for n in sequences)
    assert bool(kept.length_buckets) == (len(sequences) > 1)             # buckets of its own
    found = bert.encode(some, kept, start=1)
    close(kept.pad(found), whole[sequences, :kept.tokens])
    assert torch.equal(kept.positions, layout.positions[kept.rows])
    first = bert.encode(some, kept, output_rows=kept.cls_rows(), start=1)
    close(first, torch.stack([whole[n, mask[n].argmax()] for n in sequences]))
    assert torch.equal(layout.sequence[kept.rows], torch.tensor(sequences)[kept.sequence])


def test_sequences_leave_one_after_the_other():
    bert = small_bert(max_position_embeddings=60)
    ids, mask = ragged(LENGTHS, 60)
    hidden, layout = bert.embed(ids, mask)
    whole = layout.pad(bert.encode(hidden, layout))
    left = torch.arange(7)
    for number, layer, _ in bert.walk():
        hidden = layer(hidden, layout)
        stay = torch.arange(len(left))[:len(left) - 2 + number % 2]
        layout = layout.keep(stay)
        hidden, left = hidden.index_select(0, layout.rows), left[stay]
    close(layout.pad(hidden), whole[left, :layout.tokens])


@pytest.mark.parametrize("adapters, kept", [
    ([("a", 4)], [("a", 3)]),
    ([("a", 1), (None, 2), ("b", 1)], [("b", 1), (None, 2)]),
    ([("a", 2), ("b", 2)], [("b", 1), ("a", 1), ("b", 1)]),
])
def test_kept_sequences_keep_their_adapters(adapters, kept):
    layout = Layout(tiny_batch()["attention_mask"]).with_adapters(adapters)
    found = layout.keep(torch.tensor([3, 1, 2]))
    assert found.adapters == kept
    assert [name for name, _ in found.adapter_rows] == [name for name, _ in kept]
    assert sum(rows for _, rows in found.adapter_rows) == len(found) == 9 + 12 + 1
    assert found.cls_rows().adapter_rows == kept             # one row for each sequence


def test_what_cannot_be_kept_is_a_sentence():
    mask = tiny_batch()["attention_mask"]
    with pytest.raises(UserError, match="DenseLayout cannot drop sequences"):
        DenseLayout(mask).keep(torch.tensor([0]))
    hidden, layout = small_bert().embed(**tiny_batch())
    kept = layout.keep(torch.tensor([0, 3]))
    with pytest.raises(UserError, match="output_rows is of 4 sequences, layout of 2"):
        small_bert().encode(hidden[kept.rows], kept, output_rows=layout.cls_rows())
    for wrong in (torch.tensor([], dtype=torch.long), torch.tensor([True, False]), [0, 1],
                  torch.tensor(0), torch.tensor([0.0])):
        with pytest.raises(UserError, match="^sequences "):
            Layout(mask).keep(wrong)


# ---- positions and attention functions

@pytest.mark.parametrize("kind", [Layout, DenseLayout])
def test_a_selection_keeps_the_positions_of_its_rows(kind):
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]])
    layout = kind(mask)
    grid = layout.pad(layout.positions)
    assert grid.tolist() == [[0, 1, 0, 3], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert layout.cls_rows().positions.tolist() == [0, 1, 0]
    some = layout.select(torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]))
    assert some.positions.tolist() == [1, 3, 2]
    assert some.pad(some.positions).tolist() == [[1, 3], [2, 0], [0, 0]]
    assert some.to("meta").positions.is_meta


def windowed(query, key, value, key_mask=None, dropout=0.0, layouts=None, width=2):
    rows, columns = (layout.pad(layout.positions) for layout in layouts)     # [B, Tq], [B, Tk]
    near = (rows[:, None, :, None] - columns[:, None, None, :]).abs() <= width   # [B, 1, Tq, Tk]
    near = near if key_mask is None else near & key_mask
    return eager_attention(query, key, value, near, dropout)


def textbook(bert, ids, mask, width=2):
    """The encoder on padded [B, T, H], with |i - j| <= width: no layout, no selection."""
    positions = torch.arange(ids.size(1))
    near = (positions[:, None] - positions).abs() <= width
    allowed = (near & mask.bool()[:, None, :])[:, None]                          # [B, 1, T, T]
    zeros = torch.zeros_like(ids)
    hidden = bert.embedding_norm(bert.word_embeddings(ids) + bert.token_type_embeddings(zeros)
                                 + bert.position_embeddings(positions))
    for layer in bert.layers:
        part = layer.attention
        query, key, value = (linear(hidden).unflatten(2, (4, 8)).transpose(1, 2)
                             for linear in (part.query, part.key, part.value))
        scores = (query @ key.mT / math.sqrt(8)).masked_fill(~allowed, -1e9)
        context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = layer.attention_norm(hidden + part.output(context))
        inner = bert.layers[0].ffn.activation(layer.ffn.fc_in(hidden))
        hidden = layer.output_norm(hidden + layer.ffn.fc_out(inner))
    return hidden


@pytest.mark.parametrize("holes", [False, True], ids=["padding on the right", "holes"])
@pytest.mark.parametrize("way", ["packed", "buckets", "dense", "dense cls", "cls", "select",
                                 "kept"])
def test_a_windowed_attention_is_the_textbooks_on_every_path(way, holes, monkeypatch):
    monkeypatch.setitem(ATTENTIONS, "windowed", windowed)
    bert = small_bert(max_position_embeddings=60)
    bert.use_attention("windowed")
    ids, mask = ragged(LENGTHS, 60)
    if holes:
        mask[3, :7] = mask[1, 15:19] = 0
    expected = textbook(bert, ids, mask)
    layout = (DenseLayout if "dense" in way else Layout)(mask)
    assert bool(layout.length_buckets) == ("dense" not in way)
    if way == "packed":
        layout.length_buckets = []
    hidden, _ = bert.embed(ids, layout)
    if way == "kept":
        hidden = bert.layers[0](hidden, layout)
        layout = layout.keep(torch.tensor([3, 1, 5]))
        hidden, expected = hidden.index_select(0, layout.rows), expected[[3, 1, 5], :60]
    read = {"cls": layout.cls_rows(), "dense cls": layout.cls_rows(),
            "select": layout.select(ids % 3 == 0) if way == "select" else None}.get(way)
    found = bert.encode(hidden, layout, output_rows=read, start=way == "kept")
    rows = layout.unpad(expected) if read is None else layout.unpad(expected)[read.rows]
    real = slice(None) if "dense" not in way or read else mask.bool().flatten()
    close(found[real], rows[real], atol=1e-5)
    found.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in bert.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["sdpa", "eager", "r-softmax"])
def test_an_attention_alone_neither_masks_nor_drops(name):
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    function = ATTENTIONS[name]
    if name == "r-softmax":
        function = function(None)
        function.zeros = 0
    close(function(query, key, value), (query @ key.mT / math.sqrt(8)).softmax(dim=-1) @ value)


class Temperature(nn.Module):
    """softmax(QKᵀ/(τ√d)) V with a learned temperature τ for each head."""

    def __init__(self, config):
        super().__init__()
        self.beta = nn.Parameter(torch.rand(config.num_attention_heads) + 0.5)   # 1/τ
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, query, key, value, key_mask=None, dropout=0.0, layouts=None):
        self.calls += 1
        return eager_attention(query * self.beta[:, None, None], key, value, key_mask, dropout)


@pytest.fixture
def temperature(monkeypatch):
    monkeypatch.setitem(ATTENTIONS, "temperature", Temperature)
    return "temperature"


def opened(*arguments):
    """→ the model, and the texts of the warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bert = Bert.from_pretrained(*arguments)
    return bert, [str(warning.message) for warning in seen]


def test_parameters_of_an_attention_are_trained_saved_and_loaded(bert, temperature, tmp_path):
    plain = bert(**tiny_batch())[0]
    bert.train().use_attention(temperature)                  # a made model
    names = [n for n, _ in bert.named_parameters() if "attention_function" in n]
    assert names == [f"layers.{n}.attention.attention_function.beta" for n in range(3)]
    assert bert.layers[2].attention.attention_function.training
    before = bert.state_dict()[names[1]].clone()
    optimizer = torch.optim.SGD(bert.parameters(), lr=1e-2)
    bert(**tiny_batch())[0].square().mul(torch.arange(32)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, bert.state_dict()[names[1]])
    after = bert.state_dict()[names[1]].clone()
    bert.eval().use_attention(temperature)                   # the same again keeps its parameters
    assert torch.equal(bert.state_dict()[names[1]], after)
    found = bert(**tiny_batch())[0]
    assert not torch.allclose(found, plain)

    bert.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["encoder.layer.1.attention.self.attention_function.beta"].shape == (4,)
    again, messages = opened(tmp_path, temperature)
    assert not messages and torch.equal(again(**tiny_batch())[0], found)
    assert again.layers[0].attention.attention_function.calls == 1       # a buffer, not on meta
    again.save_pretrained(tmp_path / "again")

    again.use_attention("eager")                             # a function in a module's place
    assert not any("attention_function" in name for name in again.state_dict())
    again.double().use_attention(temperature)                # beside the layer's weights
    assert again.layers[0].attention.attention_function.beta.dtype == torch.float64


def test_a_checkpoint_without_an_attentions_parameters_gets_new_ones(bert, temperature, tmp_path):
    bert.save_pretrained(tmp_path)
    random = torch.get_rng_state()
    one, messages = opened(tmp_path, temperature)
    assert torch.equal(random, torch.get_rng_state())        # loading draws no random numbers
    assert len(messages) == 1 and "holds no parameters of the attention function" in messages[0]
    torch.manual_seed(9)
    two, _ = opened(tmp_path, temperature)
    assert all(map(torch.equal, one.parameters(), two.parameters()))     # always the same ones
    betas = [layer.attention.attention_function.beta for layer in one.layers]
    assert not torch.equal(betas[0], betas[1]) and all(b.requires_grad for b in betas)


def test_a_checkpoint_of_another_attention_is_a_sentence(bert, temperature, tmp_path, monkeypatch):
    bert.use_attention(temperature)
    bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"layer\.0\.attention\.self\.attention_function\.beta.*"
                                        "Compare the attention it was trained with"):
        Bert.from_pretrained(tmp_path)

    class Gain(Temperature):
        def __init__(self, config):
            super().__init__(config)
            self.gain = self.beta
            del self.beta

    monkeypatch.setitem(ATTENTIONS, "gain", Gain)
    with pytest.raises(UserError, match="missing|unexpected"):
        Bert.from_pretrained(tmp_path, "gain")
    saved = load_file(tmp_path / "model.safetensors")
    del saved["encoder.layer.2.attention.self.attention_function.beta"]
    torch.save(saved, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="missing encoder.layer.2.*function.beta"):
        Bert.from_pretrained(tmp_path, temperature)          # some of them: strict


# ---- the walk, and embeddings of the caller's own

def test_every_layer_is_run_by_the_one_walk(bert, monkeypatch):
    hidden, layout = bert.embed(**tiny_batch())
    read = layout.cls_rows()
    assert [rows for *_, rows in bert.walk(read)] == [None, None, read]
    assert [number for number, *_ in bert.walk(start=2)] == [2]
    middle = bert.layers[0](hidden, layout)
    assert torch.equal(bert.encode(middle, layout, output_rows=read, start=1),
                       bert.encode(hidden, layout, output_rows=read))
    whole = bert.walk
    monkeypatch.setattr(bert, "walk", lambda *given: list(whole(*given))[:2])    # it stops early
    assert torch.equal(bert(**tiny_batch())[0],
                       layout.pad(bert.layers[1](middle, layout)))


@pytest.mark.parametrize("dense", [False, True], ids=["packed", "dense"])
def test_the_gradient_reaches_own_embeddings(bert, dense):
    batch = tiny_batch()
    words = bert.word_embeddings(batch.pop("input_ids")).detach().double().requires_grad_()
    bert.double()

    def loss(words):
        hidden, layout = bert.embed(**batch, inputs_embeds=words, dense=dense)
        return bert.encode(hidden, layout, output_rows=layout.cls_rows()).sin().sum()

    gradient, = torch.autograd.grad(loss(words), words)
    assert not gradient[batch["attention_mask"] == 0].any()
    generator = torch.Generator().manual_seed(0)
    step = 1e-6 * torch.randn(words.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        change = (loss(words + step) - loss(words - step)) / 2
    close(change, (gradient * step).sum(), atol=1e-3 * change.abs().item())
    assert torch.autograd.grad(bert(inputs_embeds=words, **batch)[0].sum(), words)[0].any()


def test_selected_rows_of_a_batch_in_length_buckets_are_those_of_all_rows():
    torch.manual_seed(0)
    bert = Bert(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3,
                           num_attention_heads=4, intermediate_size=64)).eval()
    lengths = torch.tensor([60, 3, 41, 9, 58, 20])
    mask = torch.arange(60) < lengths[:, None]
    ids = torch.randint(50, mask.shape)
    chosen = torch.zeros_like(mask)
    chosen[:, 0] = chosen[0, 59] = chosen[2, 17] = chosen[5, 3] = chosen[5, 19] = True
    hidden, layout = bert.embed(ids, mask)
    rows = layout.select(chosen)
    assert len(layout.length_buckets) > 1 and rows.length_buckets == []
    whole, some = bert.encode(hidden, layout), bert.encode(hidden, layout, output_rows=rows)
    torch.testing.assert_close(some, whole[rows.rows], atol=1e-5, rtol=1e-5)
    for number, length in enumerate(lengths.tolist()):       # and each text as if it were alone
        alone = bert(ids[number:number + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(layout.pad(whole)[number, :length], alone, atol=1e-5, rtol=1e-5)
    kept = layout.keep(torch.tensor([5, 0, 2]))              # buckets of a selection
    assert kept.length_buckets
    again = bert.encode(hidden.index_select(0, kept.rows), kept,
                        output_rows=kept.select(kept.pad(chosen[mask][kept.rows])))
    places = kept.rows[chosen[mask][kept.rows]]
    torch.testing.assert_close(again, whole[places], atol=1e-5, rtol=1e-5)
