"""The learning rate of each step, and the optimizers by name."""

import torch


def warmup_then_decay(step, steps, warmup, decay=True):
    """The learning rate's factor in this step, 1 …: it rises linearly over the `warmup` fraction of
    the steps, then stays, or falls linearly to 0 one step after the last (Devlin et al. 2019)."""
    rising = warmup * steps
    up = step / rising if rising else 1.0
    down = (steps - step + 1) / (steps - max(rising, 1) + 1) if decay else 1.0
    return max(min(up, down), 0.0)


def parameter_groups(modules, weight_decay):
    """[(module, {"max_lr": highest learning rate, …})] → parameter groups for an optimizer: the
    trainable parameters of each module, of which only matrices decay; the loop sets "lr"."""
    groups = [{"params": [p for p in module.parameters()
                          if p.requires_grad and (p.dim() > 1) == matrices],
               "weight_decay": weight_decay if matrices else 0.0, **more}
              for module, more in modules for matrices in (True, False)]
    return [group for group in groups if group["params"]]


def adamw(groups):
    """AdamW (Loshchilov & Hutter 2019) in one fused kernel."""
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


OPTIMIZERS = {"adamw": adamw}              # name → function: parameter groups → optimizer
