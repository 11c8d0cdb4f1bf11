"""The learning rate of each step, and the optimizers by name."""

import torch
from torch import nn

from bert.errors import UserError


def warmup_then_decay(step, steps, warmup, decay=True):
    """The learning rate's factor in this step, 1 …: it rises linearly over the `warmup` fraction of
    the steps, then stays, or falls linearly to 0 one step after the last (Devlin et al. 2019)."""
    rising = warmup * steps
    up = step / rising if rising else 1.0
    down = (steps - step + 1) / (steps - max(rising, 1) + 1) if decay else 1.0
    return max(min(up, down), 0.0)


def parameter_groups(modules, weight_decay):
    """[(module, {"max_lr": highest learning rate, …})] → parameter groups for an optimizer, one for
    each choice of values: the trainable parameters, of which only matrices decay; the loop sets
    "lr"."""
    groups = {}
    for module, more in modules:
        for matrices in (True, False):
            values = {"weight_decay": weight_decay if matrices else 0.0, **more}
            params = [p for p in module.parameters()
                      if p.requires_grad and (p.dim() > 1) == matrices]
            if params:
                groups.setdefault(tuple(values.items()), {"params": [], **values})[
                    "params"].extend(params)
    return list(groups.values())


def adamw(groups):
    """AdamW (Loshchilov & Hutter 2019) in one fused kernel."""
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def clip_gradients(parameters, limit, optimizer=None):
    """Divide the gradients of these parameters so that their joint norm is at most `limit` (0:
    leave them) → the norm before. `optimizer`, if it has no other parameters and is a fused one,
    divides them while it steps, to the same bytes, which saves a pass over all gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and gradients[0].device.type == "cpu":      # a product is the fastest sum there
        flat = [gradient.flatten() for gradient in gradients]
        norm = torch.stack([gradient @ gradient for gradient in flat]).sum().sqrt()
    else:
        norm = nn.utils.get_total_norm(gradients)
    if limit and gradients:
        divisor = ((norm + 1e-6) / limit).clamp(min=1)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale = divisor
        else:
            torch._foreach_div_(gradients, divisor)
    return norm


def step_unless(optimizer, bad):
    """Step, unless the scalar tensor `bad` on the device is 1; then parameters and state stay as
    they are. torch's fused optimizers decide on the device; others wait for a GPU."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = bad                            # as torch.amp.GradScaler does
        optimizer.step()
    elif not bad.item():
        optimizer.step()


def check_all_trained(loss, optimizers, model):
    """UserError if `loss` depends on a parameter that requires a gradient and that none of the
    optimizers has: one of a module in a plain list, say, or of one made outside the model."""
    trained = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    names = {id(p): name for name, p in model.named_parameters()}
    todo, seen, lost = [loss.grad_fn], {None}, []
    while todo:                                              # the graph of the loss, down to leaves
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [below for below, _ in node.next_functions]
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, nn.Parameter) and id(leaf) not in trained:
                lost.append(names.get(id(leaf), f"one of the shape {list(leaf.shape)}"))
    if lost:
        raise UserError(f"the loss depends on parameters that no optimizer has, so that they would "
                        f"be neither trained nor saved: {', '.join(lost)}. Make their module an "
                        f"attribute of the model in its __init__ (an nn.ModuleList, not a list), "
                        f"or freeze them")


OPTIMIZERS = {"adamw": adamw}              # name → function: parameter groups → optimizer
