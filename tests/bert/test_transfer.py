"""A batch goes to a GPU by one copy, of one buffer; here to `meta`, which stands for it, and to the
CPU by way of a buffer."""

import pytest
import torch
from conftest import NoWaiting
from parity import SMALL, tiny_batch
from torch.utils._python_dispatch import TorchDispatchMode

from bert import Bert, BertConfig, Layout, transfer
from bert.dense_layout import DenseLayout
from bert.transfer import copy_together, to_device

CPU = torch.device("cpu")
TENSORS = [torch.arange(6).view(2, 3), torch.tensor([True, False, True]), torch.rand(5),
           torch.tensor(7.5, dtype=torch.float64), torch.empty(0, 3), torch.arange(12).view(3, 4).T,
           torch.rand(3).bfloat16(), torch.arange(3, dtype=torch.int32), torch.rand(2, 0, 4)]


class Copies(TorchDispatchMode):
    """Counts what goes from device to device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if function.overloadpacket.__name__ in ("_to_copy", "copy_"):
            self.count += result.device != arguments[-1].device
        return result


def test_tensors_of_all_types_and_shapes_arrive_unchanged_as_views_of_one_buffer():
    copies = copy_together(TENSORS, CPU)
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    for copy, tensor in zip(copies, TENSORS):
        assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(copy, tensor) and copy.is_contiguous()
        assert copy.storage_offset() * copy.element_size() % 8 == 0


def test_the_buffer_goes_from_pinned_memory_in_one_copy(monkeypatch):
    """torch pins memory only where a GPU is, so `empty` notes what it was asked for."""
    asked, empty = [], torch.empty

    def note(*shape, pin_memory, **options):
        asked.append(pin_memory)
        return empty(*shape, **options)

    class Device:                                            # stands for cuda
        type = "cuda"

    monkeypatch.setattr(transfer.torch, "empty", note)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: (
        asked.append(non_blocking), tensor)[1])
    moved = copy_together(TENSORS, Device())
    assert asked == [True, True] and all(map(torch.equal, moved, TENSORS))
    asked.clear()
    copy_together(TENSORS, CPU)
    assert asked == [False, False]                           # the CPU must not read too early


def test_a_layout_and_what_goes_with_it_arrive_by_one_copy():
    mask = tiny_batch()["attention_mask"]
    layout = Layout(mask).with_adapters([("a", 3), ("b", 1)])
    assert layout.to("cpu") is layout and to_device([mask, None, layout], CPU) == [
        mask, None, layout]                                  # the same objects
    with Copies() as copies:
        ids, nothing, moved = to_device([mask, None, layout], torch.device("meta"))
    assert copies.count == 1 and nothing is None and ids.is_meta and ids.shape == mask.shape
    assert moved.adapter_rows == layout.adapter_rows and moved.length_buckets == []
    for name, tensor in layout.tensors().items():
        there = moved.tensors()[name]
        assert there.is_meta and (there.dtype, there.shape) == (tensor.dtype, tensor.shape)


def bert():
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL)).eval()


def test_a_layout_made_of_views_gives_the_same_outputs():
    batch, layout = tiny_batch(), Layout(tiny_batch()["attention_mask"])
    tensors = dict(zip(layout.tensors(), copy_together(list(layout.tensors().values()), CPU)))
    outputs = [bert()(batch["input_ids"], mask) for mask in (layout, layout.with_tensors(tensors))]
    assert all(map(torch.equal, outputs[0][:2], outputs[1][:2]))


@pytest.mark.parametrize("kind", [Layout, DenseLayout])
def test_first_rows_are_those_of_cls_and_are_found_without_waiting(kind):
    mask = tiny_batch()["attention_mask"]
    masks = [mask, torch.ones_like(mask)] + ([mask.flip(1)] if kind is DenseLayout else [])
    for layout in map(kind, masks):
        with NoWaiting():
            rows = layout.first_rows()
        assert torch.equal(rows, layout.cls_rows().rows)
    left = Layout(tiny_batch()["attention_mask"]).keep(torch.tensor([3, 1]))
    assert torch.equal(left.first_rows(), left.cls_rows().rows)


def test_after_the_layout_is_made_nothing_in_a_pass_waits():
    batch, model = tiny_batch(), bert()
    layout = Layout(batch.pop("attention_mask"))
    with NoWaiting():
        model(attention_mask=layout, **batch)


def test_a_mask_comes_to_the_cpu_once(monkeypatch):
    """On the CPU .cpu() does nothing; of a GPU's mask it is the one thing that waits
    (tests/test_fake_cuda.py)."""
    asked, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: asked.append(tensor) or cpu(tensor))
    Layout(torch.ones(2, 3))
    assert len(asked) == 1 and asked[0].dtype == torch.bool and asked[0].shape == (2, 3)


def test_a_layout_that_was_used_in_inference_mode_serves_training_too():
    batch, model = tiny_batch(), bert()
    layout = Layout(batch.pop("attention_mask"))
    with torch.inference_mode():
        model(attention_mask=layout, **batch)
    model(attention_mask=layout, **batch).last_hidden_state.sum().backward()
