"""What every training loop here needs beside its loop: the schedule, the groups of the optimizer,
and the state from which a stopped run goes on."""

import sys
from contextlib import suppress

import torch
from tqdm import tqdm

from bert.errors import UserError
from bert.files import atomic_write


def warmup_then_decay(step, steps, warmup, decay=True):
    """The learning rate's factor in this step: up in a line over the first `warmup` fraction, then
    down in a line to nothing (Devlin et al. 2019, appendix A.2), or without `decay` as it is. Steps
    count from 1."""
    rising = warmup * steps
    up = step / rising if rising else 1.0
    down = (steps - step + 1) / (steps - max(rising, 1) + 1) if decay else 1.0
    return max(min(up, down), 0.0)


def adamw(parts, weight_decay):
    """AdamW over [(module, {"max_lr": highest learning rate, …})]: what trains of each module, of
    which only matrices decay. Of "max_lr" the loop makes "lr" in every step."""
    groups = [{"params": [p for p in module.parameters()
                          if p.requires_grad and (p.dim() > 1) == matrices],
               "weight_decay": weight_decay if matrices else 0.0, **more}
              for module, more in parts for matrices in (True, False)]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def rng_state(device):
    """Where dropout's random numbers stand, on the CPU and on `device`."""
    return [torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None]


def save_state(path, model, optimizer, rng_states, **more):
    """Write the state to resume from: one dictionary of all that has a state, in one file.
    `randoms` has the random_state of each process."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "rng_states": rng_states, **more}
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:                        # torch's word for a full disk
            raise OSError(0, " ".join(str(error).split())[:150]) from error


def read_state(path):
    """What save_state wrote, or None where nothing was saved yet."""
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); start the run anew with "
                        f"--overwrite") from error


def restore(state, model, optimizer, device, process=0):
    """Put back weights, optimizer and random states."""
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        cpu, cuda = state["rng_states"][min(process, len(state["rng_states"]) - 1)]
        torch.set_rng_state(cpu)
        if device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the saved state does not fit the model, whose checkpoint has changed "
                        f"since ({' '.join(str(error).split())[:150]}); start a new run") from error


def peak_memory(device):
    """The most bytes this process has held so far: of the GPU's memory, or else of the machine's;
    None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):                              # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return None


def progress_bar(what, total, unit, done=0, leave=True, silent=False):
    """tqdm, which in a file instead of on a screen writes a line only now and then."""
    return tqdm(total=total, initial=done, desc=what, unit=unit, leave=leave, disable=silent,
                mininterval=0.5 if sys.stderr.isatty() else 30)
