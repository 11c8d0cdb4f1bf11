"""Each fast path equals the plain one beside it: dropout, attention on a CPU, the gradient of word
embeddings, joined and cast weights, and grids."""

import copy
import math
import pickle
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bert.attention
from bert import Bert, BertConfig, Layout, UserError, single_query
from bert.attention import eager_attention, sdpa_attention
from bert.cpu_attention import cpu_attention, softmax
from bert.dropout import Dropout, dropout, keep_mask
from bert.linear import (
    PackedLinear,
    join_together,
    one_product,
    product,
    products_for,
    round_up,
)
from bert.memory import KeptMemory
from pruning.removal import remove_heads

LENGTHS = [20, 60, 3, 41, 58, 19, 2]


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)


def ragged(lengths=LENGTHS):
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


# ---- dropout

@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_each_entry_with_its_probability_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    found = dropout(torch.ones(1000, 1001, dtype=dtype), p).float()
    dropped = (found == 0).float()
    error = math.sqrt(p * (1 - p) / found.numel())
    assert abs(dropped.mean() - p) < 4 * error
    close(found[found > 0].unique(), torch.tensor([1 / (1 - p)]), atol=0.02)
    assert abs(found.mean() - 1) < 5 * error / (1 - p) + (0.004 if dtype == torch.bfloat16 else 0)
    for shift in (1, 2, 3, 4, 7, 1001):                      # neighbors, and those of one draw
        flat = dropped.flatten()
        both = (flat[shift:] * flat[:-shift]).mean()
        assert abs(both - p * p) < 5 * error, f"entries {shift} apart depend on each other"
    for axis in (0, 1):
        assert (dropped.mean(dim=axis) - p).abs().max() < 6 * math.sqrt(p * (1 - p) / 1000)


def test_dropout_sends_gradients_where_it_let_values_pass():
    values = torch.randn(50, 7, requires_grad=True)
    found = dropout(values, 0.3)
    found.sum().backward()
    close(values.grad * values.detach(), found.detach(), atol=1e-6)


def test_dropout_follows_the_seed_and_not_the_threads():
    def draw():
        torch.manual_seed(3)
        return dropout(torch.ones(3000, 5), 0.1)

    one, threads = draw(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(one, draw())
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(one, dropout(torch.ones(3000, 5), 0.1))


@pytest.mark.parametrize("p, expected", [(0, 1.0), (1e-7, 1.0), (1, 0.0)])
def test_dropout_of_nothing_or_all(p, expected):
    assert (dropout(torch.ones(400), p) == expected).all()
    assert (Dropout(0.5).eval()(torch.ones(400)) == 1).all()


# ---- attention by hand

@pytest.mark.parametrize("queries", [9, 1])
@pytest.mark.parametrize("shape", [None, (3, 1, 1, 9), (1, 1, None, 9), (3, 4, None, 9), (None, 9)])
@pytest.mark.parametrize("numbers", [False, True])
def test_attention_on_a_cpu_is_the_equation_with_its_gradients(queries, shape, numbers,
                                                               monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 4, tokens, 8, generator=generator, requires_grad=True)
                         for tokens in (queries, 9, 9))
    mask = keep_mask((12, queries, 9), 0.25, torch.float32)
    monkeypatch.setattr(bert.cpu_attention, "keep_mask", lambda *_: mask)
    keys = None if shape is None else torch.rand(
        [size or queries for size in shape], generator=generator) < 0.6
    bias = keys if keys is None or not numbers else torch.zeros(keys.shape).masked_fill(
        ~keys, torch.finfo(torch.float32).min)

    def plain(scores, dim):
        return torch.softmax(scores, dim) * mask.view(3, 4, queries, 9) / 0.75

    gradient = torch.randn(3, 4, queries, 8, generator=generator)
    results = []
    for context in (sdpa_attention(query, key, value, bias, 0.25),
                    eager_attention(query, key, value, keys, probabilities=plain)):
        results.append([context, *torch.autograd.grad(context, (query, key, value), gradient)])
    for found, expected in zip(*results):
        close(found, expected)


def test_a_bias_of_attention_learns_with_dropout_too():
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    bias = torch.zeros(4, 7, 7, requires_grad=True)
    sdpa_attention(query, key, value, bias, 0.1).square().sum().backward()
    assert bias.grad.abs().sum() > 0


