"""Memory that large tensors take over from those of the last step (bert/memory.py)."""

import copy
import pickle
import sys
from threading import Thread

import pytest
import torch
from parity import SMALL, tiny_batch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bert import Bert, BertConfig, memory
from bert.embedding import WordEmbedding
from bert.linear import PackedLinear, product
from bert.memory import KeptMemory, block_size

CPU = torch.device("cpu")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def step(table, ids, kept):
    table.weight.grad = None
    table(ids, kept).square().sum().backward()
    return table.weight.grad


def test_the_gradient_of_word_embeddings_is_torchs_in_the_same_memory():
    table, plain, kept = WordEmbedding(50, 8), nn.Embedding(50, 8), KeptMemory()
    plain.load_state_dict(table.state_dict())
    places = set()
    for seed in range(5):
        ids = torch.randint(50, (30,), generator=torch.Generator().manual_seed(seed))
        plain.weight.grad = None
        plain(ids).square().sum().backward()
        close(step(table, ids, kept), plain.weight.grad)
        places.add(table.weight.grad.data_ptr())
        table.weight.grad += 1                               # as an L2 penalty changes all rows
    assert len(places) == 1


def test_gradients_of_several_tasks_take_turns_in_the_same_memory(monkeypatch):
    monkeypatch.setattr(memory, "MOST", 4)
    table, ids, places, kept = WordEmbedding(50, 8), torch.tensor([1, 2]), [], KeptMemory()
    for _ in range(3):
        held = [step(table, ids, kept) for _ in range(3)]    # as gradient surgery holds them
        places.append({gradient.data_ptr() for gradient in held})
        assert len(places[-1]) == 3 and all(torch.equal(held[0], one) for one in held)
        del held
    assert places[0] == places[1] == places[2]
    many = [step(table, ids, kept) for _ in range(9)]
    assert len({gradient.data_ptr() for gradient in many}) == 9
    assert [len(blocks) for blocks in kept.blocks.values()] == [4]


def test_a_gradient_that_is_still_used_is_left_alone():
    table, ids, kept = WordEmbedding(50, 8), torch.tensor([1, 2, 2]), KeptMemory()
    for hold in (lambda g: g, lambda g: g.view(-1), lambda g: g[3:].detach(), lambda g: g.numpy()):
        held = hold(step(table, ids, kept))
        before = copy.deepcopy(held)
        step(table, torch.tensor([4, 5]), kept)
        assert (before == held).all()
    table.weight.grad = None
    for _ in range(2):                                       # two passes before one step
        table(ids, kept).square().sum().backward()
    close(table.weight.grad, 2 * step(table, ids, kept).clone())


def test_an_encoder_is_copied_and_saved_without_its_memory():
    bert = Bert(BertConfig(**SMALL)).train()
    train(bert)
    assert bert.memory.blocks
    for other in (copy.deepcopy(bert), pickle.loads(pickle.dumps(bert))):
        assert not other.memory.blocks
        assert torch.equal(other.word_embeddings.weight, bert.word_embeddings.weight)
    assert not [name for name in bert.state_dict() if "memory" in name]


def train(bert, autocast=False):
    """→ {name: gradient} of one pass, on the same random numbers"""
    torch.manual_seed(0)
    bert.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden, layout = bert.embed(**tiny_batch())
        bert.encode(hidden, layout, output_rows=layout.cls_rows()).square().sum().backward()
    return {name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_in_kept_memory_are_those_in_new_memory(autocast, monkeypatch):
    bert = Bert(BertConfig(**SMALL)).train()
    first, again = train(bert, autocast), train(bert, autocast)      # in the same memory
    blocks = sum(map(len, bert.memory.blocks.values()))
    for _ in range(3):
        again = train(bert, autocast)
    assert sum(map(len, bert.memory.blocks.values())) == blocks
    monkeypatch.setattr(memory, "KEPT_FROM", 2 ** 40)
    assert not bert.memory.keeps((30522, 384), torch.float32, CPU)
    plain = train(bert, autocast)
    assert first.keys() == again.keys() == plain.keys()
    for name in first:
        assert torch.equal(first[name], again[name]) and torch.equal(first[name], plain[name]), name


def test_small_tensors_and_those_of_a_gpu_take_new_memory(monkeypatch):
    monkeypatch.setattr(memory, "KEPT_FROM", 4000)
    kept = KeptMemory()
    kept.empty((10, 10), torch.float32, CPU)
    assert kept.empty((100, 100), torch.float32, torch.device("meta")).is_meta
    assert not kept.blocks
    place = kept.empty((100, 10), torch.float32, CPU).data_ptr()
    assert kept.empty((100, 10), torch.float32, CPU).data_ptr() == place


def test_threads_never_share_a_block():
    """Fails without the lock, where threads change as often as here."""
    kept, wrong, interval = KeptMemory(), [], sys.getswitchinterval()

    def work(number):
        for _ in range(300):
            mine = kept.empty((50, 4), torch.float32, CPU).fill_(number)
            if not (mine.clone() == number).all():
                wrong.append(number)

    threads = [Thread(target=work, args=(n,)) for n in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_block_serves_tensors_of_similar_size_and_of_any_type():
    kept = KeptMemory()
    place = kept.empty((1000, 5), torch.float32, CPU).data_ptr()
    for shape, dtype in (((980, 5), torch.float32), ((5, 1001), torch.float32),
                         ((2000, 5), torch.bfloat16)):
        tensor = kept.empty(shape, dtype, CPU)
        assert (tensor.data_ptr(), tensor.shape, tensor.dtype) == (place, shape, dtype)
        assert tensor.is_contiguous()
        del tensor
    for count in range(1, 5000):
        assert count <= block_size(count) <= max(count + 1, 1.25 * count)
    assert len({block_size(count) for count in range(2 ** 20, 2 ** 24, 4096)}) == 17


def test_sizes_that_are_no_longer_used_are_forgotten(monkeypatch):
    monkeypatch.setattr(memory, "AGE", 10)
    kept = KeptMemory()
    kept.empty((30, 4), torch.float32, CPU)
    kept.empty((50, 4), torch.float32, CPU)
    for _ in range(10):
        kept.empty((1000, 4), torch.float32, CPU)
        assert block_size(800) in kept.blocks
    for _ in range(2):
        kept.empty((1000, 4), torch.float32, CPU)
    assert list(kept.blocks) == [block_size(16000)]


def test_memory_that_another_process_reads_is_not_used_again():
    kept = KeptMemory()
    tensor = kept.empty((1000, 4), torch.float32, CPU).share_memory_()       # as a queue does
    place = tensor.data_ptr()
    del tensor
    assert kept.empty((1000, 4), torch.float32, CPU).data_ptr() != place
    assert [len(blocks) for blocks in kept.blocks.values()] == [1]       # and it is not held


def test_a_fake_pass_leaves_no_fake_memory():
    kept = KeptMemory()
    for _ in range(2):
        with FakeTensorMode():
            assert kept.empty((1000, 4), torch.float32, CPU).shape == (1000, 4)
        assert type(kept.empty((1000, 4), torch.float32, CPU).zero_()) is torch.Tensor


def test_a_product_in_kept_memory_is_differentiated_twice():
    torch.manual_seed(0)
    matrix, rows, results = PackedLinear(4, 3), torch.randn(5, 4, requires_grad=True), []
    for kept in (None, KeptMemory()):
        out = product(rows, matrix.weight, matrix.bias, kept)
        first, = torch.autograd.grad(out.pow(3).sum(), matrix.weight, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), (rows, matrix.weight)))
    for found, expected in zip(*results):
        close(found, expected)
