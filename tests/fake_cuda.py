"""CUDA without a GPU: forward passes over tensors that have a device, a type and a shape, but no
numbers (torch's FakeTensorMode). Operations that must wait for a number raise there, and so do
most that mix devices; needs a build of torch with CUDA. Gradients cannot be computed.

    with fake_gpu():
        move(model)
        with Operations() as operations:
            model(batch.to(torch.device("cuda")))
    operations.count, operations.to_gpu, operations.to_cpu
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_WORK = ("_unsafe_view", "empty", "new_empty", "empty_like", "device", "lift_fresh", "size",
           "stride", "is_same_size", "sym_size", "sym_stride", "sym_numel")


@contextmanager
def fake_gpu():
    """Within this context new tensors are fake, and autocast to bfloat16 is possible on `cuda`."""
    with (patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
          patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
          FakeTensorMode(allow_non_fake_inputs=True) as mode):
        yield mode


def move(module):
    """Do what module.to("cuda") does, which fake parameters do not allow: move parameters and
    buffers, and nothing else."""
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None:
                part._parameters[name] = nn.Parameter(old.detach().to("cuda"), old.requires_grad)
        for name, old in part._buffers.items():
            part._buffers[name] = old if old is None else old.to("cuda")
    return module


class Operations(TorchDispatchMode):
    """Counts in `count` what a GPU executes, without views and allocations; F.scaled_dot_product_
    attention is one. `to_gpu` and `to_cpu` count copies, which must wait unless they are of pinned
    memory. Refuses every other operation on tensors of two devices; scalars are on any."""

    def __init__(self):
        super().__init__()
        self.count = self.to_gpu = self.to_cpu = 0

    def __enter__(self):
        self.attention = FusedAttention(self)
        super().__enter__()
        self.attention.__enter__()
        return self

    def __exit__(self, *error):
        self.attention.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name, result = function.overloadpacket.__name__, function(*arguments, **(options or {}))
        if function.is_view or name in NO_WORK:
            return result
        given, made = ([leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
                       for tree in ((arguments, options), result))
        if name in ("copy_", "_to_copy", "to"):           # "to" in inference mode
            way = arguments[name == "copy_"].device.type, result.device.type
            self.to_gpu += way == ("cpu", "cuda")
            self.to_cpu += way == ("cuda", "cpu")
        else:
            devices = {tensor.device for tensor in given if tensor.dim()}
            assert len(devices) < 2, f"{function} mixes {devices}"
        self.count += any(tensor.is_cuda for tensor in (*given, *made))
        return result


class FusedAttention(TorchFunctionMode):
    """Counts scaled_dot_product_attention as one operation. Without a GPU torch would split it."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, function, types, arguments=(), options=None):
        before = self.operations.count
        result = function(*arguments, **(options or {}))
        if function is F.scaled_dot_product_attention:
            self.operations.count = before + 1
        return result