def test_a_layout_serves_passes_in_and_out_of_inference_mode():
    model, layout, results = small().eval(), Layout(ragged()), []
    hidden = torch.randn(len(layout), 32)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            results.append(model.encode(hidden, layout).detach().clone())
    for found in results:
        close(found, results[0])


@pytest.mark.parametrize("keys", [1, 15, 16, 40])
def test_the_softmax_of_few_numbers_is_torchs(keys):
    scores = 30 * torch.randn(6, 5, keys)
    close(softmax(scores), torch.softmax(scores, dim=-1))
    assert softmax(scores).is_contiguous()


def test_attention_on_a_cpu_is_the_same_under_autocast():
    query, key, value = torch.randn(3, 2, 4, 7, 8, requires_grad=True)
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled):
            context = cpu_attention(query, key, value, None, 0.1)
            results.append([context, *torch.autograd.grad(context.sum(), (query, key, value))])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("buckets", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, [5], [4, 4, 4]])
def test_attention_on_packed_rows_is_that_on_grids(lengths, buckets, monkeypatch):
    """With dropout that drops nothing, so that both are equal whatever is drawn."""
    monkeypatch.setattr(bert.cpu_attention, "keep_mask", lambda shape, p, dtype: torch.ones(shape))
    layout = Layout(ragged(lengths))
    if not buckets:
        layout.length_buckets = []
    attention = small().layers[0].attention.train()
    rows, results = torch.randn(len(layout), 96, requires_grad=True), []
    gradient = torch.randn(len(layout), 32)
    for way in ("packed", "grids"):
        if way == "packed":
            context = attention.attend_packed(layout, layout, rows)
        else:
            context = layout.from_grids([
                attention.attend(where, where, *attention.split_heads(grid))
                for where, grid in zip(layout.length_buckets or [layout], layout.to_grids(rows))])
        results.append([context, *torch.autograd.grad(context, rows, gradient)])
    for found, expected in zip(*results):
        close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_types_train_with_dropout(dtype):
    model, mask = small().train().to(dtype), ragged()
    out = model(torch.zeros_like(mask), mask)[0]
    out.float().square().sum().backward()
    assert out.dtype == dtype and model.word_embeddings.weight.grad.dtype == dtype
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_transform_of_torch_takes_the_plain_way():
    model, ids = small(), torch.randint(50, (2, 7))
    state = dict(model.train().named_parameters())

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (ids,))[0].square().mean()

    assert torch.func.grad(loss)(state)["layers.0.attention.query.weight"].isfinite().all()


# ---- one query a sequence

