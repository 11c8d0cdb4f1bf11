"""Many tensors to a GPU by one copy. A batch and its layouts are a dozen small tensors; a copy of
each would cost more in calls than in bytes.

    ids, labels, layout = to_device([ids, None, layout], "cuda")
"""

import torch

ALIGNMENT = 8            # bytes: every tensor starts at a multiple, as int64 and float64 must


def to_device(parts, device):
    """Tensors, Layouts and None, all on one device → [the same on `device`]. What is there already
    is not copied. A Layout lists its tensors by `tensors` and takes others by `with_tensors`."""
    device = torch.device(device)
    named = [{} if part is None else {"": part} if isinstance(part, torch.Tensor)
             else part.tensors() for part in parts]
    tensors = [tensor for group in named for tensor in group.values()]
    if all(tensor.device == device for tensor in tensors):
        return list(parts)
    moved, found = iter(copy_together(tensors, device)), []
    for part, group in zip(parts, named):
        group = {name: next(moved) for name in group}
        found.append(group.get("") if part is None or "" in group else part.with_tensors(group))
    return found


def copy_together(tensors, device):
    """[tensor, …] → the same on `device`, views of one buffer. On its way to a GPU the buffer lies
    in page-locked memory, so that the copy does not wait for the GPU."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    source = tensors[0].device
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=source,
                         pin_memory=source.type == "cpu" and device.type == "cuda")
    for part, tensor in zip(_views(buffer, tensors, sizes), tensors):
        part.copy_(tensor)
    return _views(buffer.to(device, non_blocking=device.type == "cuda"), tensors, sizes)


def _views(buffer, tensors, sizes):
    """→ a view of the uint8 buffer [sum of sizes] for each tensor, of its type and shape."""
    return [part[:tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for part, tensor in zip(buffer.split(sizes), tensors)]
