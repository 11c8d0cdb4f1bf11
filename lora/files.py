"""An adapter as a folder, in peft's layout: it opens in peft on transformers' BertModel, and peft's
opens here.

    adapter_config.json          rank, alpha, dropout, and which modules, by transformers' names
    adapter_model.safetensors    base_model.model.encoder.layer.0.output.dense.lora_A.weight, …

LoRA-XS has the same two files, with lora_R alone; peft does not know it. Our files also hold the
checksum of the base that they were trained on, and load on no other. What belongs to an adapter
beside the encoder (heads) lies in files of its own next to these.
"""

import hashlib
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bert import UserError
from bert.files import find_files, read_metadata, read_tensors, write_json, write_tensors
from lora.adapters import detached, put
from lora.layers import LoRALinear, OwnNorm
from lora.peft import KINDS, MATRIX, PREFIX, alpha_of, config_of, ours, read_config, theirs
from lora.places import TARGETS, adapted, check_name, check_new, norm_places, pretrained
from lora.xs import XS

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")


def base_checksum(bert):
    """The first 16 hex digits of the SHA-256 of the model's weights without any adapter."""
    digest = hashlib.sha256()
    with detached(bert):
        for name, tensor in sorted(bert.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save(bert, name, folder, base=None):
    """Write one adapter. A merged one is refused: its base is not the pretrained one. base: its
    checksum, where it is known."""
    check_name(bert, name)
    folder, matrices, norms, tensors = Path(folder), {}, [], {}
    for place, module in adapted(bert).items():
        adapter = module.adapters[name]
        if isinstance(module, LoRALinear) and adapter is not None:
            matrices[theirs(place)] = adapter
        elif adapter is not None:
            norms.append(theirs(place))
        for key, tensor in adapter.named_parameters() if adapter is not None else ():
            key = f"lora_{key}.weight" if isinstance(module, LoRALinear) else key
            tensors[f"{PREFIX}{theirs(place)}.{key}"] = tensor
    write_tensors(folder / WEIGHTS[0], tensors, base=base or base_checksum(bert))
    write_json(folder / CONFIG, config_of(matrices, norms))


def load(bert, folder, adapter=None):
    """Attach the adapter in a folder (or of that name on the hub) → the name it has from now on:
    `adapter`, or else the folder's own."""
    files = find_files(folder, [(CONFIG,), WEIGHTS])
    name = Path(str(folder)).resolve().name if adapter is None else adapter
    check_new(bert, name)
    path = next(files / file for file in WEIGHTS if (files / file).is_file())
    config = read_config(files / CONFIG)
    if path.suffix == ".safetensors":
        check_base(bert, path)
    modules = {place: build(bert, path, place, parts, config)
               for place, parts in sort_out(bert, path, read_tensors(path)).items()}
    put(bert, {name: modules})
    return name


def check_base(bert, path):
    base = read_metadata(path).get("base")
    if base is not None and base != base_checksum(bert):
        raise UserError(f"{path} was trained on another base (its checksum is {base}, this "
                        f"model's is {base_checksum(bert)}); open the run it was trained in")


def sort_out(bert, path, tensors):
    """A file's tensors → {place: {parameter: tensor}} of the matrices and LayerNorms they adapt."""
    layers = range(len(bert.layers))
    matrices = {f"layers.{layer}.{inner}" for layer in layers for inner in TARGETS.values()}
    norms, found, strange = set(norm_places(bert)), {}, []
    for key, tensor in tensors.items():
        plain = key.removeprefix(PREFIX).removeprefix("bert.")
        low_rank = MATRIX.fullmatch(plain)
        module, last = low_rank.groups() if low_rank else plain.rpartition(".")[::2]
        if ours(module) in (matrices if low_rank else norms):
            found.setdefault(ours(module), {})[last] = tensor
        else:
            strange.append(key)
    if not matrices & set(found) or any("lora_" in key for key in strange):
        inner = [theirs(f"layers.0.{place}").partition("0.")[2] for place in TARGETS.values()]
        raise UserError(f"{path} adapts what this model has not: "
                        f"{', '.join(strange[:3]) or 'no matrix at all'}; its {len(layers)} layers "
                        f"have {', '.join(inner)}")
    if strange:
        warnings.warn(f"{path}: left out {', '.join(strange)}, which are not the encoder's",
                      stacklevel=3)
    return found


def build(bert, path, place, parts, config):
    """One matrix's or LayerNorm's adapter with its trained numbers."""
    base = pretrained(bert, place)
    if isinstance(base, nn.LayerNorm):
        module = OwnNorm(base)
    else:
        rank = len(parts.get("A", parts.get("R", ())))
        kind = KINDS[config["peft_type"]]
        if kind is XS:
            kind = partial(XS, sigma=config.get("sigma", "in"), init=config.get("init", "svd"))
        module = kind(base.weight, rank=rank, alpha=alpha_of(config, theirs(place), rank),
                      dropout=config.get("lora_dropout", 0.0))
    expected = {key: list(p.shape) for key, p in module.named_parameters()}
    found = {key: list(tensor.shape) for key, tensor in parts.items()}
    if expected != found:
        raise UserError(f"{path}: for {theirs(place)} it has {found}; the model needs {expected}")
    module.load_state_dict(parts)
    return module