@pytest.mark.parametrize("what", ["plain", "no padding", "head mask", "pruned heads", "holes"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cls_attends_without_keys_and_values_to_the_same_outputs_and_gradients(
        what, precision, monkeypatch):
    model = small(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if what == "pruned heads":
        remove_heads(model, {1: [0, 2]})
    mask, results = ragged([9, 9] if what == "no padding" else LENGTHS), []
    if what == "holes":
        mask[0, :3] = mask[3, 5:9] = 0
    ids, heads = torch.randint(50, mask.shape), torch.rand(2, 4) if what == "head mask" else None
    fits, used = single_query.fits, []
    for take in (lambda *more: used.append(fits(*more)) or used[-1], lambda *_: False):
        monkeypatch.setattr(single_query, "fits", take)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden, layout = model.train().embed(ids, mask)
            out = model.encode(hidden, layout, heads, layout.cls_rows())
        out.pow(3).sum().backward()
        results.append([out, *(p.grad for n, p in model.named_parameters() if "pooler" not in n)])
    assert used == [True]
    error = 1e-5 if precision == "fp32" else 0.05
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=error,
                                   atol=error * max(1e-1, expected.abs().max().item()))


def test_dropout_of_the_single_query_keeps_the_mean():
    model, mask = small(attention_probs_dropout_prob=0.4, hidden_dropout_prob=0.0), ragged([9, 5])
    hidden, layout = model.eval().embed(torch.randint(50, mask.shape), mask)
    attention, rows = model.layers[1].attention, layout.cls_rows()
    query = attention.query(hidden.index_select(0, rows.rows))
    expected = single_query.attend(attention, query, hidden, layout)
    model.train()
    draws = torch.stack([single_query.attend(attention, query, hidden, layout)
                         for _ in range(2000)])
    assert draws.std(dim=0).min() > 0
    assert ((draws.mean(dim=0) - expected).abs() < 5 * draws.std(dim=0) / 2000 ** 0.5).all()


@pytest.mark.parametrize("change", ["hook", "two queries", "all rows", "double", "other class"])
def test_keys_and_values_are_computed_where_something_reads_them(change):
    model, mask = small(), ragged()
    layout, attention = Layout(mask), model.layers[1].attention
    rows = layout.cls_rows()
    assert single_query.fits(attention, rows)
    if change == "hook":
        attention.value.register_forward_hook(lambda *_: None)
    elif change == "two queries":
        rows = layout.select(layout.mask & (layout.mask.cumsum(dim=1) <= 2))
    elif change == "all rows":
        rows = layout
    elif change == "double":
        model.double()
    else:
        attention.key = nn.Linear(32, 32)
    assert not single_query.fits(attention, rows)


# ---- attention of short sequences in inference

@pytest.mark.parametrize("tokens, calls", [(48, 2), (49, 0)])
def test_short_sequences_attend_by_hand_without_dropout(tokens, calls, monkeypatch):
    model, mask, called = small().eval(), torch.ones(3, tokens), []
    ids, results = torch.randint(50, mask.shape), []
    packed = bert.attention.packed_cpu_attention
    monkeypatch.setattr(bert.attention, "packed_cpu_attention",
                        lambda *more: called.append(1) or packed(*more))
    with torch.no_grad():
        inference = model(ids, mask)[0]
    assert len(called) == calls
    for short in (bert.attention.SHORT, 0):
        monkeypatch.setattr(bert.attention, "SHORT", short)
        model.zero_grad()
        out = model(ids, mask)[0]
        out.pow(3).sum().backward()
        results.append([out, *(p.grad for n, p in model.named_parameters() if "pooler" not in n)])
    assert torch.equal(inference, results[0][0]) and len(called) == 2 * calls
    for found, expected in zip(*results):
        close(found, expected, atol=1e-6 * max(1, expected.abs().max().item()))


# ---- products

def three(width=8):
    torch.manual_seed(0)
    return tuple(PackedLinear(width, n) for n in (4, 6, 4))


def test_one_product_of_three_matrices_is_three_products():
    modules, rows = three(), torch.randn(5, 8, requires_grad=True)
    layout = Layout(torch.ones(1, 5))
    joined = one_product(modules, rows, layout)
    apart = torch.cat([module(rows, layout) for module in modules], dim=1)
    close(joined, apart)
    parameters = [rows, *(p for module in modules for p in module.parameters())]
    for found, expected in zip(*(torch.autograd.grad(out.square().sum(), parameters)
                                 for out in (joined, apart))):
        close(found, expected)


@pytest.mark.parametrize("change", ["hook", "pre-hook", "patch", "class"])
def test_a_changed_matrix_is_called_by_itself(change):
    modules, rows, called = list(three()), torch.randn(5, 8), []
    if change == "hook":
        modules[1].register_forward_hook(lambda *_: called.append(1))
    elif change == "pre-hook":
        modules[1].register_forward_pre_hook(lambda *_: called.append(1))
    elif change == "patch":
        modules[1].forward = lambda rows, layout: called.append(1) or rows[:, :6]
    else:
        modules[1] = nn.Module()
        modules[1].forward = lambda rows, layout: called.append(1) or rows[:, :6]
    assert one_product(tuple(modules), rows, Layout(torch.ones(1, 5))).shape == (5, 14)
    assert called == [1]


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_in_bf16_is_torchs_for_any_number_of_rows(count, dtype):
    torch.manual_seed(0)
    rows = torch.randn(count, 24, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(16, 24).bfloat16(), torch.randn(16).bfloat16()
    gradient, results = torch.randn(count, 16).bfloat16(), []
    for function in (product, lambda r, *more: F.linear(r.bfloat16(), *more)):
        inputs = [rows, *(p.clone().requires_grad_() for p in (weight, bias))]
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, gradient)])
    for found, expected in zip(*results):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=0.06, rtol=0.02)


def test_rows_that_begin_a_longer_matrix_are_not_copied_without_gradients():
    long, short = torch.randn(64, 24).bfloat16(), torch.randn(40, 24).bfloat16()
    assert round_up(long[:40], torch.bfloat16, extend=True).data_ptr() == long.data_ptr()
    for rows, extend in ((long[:40], False), (short, True), (long[8:48], True),
                         (long[:40].float(), True), (long[:40, :20], True)):
        copy = round_up(rows, torch.bfloat16, extend)
        assert copy.data_ptr() != rows.data_ptr()
        assert torch.equal(copy[:len(rows)], rows.bfloat16()) and not copy[len(rows):].any()


