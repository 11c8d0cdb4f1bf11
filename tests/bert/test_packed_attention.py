"""Attention on packed rows: equal to the grid's, taken where it can be, and without a wait.

A CPU has no kernel for packed rows. There torch's nested tensors take the kernels' place: they read
the same arguments, so offsets and longest lengths are tested. The kernels run where there is a GPU.
"""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import NoWaiting
from parity import SMALL
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bert import Bert, BertConfig, DenseLayout, Layout
from bert import packed_attention as packed
from bert.attention import eager_attention, sdpa_attention

LENGTHS = [20, 1, 3, 41, 38, 19, 2]
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def nested_kernel(query, key, value, query_offsets, key_offsets, max_query, max_key, dropout):
    """The arguments and result of flash_kernel, by torch's nested tensors."""
    def nested(rows, offsets, longest):
        assert int(offsets.diff().max()) <= longest
        return torch.nested.nested_tensor_from_jagged(
            rows.contiguous(), offsets, min_seqlen=1, max_seqlen=longest).transpose(1, 2)

    context = F.scaled_dot_product_attention(
        nested(query, query_offsets, max_query), nested(key, key_offsets, max_key),
        nested(value, key_offsets, max_key), dropout_p=dropout)
    return context.transpose(1, 2).values()


def mapped(layout, function):
    """→ the layout with function(tensor) in each tensor's place"""
    return layout.with_tensors({name: function(t) for name, t in layout.tensors().items()})


def pretend_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(packed, "is_right", lambda *arguments: True)


@pytest.fixture
def calls(monkeypatch):
    """Attend on packed rows, on the CPU too → the list of calls, [M, N] each."""
    seen = []

    def attend(query, key, value, num_heads, query_layout, key_layout, dropout=0.0):
        if not packed.choose_kernel(None, torch.float32, 8, query_layout, key_layout):
            return None
        seen.append([len(query), len(key)])
        rows = (part.unflatten(-1, (num_heads, -1)) for part in (query, key, value))
        return nested_kernel(*rows, query_layout.offsets, key_layout.offsets,
                             query_layout.tokens, key_layout.tokens, dropout).flatten(1)

    pretend_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr("bert.attention.packed_attention", attend)
    monkeypatch.setattr("bert.single_query.fits", lambda *arguments: False)      # as on a GPU
    monkeypatch.setattr("bert.attention.SHORT", 0)
    return seen


def random_mask(lengths, tokens, holes=False):
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    if holes:                                                # padding on the left, and a hole
        mask[0, :4] = mask[3, 5:9] = False
    return mask


def small_bert(**fields):
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL | {"max_position_embeddings": 60} | NO_DROPOUT | fields)).train()


