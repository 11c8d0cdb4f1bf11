"""Several processes that train one model (torchrun starts them): each has a shard of every batch,
and gradients are summed. There is no wrapper around the model: the loop calls all_reduce when
gradients are ready, so that surgery acts on the gradients of the whole batch. In a single process
all of this does nothing."""

import os
import sys
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from bert import UserError


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process; process 0 evaluates, prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def processes(device):
    """Join the other processes that torchrun started, if it did, each with a GPU of its own where
    there are some and `device` is not "cpu". Only the first one prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo",
                            timeout=timedelta(hours=6))      # others wait while the first evaluates
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    yield
    dist.barrier()                                           # none leaves while another still works
    dist.destroy_process_group()


def all_reduce(tensors):
    """Replace each tensor (that is not None) by its sum over all processes."""
    if world() > 1:
        for wait in [dist.all_reduce(t, async_op=True) for t in tensors if t is not None]:
            wait.wait()


def shard_batch(indices, parts):
    """A batch's indices → [(indices, weight)]: this process's shard, in `parts` micro-batches. The
    weighted mean losses of all parts of all processes add up to the mean loss of the batch. A short
    shard gets one example of weight 0, so that every rank runs the same all-reduces."""
    mine = [indices[part::parts * world()] for part in range(rank() * parts, (rank() + 1) * parts)]
    return [(part or indices[:1], len(part) / len(indices)) for part in mine
            if part or world() > 1]


def total(value):
    """The sum of a number over all processes."""
    if world() == 1:
        return float(value)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    value = torch.as_tensor(value, dtype=torch.float32, device=device).clone()
    dist.all_reduce(value)
    return value.item()


def any_rank(flag, now):
    """Whether `flag` is true in any process. Several processes exchange it only in steps where
    `now` is true, which must be the same steps in all."""
    return flag if world() == 1 else now and total(flag) > 0


def gather(value):
    """[every process's value]"""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(value):
    """The first process's value, in every process."""
    return gather(value)[0]


@contextmanager
def on_first(context):
    """Enter a context in the first process alone; every process gets what it gives, or its
    UserError."""
    with ExitStack() as stack:
        found = None
        try:
            found = stack.enter_context(context) if rank() == 0 else None
        except UserError as error:
            found = error
        found = broadcast(found)
        if isinstance(found, UserError):
            raise found
        yield found
