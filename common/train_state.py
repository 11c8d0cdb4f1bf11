"""The state from which a stopped run goes on: one dictionary, in one file."""

import torch

from bert.errors import UserError
from bert.files import atomic_write


def rng_state(device):
    """The states of the random number generators, on the CPU and on `device`."""
    return [torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None]


def save_state(path, model, optimizer, rng_states, **more):
    """Write the state to resume from. `rng_states` has the rng_state of each process."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
             "rng_states": rng_states, **more}
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:                        # what torch raises if the disk is full
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
    """Load the weights, the optimizer's state and the random states of this process."""
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