def selections(layout):
    """The queries of a layer: all rows, [CLS], any rows, and none of some sequences."""
    some = torch.rand(layout.mask.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    first = layout.mask & (layout.mask.cumsum(dim=1) == 1)
    some_and_first = layout.select(some | first)
    return {"all": None, "cls": layout.cls_rows(), "some": some_and_first,
            "none of one": layout.select(some_and_first.mask.new_tensor(
                [[n != 2] for n in range(layout.batch)]).expand_as(layout.mask))}


@pytest.mark.parametrize("holes", [False, True], ids=["padding on the right", "holes"])
@pytest.mark.parametrize("which", ["all", "cls", "some", "none of one"])
def test_outputs_and_gradients_are_those_of_the_equation_on_the_grid(calls, which, holes):
    mask, results = random_mask(LENGTHS, 45, holes), []
    ids = torch.randint(1, 60, mask.shape, generator=torch.Generator().manual_seed(0))
    for attention in ("sdpa", "eager"):
        bert = small_bert()
        bert.use_attention(attention)
        layout = Layout(mask)
        layout.length_buckets = []                           # a GPU has none
        hidden, layout = bert.embed(ids, layout)
        found = bert.encode(hidden, layout, output_rows=selections(layout)[which])
        found.square().mul(torch.arange(32)).sum().backward()
        results.append((found, {name: p.grad for name, p in bert.named_parameters()
                                if p.grad is not None and "key.bias" not in name}))
    last = [] if which == "none of one" else [[len(found), len(hidden)]]
    assert calls == [[len(hidden)] * 2] * 2 + last           # three layers, by sdpa alone
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    for name, gradient in results[1][1].items():
        difference = (results[0][1][name] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("seed", range(5))
def test_random_lengths_attend_as_each_sequence_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (6,), generator=generator)
    layout = Layout(random_mask(lengths.tolist(), 33))
    some = torch.rand(layout.mask.shape, generator=generator) < 0.5
    some[:, 0] = True
    rows = layout.select(some)
    query, key, value = (torch.randn(len(n), 4, 8, generator=generator, dtype=torch.float64)
                         for n in (rows, layout, layout))
    found = nested_kernel(query, key, value, rows.offsets, layout.offsets, rows.tokens,
                          layout.tokens, 0.0)
    begins = layout.offsets.tolist()
    for number in range(6):
        part = slice(begins[number], begins[number + 1])
        alone = eager_attention(*(t.transpose(0, 1)[None] for t in (
            query[rows.sequence == number], key[part], value[part])))
        torch.testing.assert_close(found[rows.sequence == number], alone[0].transpose(0, 1))


def test_offsets_are_of_the_rows_of_each_layout_and_travel_with_it():
    layout = Layout(random_mask(LENGTHS, 45, holes=True))
    kept = layout.keep(torch.tensor([3, 1]))
    for one in (layout, layout.cls_rows(), kept, layout.select(layout.mask), *mapped(
            layout, torch.Tensor.clone).length_buckets):
        assert one.offsets.dtype == torch.int32
        assert one.offsets.tolist() == [(one.sequence < n).sum() for n in range(one.batch + 1)]
        assert one.min_rows == one.offsets.diff().min() and one.offsets.diff().max() <= one.tokens
    assert layout.to("meta").offsets.is_meta
    assert DenseLayout(layout.mask).offsets is None


# ---- which kernel

@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for an Ampere GPU: a function (dtype, query layout, key layout, …) → kernel."""
    pretend_gpu(monkeypatch, (8, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)

    def choose(dtype, query_layout, key_layout=None, head_size=64):
        return packed.choose_kernel(None, dtype, head_size, query_layout,
                                    query_layout if key_layout is None else key_layout)
    return choose


def test_half_precision_takes_flash_attention_and_float32_the_efficient_kernel(gpu):
    layout = Layout(random_mask(LENGTHS, 45))
    cls = layout.cls_rows()
    assert cls.no_padding                                    # the keys' padding decides
    for dtype in packed.HALF:
        assert gpu(dtype, layout) is gpu(dtype, cls, layout) is packed.flash_kernel
    assert gpu(torch.float32, layout) is packed.efficient_kernel
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        assert gpu(torch.bfloat16, layout) is packed.efficient_kernel


def test_the_grid_stays_where_no_kernel_fits_or_none_is_needed(gpu, monkeypatch):
    layout, full = Layout(random_mask(LENGTHS, 45)), Layout(torch.ones(3, 5))
    none_of_one = selections(layout)["none of one"]
    assert none_of_one.min_rows == 0
    assert gpu(torch.bfloat16, none_of_one, layout) is None
    assert gpu(torch.bfloat16, full) is gpu(torch.float64, layout) is None
    dense = DenseLayout(layout.mask)
    assert gpu(torch.bfloat16, dense) is gpu(torch.bfloat16, dense.cls_rows(), dense) is None
    assert gpu(torch.bfloat16, dense.select(layout.mask), dense) is None
    for size in (20, 136, 256):
        assert gpu(torch.bfloat16, layout, head_size=size) is None
    with sdpa_kernel(SDPBackend.MATH):
        assert gpu(torch.bfloat16, layout) is gpu(torch.float32, layout) is None
    pretend_gpu(monkeypatch, (7, 5))
    assert gpu(torch.bfloat16, layout) is None


def test_a_cpu_and_attentions_other_than_sdpa_take_the_grid(monkeypatch):
    layout = Layout(random_mask(LENGTHS, 45))
    rows = torch.zeros(len(layout), 32)
    assert packed.packed_attention(rows, rows, rows, 4, layout, layout) is None
    monkeypatch.setattr("bert.attention.packed_attention", lambda *given: pytest.fail("packed"))
    bert = small_bert()
    for attention in ("eager", "r-softmax"):
        bert.use_attention(attention)
        bert(layout.mask.long(), layout)


def test_attention_runs_in_the_precision_of_autocast():
    rows = torch.zeros(2, 8)
    assert packed._computing_dtype(rows) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert packed._computing_dtype(rows) == torch.bfloat16
        assert packed._computing_dtype(rows.double()) == torch.float64


# ---- fake tensors: a forward pass as on a GPU, without numbers

class Operations(TorchDispatchMode):
    """Counts what a GPU would be given: all but views and bare allocations."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if not function.is_view and not name.startswith(("empty", "new_empty", "_unsafe_view")):
            self.counts[name] += 1
        return function(*arguments, **(options or {}))


def fake_forward(dtype, lengths=LENGTHS):
    """Run the encoder, [CLS] in the last layer, on fake GPU tensors → the operations' counts."""
    bert = small_bert().eval().to(dtype)
    layout = Layout(random_mask(lengths, 45))
    first = layout.cls_rows()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        def fake(tensor):
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

        for module in bert.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = torch.nn.Parameter(fake(parameter), False)
        layout, first = mapped(layout, fake), mapped(first, fake)
        layout.length_buckets = []
        with Operations() as operations, NoWaiting():
            hidden, layout = bert.embed(fake(torch.zeros(7, 45, dtype=torch.long)), layout)
            found = bert.encode(hidden, layout, output_rows=first)
    assert found.shape == (7, 32) and found.device.type == "cuda" and found.dtype == dtype
    return operations.counts


cuda_build = pytest.mark.skipif(not torch.version.cuda, reason="needs a CUDA build of torch")
KERNELS = {torch.bfloat16: "_flash_attention_forward",
           torch.float32: "_efficient_attention_forward"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=cuda_build)])
