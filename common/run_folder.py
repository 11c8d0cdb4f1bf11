"""A run's folder: check that a new one may be made, read an existing one's record, save and read
the state from which a stopped run goes on."""

import platform
from pathlib import Path

import torch

from bert.errors import UserError
from bert.files import atomic_write
from bert.json_files import check_type, read_json

STATE = {"model": dict[str, torch.Tensor], "optimizer": {"state": dict, "param_groups": list[dict]},
         "rng_states": list[tuple[torch.Tensor, torch.Tensor | None]]}       # of save_state


def check_new_folder(out, record_file, kind, overwrite, resume, sources):
    """→ the Path of a new run's folder; nothing is written yet. kind: what such a run is called.
    resume: the command that goes on with it. sources {flag: path}: what the run reads, which must
    not lie in the folder that it replaces."""
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; a run is a folder")
    if folder.is_dir() and any(file.name != record_file + ".part" for file in folder.iterdir()):
        if not (folder / record_file).is_file():
            raise UserError(f"--out {folder} holds files that are no {kind}; they are left alone: "
                            f"choose another folder")
        if not overwrite:
            raise UserError(f"--out {folder} is a {kind}; --overwrite replaces it ({resume} "
                            f"{folder} goes on with it)")
        for flag, path in sources.items():
            if path and Path(path).expanduser().resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{flag} {path} lies in --out {folder}, which would be replaced; "
                                f"choose another --out")
    return folder


def read_record(path, kind, version, fields):
    """→ the fields of run.json or pretrain.json at `path`. UserError where the file is missing,
    damaged, not as `fields` describe it, or of another `version` of the format."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not a {kind}: it has no {path.name}")
    try:
        record = read_json(path, {"version?": int})
        found = record.get("version", 1)
        if found == version:
            check_type(record, fields, path)
    except UserError as error:
        raise damaged(path, error) from error
    if found != version:
        age = "a newer version wrote it" if found > version else "an older version wrote it"
        raise UserError(f"{path} is of format {found} ({age}), and this version reads format "
                        f"{version}; open the run with the version that wrote it, or train it "
                        f"again")
    return record


def damaged(path, why):
    return UserError(f"{path} is damaged ({why}); restore it, or train the run again")


def versions():
    """Versions and the thread count, on which bitwise reproducibility depends."""
    return {"python": platform.python_version(), "torch": torch.__version__,
            "threads": torch.get_num_threads()}


def rng_state(device):
    """The states of the random number generators, on the CPU and on `device`."""
    return [torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None]


def save_state(path, model, optimizer, rng_states, **more):
    """Write the state to resume from. `rng_states` has the rng_state of each process."""
    with atomic_write(path) as file:
        try:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "rng_states": rng_states, **more}, file)
        except RuntimeError as error:                        # what torch raises if the disk is full
            raise OSError(0, " ".join(str(error).split())[:150]) from error


def read_state(path, more):
    """What save_state wrote, or None where nothing was saved yet. more: describes its further
    fields."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        check_type(state, STATE | more, path)
        return state
    except Exception as error:                               # torch.load raises of every kind
        why = f": {error}" if isinstance(error, UserError) else f" ({type(error).__name__})"
        raise UserError(f"{path} cannot be read{why}; start the run anew with --overwrite"
                        ) from error


def check_optimizer(optimizer, state):
    """ValueError unless an optimizer's saved state is of these parameters and kinds of settings."""
    def kinds(groups):
        return [{name: type(value) for name, value in group.items()} | {"params": group["params"]}
                for group in groups]

    if kinds(state["param_groups"]) != kinds(optimizer.state_dict()["param_groups"]):
        raise ValueError("its optimizer has other groups of parameters")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.dim() and (
                    value.shape != parameters[number].shape):
                raise ValueError(f"its {name} of parameter {number} is {list(value.shape)}")


def restore(state, model, optimizer, device, process=0):
    """Load the weights, the optimizer's state and the random states of this process."""
    try:
        model.load_state_dict(state["model"])
        check_optimizer(optimizer, state["optimizer"])
        optimizer.load_state_dict(state["optimizer"])
        cpu, cuda = state["rng_states"][min(process, len(state["rng_states"]) - 1)]
        torch.set_rng_state(cpu)
        if device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"the saved state does not fit the model, whose checkpoint has changed "
                        f"since ({' '.join(str(error).split())[:150]}); start a new run") from error