@pytest.mark.parametrize("hook", [None, "own", "global"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_an_activation_overwrites_only_what_nobody_reads(activation, hook):
    model, mask, kept = small(hidden_act=activation).eval(), ragged(), []
    ffn, rows = model.layers[0].ffn, torch.randn(int(mask.sum()), 32)
    hooks = {"own": ffn.fc_in.register_forward_hook,
             "global": torch.nn.modules.module.register_module_forward_hook}
    handle = hooks[hook](lambda module, arguments, output: kept.append(output)
                         if module is ffn.fc_in else None) if hook else None
    expected = ffn.activation(F.linear(rows, ffn.fc_in.weight, ffn.fc_in.bias))
    with torch.no_grad():
        found = ffn.activate(rows, Layout(mask))
    assert torch.equal(found, expected) and torch.equal(ffn.activate(rows, Layout(mask)), expected)
    if handle:
        handle.remove()
    assert len(kept) == (2 if hook else 0)
    for rows_kept in kept:
        close(ffn.activation(rows_kept), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_prepared_once_while_they_are_fixed(precision, monkeypatch):
    model, mask, calls = small().eval(), ragged(), []
    ids = torch.randint(50, mask.shape)
    monkeypatch.setattr("bert.model.products_for",
                        lambda *a: calls.append(1) or products_for(*a))

    def passes(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.no_grad():
            return [model(ids, mask).last_hidden_state for _ in range(count)]

    before = passes(2)
    alone = len(calls)
    with model.fixed_weights():
        within = passes(3)
    assert (alone, len(calls) - alone) == (2 if precision == "bf16" else 0, 1)
    assert all(torch.equal(out, before[0]) for out in (*before, *within))
    with torch.no_grad():
        model.layers[0].attention.query.weight += 1
    assert not torch.equal(passes(1)[0], before[0])          # outside it they may change
    with model.fixed_weights():                              # and with gradients they do
        loss = model.train()(ids, mask).last_hidden_state.square().sum()
        loss.backward()
        assert model.layers[0].attention.query.weight.grad is not None and not model.prepared


def test_neither_a_copy_nor_a_new_hook_is_served_by_prepared_weights():
    model, mask, called = small().eval(), ragged(), []
    ids = torch.randint(50, mask.shape)
    with torch.no_grad(), model.fixed_weights():
        first = model(ids, mask).last_hidden_state
        with model.fixed_weights():
            model(ids, mask)
        assert model.prepared                                # the inner context ended nothing
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other.layers[0].attention.query.weight += 1
            changed = other(ids, mask).last_hidden_state
            close(changed, load_state(small().eval(), other)(ids, mask).last_hidden_state)
        hook = model.layers[0].attention.query.register_forward_hook(lambda *_: called.append(1))
        close(model(ids, mask).last_hidden_state, first)
        hook.remove()
    assert called == [1] and model.prepared is None


def load_state(model, other):
    model.load_state_dict(other.state_dict())
    return model


def test_threads_may_share_a_layout():
    model, layout, wrong = small().eval(), Layout(ragged()), []
    inputs = torch.randn(4, len(layout), 32)
    with torch.no_grad():
        expected = [model.encode(hidden, layout) for hidden in inputs]

    def work(number):
        with torch.no_grad():
            for _ in range(30):
                found = model.encode(inputs[number], layout)
                wrong.extend([number] * (not torch.allclose(found, expected[number], atol=1e-5)))

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_other_widths_may_share_a_layout(dtype):
    layout = Layout(ragged())
    with torch.no_grad():
        for _ in range(2):
            for width in (32, 64):
                model = small(hidden_size=width).eval()
                hidden = torch.randn(len(layout), width)
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    found = model.encode(hidden, layout)
                    close(found, model.encode(hidden, Layout(ragged())))


@pytest.mark.parametrize("gone", [{"pruned_heads": {0: [0, 1, 2, 3]}}, {"pruned_neurons": {0: 64}}])
def test_a_layer_without_heads_or_neurons_computes_in_bf16(gone):
    model, mask = small(**gone).eval(), ragged()
    ids = torch.randint(50, mask.shape)
    with torch.no_grad():
        expected = model(ids, mask).last_hidden_state
        found = model.bfloat16()(ids, mask).last_hidden_state
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)


def test_second_derivatives_in_bf16_are_those_of_torch_or_an_error():
    results, (r, w, b) = [], (torch.randn(32, *s).bfloat16() for s in ((4,), (4,), ()))
    for function in (product, F.linear):
        rows, weight = r.clone().requires_grad_(), w.clone().requires_grad_()
        first, = torch.autograd.grad(function(rows, weight, b).float().pow(3).sum(), weight,
                                     create_graph=True)
        results.append(torch.autograd.grad(first.float().square().sum(), (rows, weight)))
    for found, expected in zip(*results):
        assert (found - expected).norm() < 0.02 * expected.norm()
    rows = r[:5].clone().requires_grad_()                    # these are copied, which loses them
    out = product(rows, w.requires_grad_(), b)
    with pytest.raises(UserError, match="use float32"):
        torch.autograd.grad(out.float().pow(3).sum(), w, create_graph=True)


def test_weights_that_were_cast_together_have_second_derivatives():
    weights, results = [torch.randn(3, 4, requires_grad=True), torch.randn(2, 4)], []
    for join in (lambda group: join_together([group], torch.bfloat16, KeptMemory())[0],
                 lambda group: torch.cat(group).bfloat16()):
        first, = torch.autograd.grad(join(weights).float().pow(3).sum(), weights[0],
                                     create_graph=True)
        results.append([first, *torch.autograd.grad(first.square().sum(), weights[0])])
    for found, expected in zip(*results):
        close(found, expected)


def small(**changes):
    torch.manual_seed(0)
    return Bert(BertConfig(**{"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
                              "num_attention_heads": 4, "intermediate_size": 64,
                              "max_position_embeddings": 64, **changes}))


@pytest.mark.parametrize("few", [False, True])
def test_weights_cast_together_give_the_gradients_of_autocast(few, monkeypatch):
    model, mask = small(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), ragged()
    ids, results = torch.randint(50, mask.shape), []
    for cast in (products_for, lambda *_: {}):
        monkeypatch.setattr("bert.model.products_for", cast)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            hidden, layout = model.train().embed(ids, mask)
            rows = layout.cls_rows() if few else None
            out = model.encode(hidden, layout, output_rows=rows)
        out.square().sum().backward()
        results.append([out, *(p.grad for n, p in model.named_parameters() if "pooler" not in n)])
    for found, expected in zip(*results):
        assert found.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05,
                                   atol=0.05 * expected.abs().max().item())


def test_all_weights_are_cast_by_one_operation():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(word in str(function) for word in ("_foreach_copy_", "_to_copy")):
                self.seen.append((str(function), tuple(getattr(args[0], "shape", ()))))
            return function(*args, **(kwargs or {}))

    model, mask = small().eval(), ragged()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), Casts() as casts:
        model.encode(*model.embed(torch.zeros_like(mask), mask))
    assert [name for name, _ in casts.seen].count("aten._foreach_copy_.default") == 1
    sizes = {tuple(p.shape) for p in model.layers.parameters() if p.dim() == 2}
    assert not sizes & {shape for _, shape in casts.seen}


# ---- grids

@pytest.mark.parametrize("buckets", [True, False])
def test_grids_hold_the_rows_at_their_cells(buckets):
    layout = Layout(ragged())
    if not buckets:
        layout.length_buckets = []
    rows = torch.randn(len(layout), 5, requires_grad=True)
    grids = layout.to_grids(rows)
    for grid, where in zip(grids, layout.length_buckets or [layout]):
        own = rows if where is layout else rows[where.rows]
        close(where.unpad(grid), own)
    close(layout.from_grids(grids), rows)
    weights = torch.randn(rows.shape)
    (layout.from_grids(grids) * weights).sum().backward()
    close(rows.grad, weights)


@pytest.mark.parametrize("train", [False, True])
def test_a_text_that_is_no_number_spoils_no_other(train):
    model, mask = small().train(train), ragged()
    words = torch.randn(*mask.shape, 32)
    words[1, 3] = float("nan")
    out = model(inputs_embeds=words, attention_mask=mask)[0]
    finite = out.isfinite().flatten(1).all(dim=1)
    assert finite.tolist() == [n != 1 for n in range(len(LENGTHS))]