def test_a_forward_pass_on_a_gpu_takes_packed_rows_without_a_wait(gpu, dtype):
    counts = fake_forward(dtype)
    assert counts[KERNELS[dtype]] == 3                       # one for each layer
    assert not {"index_copy", "new_zeros", "masked_fill_", "_to_copy"} & set(counts)      # no grid


@cuda_build
@pytest.mark.parametrize("dtype", KERNELS)
def test_a_gpu_is_given_fewer_operations_than_for_the_grid(gpu, dtype):
    fast = fake_forward(dtype)
    with sdpa_kernel(SDPBackend.MATH):
        grid = fake_forward(dtype)
    assert not grid[KERNELS[dtype]]
    assert sum(fast.values()) <= sum(grid.values()) - 3 * 6  # pads and unpads in three layers


# ---- on a GPU: the kernels themselves

@on_a_gpu
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("which", ["all", "cls", "some"])
def test_the_kernels_equal_the_equation_forward_and_backward(which, dtype, bound):
    generator = torch.Generator().manual_seed(0)
    keys = Layout(random_mask(LENGTHS, 45))
    rows = selections(keys)[which] or keys
    parts = [torch.randn(len(n), 2 * 64, generator=generator).cuda().requires_grad_()
             for n in (rows, keys, keys)]
    weight = torch.randn(len(rows), 128, generator=generator).cuda()
    rows, keys = rows.to("cuda"), keys.to("cuda")
    results = []
    for fast in (True, False):
        if fast:
            given = [part.to(dtype) for part in parts]
            found = packed.packed_attention(*given, 2, rows, keys)
            assert found is not None and found.dtype == dtype
        else:
            grids = [n.pad(part).unflatten(-1, (2, 64)).transpose(1, 2)
                     for n, part in zip((rows, keys, keys), parts)]
            found = rows.unpad(eager_attention(*grids, keys.key_mask).transpose(1, 2).flatten(2))
        results.append((found, *torch.autograd.grad(found.float(), parts, weight)))
    for one, other in zip(*results):
        assert (one.float() - other).norm() <= bound * other.norm()


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_in_the_kernels_keeps_the_mean_and_repeats_with_the_seed(dtype):
    layout = Layout(random_mask([40] * 8 + [30] * 8, 45)).to("cuda")
    query = torch.zeros(len(layout), 64, device="cuda", dtype=dtype)     # every key alike
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(packed.packed_attention(query, query, query + 1, 1, layout, layout, 0.25))
    assert torch.equal(*results)
    assert results[0].float().std() > 0.01
    assert abs(results[0].float().mean() - 1) < 0.02


@on_a_gpu
def test_training_and_evaluation_on_a_gpu_agree_with_the_grid():
    mask = random_mask(LENGTHS, 45)
    ids, results = torch.randint(1, 60, mask.shape).cuda(), []
    for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        bert, layout = small_bert().cuda(), Layout(mask)
        first, layout = layout.cls_rows().to("cuda"), layout.to("cuda")
        with sdpa_kernel(backend):
            hidden, layout = bert.embed(ids, layout)
            found = bert.encode(hidden, layout, output_rows=first)
        found.square().mul(torch.arange(32).cuda()).sum().backward()
        results.append((found, bert.layers[0].attention.value.weight.grad))
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def test_the_default_attention_is_the_one_that_is_packed():
    assert all(layer.attention.attention_function is sdpa_attention
               for layer in small_bert().layers)


def test_a_kernel_is_tried_once_before_it_is_used():
    here, calls = torch.device("cpu"), []

    def right(*arguments):
        calls.append(arguments)
        return nested_kernel(*arguments)

    def wrong(query, *rest):
        return 2 * nested_kernel(query, *rest)

    def changed(query, key, value):
        raise AssertionError("is never reached")

    assert packed.is_right(right, here, torch.float32, 8)
    assert packed.is_right(right, here, torch.float32, 8) and len(calls) == 1
    for kernel, says in ((wrong, "numbers differ by"), (changed, "positional arguments")):
        with pytest.warns(UserWarning, match=f"{says}.*attention takes the padded grid"):
            assert not packed.is_right(kernel, here, torch.float32, 8)
