"""A run's folder: claimed by one process, checked before a new run is made in it, cleared; an
existing run's record, and the state from which a stopped run goes on."""

import os
import platform
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from bert.errors import UserError, is_out_of_memory
from bert.files import PARTS, atomic_write
from bert.json_files import check_type, read_json
from common.cli import quoted

try:
    import fcntl
except ImportError:                                          # on Windows nothing is locked
    fcntl = None

LOCK = ".writer"                                             # in a folder that a process writes
STATE = {"model": dict[str, torch.Tensor], "optimizer": {"state": dict, "param_groups": list[dict]},
         "rng_states": list[tuple[torch.Tensor, torch.Tensor | None]]}       # of save_state


@contextmanager
def claim(folder, content=()):
    """Within this context this process alone writes `folder`, which is made if need be, and the
    folders in it that `content` (see check_places) names. UserError names another process that
    does. Parts of files that killed processes left are deleted.

    The lock is flock's, no file that must not exist or that holds a number: the kernel drops it
    with its process, however that ends, and no process that gets the number later has it."""
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = take_lock(folder)
    try:
        places = check_places(folder, content)
        for place in (*places, *folder.resolve().parents):
            if owner := owner_of(place):
                refuse(place, owner)
        for part in [part for place in (folder, *places) for part in place.glob(PARTS)]:
            part.unlink()
        yield folder
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        if lock is not None:
            os.close(lock)
        with suppress(OSError):                              # if nothing was written
            for path in made:
                path.rmdir()


def take_lock(folder):
    """→ the descriptor of the file LOCK in `folder`, locked and with this process's number in it"""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    owner = lock_or_owner(lock, fcntl.LOCK_EX)
    if not owner and not os.fstat(lock).st_nlink:            # it was removed before it was locked
        owner = "a process that ends now"
    if owner:
        os.close(lock)
        refuse(folder, owner)
    with suppress(OSError):                                  # the disk is full: the run will say so
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
    return lock


def lock_or_owner(lock, kind):
    """Lock a descriptor → None, or who has it locked. Some network file systems lock nothing."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        found = os.pread(lock, 99, 0).decode(errors="replace").split()
        return " ".join(found) or "another process"
    except OSError:
        pass


def owner_of(folder):
    """→ the process that writes a folder, or None"""
    try:
        lock = fcntl and os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if lock is None:
        return None
    try:
        return lock_or_owner(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def refuse(folder, owner):
    raise UserError(f"{folder} is being written by {owner}; wait until that ends, or choose "
                    f"another folder")


def check_places(folder, content):
    """→ the folders below `folder` that its files `content` (glob patterns) lie in. UserError if
    one is a link, which may lead anywhere, or if there is a file instead or a folder for a file."""
    patterns = sorted({str(parent) for file in content for parent in Path(file).parents} - {"."})
    places = [path for pattern in patterns for path in folder.glob(pattern)]
    for path in places:
        if path.is_symlink() and not path.is_file():
            raise UserError(f"{path} is a link, and nothing is written through links; put a folder "
                            f"in its place, or choose another run")
    wrong = [path for pattern in patterns if "*" not in pattern
             for path in folder.glob(pattern) if not path.is_dir()]
    wrong += [path for file in content for path in folder.glob(str(file))
              if path.is_dir() and not path.is_symlink()]
    if wrong:
        raise UserError(f"{wrong[0]} is a {'folder' if wrong[0].is_dir() else 'file'}, and a run "
                        f"has none there; move it away")
    return [path for path in places if path.is_dir()]


def clear(folder, content):
    """Delete the files of a run that match `content`, and the folders that this leaves empty: a
    user's own files stay."""
    for path in [path for file in content for path in folder.glob(str(file))]:
        path.unlink()
    for place in reversed(check_places(folder, content)):
        with suppress(OSError):
            place.rmdir()


def below(folder, *names):
    """→ the path of these names in a run's folder. UserError if a folder on the way is a link."""
    check_places(Path(folder), [Path(*names, LOCK)])
    return Path(folder, *names)


@contextmanager
def new_folder(out, record_file, kind, overwrite, resume, sources, content):
    """Claim the folder `out` for a new run and yield its Path; nothing is written yet. kind: what
    such a run is called. resume: the command that goes on with it. sources {flag: path}: what the
    run reads, which must not lie in the folder that it replaces. content: see check_places."""
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; a run is a folder")
    with claim(folder, content):
        if any(file.name != LOCK for file in folder.iterdir()):
            if not (folder / record_file).is_file():
                raise UserError(f"--out {folder} holds files that are no {kind}; they are left "
                                f"alone: choose another folder")
            if not overwrite:
                raise UserError(f"--out {folder} is a {kind}; --overwrite replaces it ({resume} "
                                f"{quoted(folder)} goes on with it)")
            for flag, path in sources.items():
                if path and Path(path).expanduser().resolve().is_relative_to(folder.resolve()):
                    raise UserError(f"{flag} {path} lies in --out {folder}, which would be "
                                    f"replaced; choose another --out")
        yield folder


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
            if is_out_of_memory(error):
                raise
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
        if is_out_of_memory(error):
            raise
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
        if is_out_of_memory(error):
            raise
        raise UserError(f"the saved state does not fit the model, whose checkpoint has changed "
                        f"since ({' '.join(str(error).split())[:150]}); start a new run") from error
