"""Losses, gradients and weights that are no numbers (NaN, infinite), found without waiting for a
GPU. Nothing that follows from them is saved."""

import torch

from bert.errors import UserError, some
from common.optimization import step_unless


class FiniteCheck:
    """Stop at a step whose losses or gradients are not finite; or `skip` such updates and count
    them in `skipped`. What was found stays on the device until `read`: the CPU reads in each step;
    for a GPU call it where the GPU is waited for anyway. resume: the command that goes on with the
    run; processes: the module multitask.distributed, if several may train."""

    def __init__(self, model, resume="", skip=False, skipped=0, processes=None):
        self.model, self.device = model, next(model.parameters()).device
        self.resume, self.skip, self.skipped = resume, skip, skipped
        self.processes = processes if processes and processes.world() > 1 else None
        self.steps, self.names, self.values = [], [], []     # names, values: of the step now
        self.step = 0                                        # the last one that ended

    def add(self, value, what, ids=None):
        """Note a scalar tensor of this step. what: its name; ids: the examples it was made of, or
        None for all of the step."""
        self.names.append((what, ids))
        self.values.append(value.detach())

    def update(self, optimizer, step):
        """End the step with the optimizer's step, unless something in it was not finite."""
        values = torch.stack([value.to(self.device, torch.float32) for value in self.values])
        bad = ~values.isfinite()                             # [values]
        all_ids = list(dict.fromkeys(i for _, ids in self.names for i in ids or ()))
        self.steps.append((step, [(what, ids or all_ids) for what, ids in self.names], bad))
        self.names, self.values, self.step = [], [], step
        if self.skip:
            bad = bad.any().float()
            if self.processes:
                self.processes.all_reduce([bad])
            return step_unless(optimizer, bad.clamp(max=1))
        if self.device.type == "cpu" and not self.processes:
            self.read()
        optimizer.step()

    def read(self):
        """UserError that names the first step, loss or gradient, and examples that were not finite
        since the last call; or with `skip` count them. Waits for a GPU and the other processes."""
        steps, self.steps = self.steps, []
        flags = iter(torch.cat([bad for *_, bad in steps]).tolist() if steps else ())
        found = [(step, *name) for step, names, _ in steps for name in names if next(flags)]
        if self.processes:
            found = sum(self.processes.gather(found), [])
        if self.skip:
            self.skipped += len({step for step, *_ in found})
        elif found:
            step, what, ids = min(found, key=lambda note: note[0])
            advice = f", or leave such updates out: {self.resume} --skip-nonfinite"
            raise UserError(f"step {step}: {what} is not finite ({some(ids)}); start anew with a "
                            f"lower --lr{advice if self.resume else ''}")

    def before_save(self):
        """UserError if a step was not finite (as `read`), or a weight that is trained is not."""
        self.read()
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(trained.values()))])
        wrong = [name for name, finite in zip(trained, norms.isfinite().tolist()) if not finite]
        if wrong:
            raise UserError(f"step {self.step}: {some(wrong)} are no longer finite and are not "
                            f"saved; start anew with a lower --lr")

    def summary(self, steps):
        return (f"{self.skipped:,} of {steps:,} updates were left out: a loss or gradient was not "
                f"finite (--skip-nonfinite)")
