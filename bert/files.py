"""Files: found in a folder or on the hub, read, and written whole or not at all."""

import hashlib
import io
import json
import os
import pickle
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bert.errors import UserError, is_out_of_memory

TINY = Path(__file__).parent / "tiny"                      # the checkpoint in this repository
PARTS = "*.*-" + 8 * "[0-9a-f]" + ".part"                   # files that are not yet whole


def resolve_checkpoint(name, required, optional=()):
    """→ the folder of a checkpoint's files. `name` is a local folder, "tiny" or a hub id, whose
    files are downloaded once into huggingface_hub's cache (HF_HUB_OFFLINE=1 keeps to that cache).
    `required`: tuples of file names, one of each of which must exist."""
    name = str(name)
    folder = TINY if name == "tiny" else Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
            raise UserError(f"{name!r} is not a folder; give one, or a model's name on the hub")
        try:
            return _download(name, required, optional)
        except Exception as error:                       # bad name, no such model, no permission, …
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{name!r} is no local folder, and the hub gave nothing ({reason}); "
                            "check the name and the network, or give a folder") from error
    for names in required:
        if not any((folder / file).is_file() for file in names):
            raise UserError(f"{folder} holds no {' or '.join(names)}; give a checkpoint's folder")
    return folder


def _download(name, required, optional):
    """→ the folder of these files in the hub's cache; without the hub, as far as it has them."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    huggingface_hub.logging.set_verbosity_error()            # its retries fill a screen
    online = True
    for names in (*((file,) for file in optional), *required):   # so, if the network breaks off, a
        found = None                                         # vocabulary never lacks its settings
        for file in names:
            try:
                found = huggingface_hub.hf_hub_download(name, file, local_files_only=not online)
                break
            except EntryNotFoundError as error:              # Local…: the hub was not reached
                online = online and not isinstance(error, LocalEntryNotFoundError)
        if found is None and names in required:
            where = "on the hub" if online else "in the cache, and no network"
            raise FileNotFoundError(f"no {' or '.join(names)} {where}")
    return Path(found).parent


def read_utf8(path, max_bytes=2 ** 31):
    """→ the text of a file in UTF-8. UserError names the first line that is not."""
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise UserError(f"{path} has more than {max_bytes:,} bytes; no file of this kind is so "
                        f"large")
    if b"\0" in content:
        line = content[:content.index(b"\0")].count(b"\n") + 1
        raise UserError(f"{path} line {line} holds a zero byte: it is binary or UTF-16, not UTF-8")
    try:
        text = content.decode("utf-8-sig")
        return text if "\n" in text else text.replace("\r", "\n")        # of old Macs
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line} is not UTF-8 (byte 0x{content[error.start]:02x}); "
                        f"save the file in UTF-8") from error


def read_tensors(path):
    """→ {name: tensor} of a .safetensors file, or of a .bin file without code: a dictionary of
    tensors, or a training state with one under "state_dict"."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        content = io.BytesIO(path.read_bytes())
        tensors = torch.load(content, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is corrupt, or could run code when it is opened; use a "
                        f".safetensors file") from error
    except Exception as error:                               # torch.load raises of every kind
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:150] or "it ends too soon"
        raise UserError(f"{path} is corrupt or cut short ({reason}); fetch it again") from error
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    if not (isinstance(tensors, dict)
            and all(isinstance(name, str) and isinstance(value, torch.Tensor)
                    for name, value in tensors.items())):
        raise UserError(f"{path} is no file of weights: it holds no dictionary of tensors")
    return tensors


def read_metadata(path):
    """→ {name: text} in the header of a .safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is missing, corrupt or cut short ({error})") from error


@contextmanager
def atomic_write(path):
    """Yield a binary file that replaces `path` when all of it is on the disk: even after a crash
    `path` has the whole old content or the whole new one. The file is new and this process's own
    ("x": it must not exist), and a link at `path` is replaced: nothing is written through links."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; nothing was lost"
                        ) from error
    finally:
        with suppress(OSError):
            part.unlink()                                 # still there only if something went wrong


def write_json(path, values):
    with atomic_write(path) as file:
        file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n")
                   .encode(errors="backslashreplace"))       # "\\udcff": JSON's own spelling


def write_tensors(path, tensors, **metadata):
    """Write {name: tensor} as .safetensors, with one field of text in its header (several would be
    in another order each time) → the bytes. Tensors that share memory are written apart."""
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = save(whole, metadata=metadata or {"format": "pt"})
    with atomic_write(path) as file:
        file.write(content)
    return content


def fingerprint(*parts):
    """The first 16 hex digits of the SHA-256 of bytes, texts and tensors, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]
