"""A run's folder: check that a new one may be made, and read the record of an existing one."""

import json
import platform
from pathlib import Path

import torch

from bert.errors import UserError


def check_new_folder(out, record_file, kind, overwrite, resume, sources):
    """→ the Path of a new run's folder. Nothing is written yet: a mistake found later leaves no
    trace. kind: what such a run is called. resume: the command that goes on with it. sources {flag:
    path}: what the run reads, which must not lie in the folder that it replaces."""
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
    damaged, lacks one of `fields`, or is of another `version` of the format."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path.parent} is not a {kind}: it has no {path.name}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, missing = record.get("version", 1), set(fields) - set(record)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore it, or train the run again"
                        ) from error
    if found != version:
        raise UserError(f"{path} is of format {found}, and this version reads format {version}; "
                        f"open the run with the version that wrote it, or train it again")
    if missing:
        raise UserError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}; restore it, or "
                        f"train the run again")
    return record


def versions():
    """Versions and the thread count, on which bitwise reproducibility depends."""
    return {"python": platform.python_version(), "torch": torch.__version__,
            "threads": torch.get_num_threads()}


def weight_bytes(folder):
    """The bytes of the .safetensors files in a folder."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
