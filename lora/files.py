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
from pathlib import Path

import torch
from torch import nn

from bert import UserError
from bert.files import read_metadata, read_tensors, resolve_checkpoint, write_json, write_tensors
from lora.adapters import detached, insert_adapters
from lora.kinds import KINDS, make_adapter
from lora.layers import LayerNormCopy, LoRALinear
from lora.peft import (
    MERGE,
    PREFIX,
    config_of,
    from_hf_name,
    rank_and_alpha,
    read_config,
    to_hf_name,
)
from lora.targets import TARGETS, adapter_layers, base_layer, check_name, check_new, layernorm_names

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
    for module_name, module in adapter_layers(bert).items():
        adapter = module.adapters[name]
        if isinstance(module, LoRALinear) and adapter is not None:
            matrices[to_hf_name(module_name)] = adapter
        elif adapter is not None:
            norms.append(to_hf_name(module_name))
        for key, tensor in adapter.named_parameters() if adapter is not None else ():
            key = KINDS[adapter.kind].tensors[key] if isinstance(module, LoRALinear) else key
            tensors[f"{PREFIX}{to_hf_name(module_name)}.{key}"] = tensor
    write_tensors(folder / WEIGHTS[0], tensors, base=base or base_checksum(bert))
    write_json(folder / CONFIG, config_of(matrices, norms))


def load(bert, folder, adapter=None, pooler_read=False):
    """Attach the adapter in a folder (or of that name on the hub) → the name it has from now on:
    `adapter`, or else the folder's own. No adapter acts on the pooler: a file's is left out with a
    warning, or with `pooler_read` refused."""
    files = resolve_checkpoint(folder, [(CONFIG,), WEIGHTS])
    name = Path(str(folder)).resolve().name if adapter is None else adapter
    check_new(bert, name)
    path = next(files / file for file in WEIGHTS if (files / file).is_file())
    config, kind = read_config(files / CONFIG)
    if path.suffix == ".safetensors":
        check_base(bert, path)
    found, others = group_by_module(bert, read_tensors(path), KINDS[kind].tensors)
    check_others(bert, path, found, others, pooler_read)
    insert_adapters(bert, {name: {module_name: build(bert, path, module_name, module, parts, config, kind)
                      for module_name, (module, parts) in found.items()}})
    return name


def check_base(bert, path):
    base = read_metadata(path).get("base")
    if base is not None and base != base_checksum(bert):
        raise UserError(f"{path} was trained on another base (its checksum is {base}, this "
                        f"model's is {base_checksum(bert)}); open the run it was trained in")


def group_by_module(bert, tensors, stored):
    """A file's tensors → {place: (module, {parameter: tensor})} of the matrices and LayerNorms that
    they adapt, `module` being the file's name for the place; and the keys of all others. `stored`
    {parameter: its name in the file} is of the adapter's kind."""
    matrices = {f"layers.{layer}.{inner}" for layer in range(len(bert.layers))
                for inner in TARGETS.values()}
    norms, found, others = set(layernorm_names(bert)), {}, []
    for key, tensor in tensors.items():
        plain = key.removeprefix(PREFIX)
        own = next((own for own, name in stored.items() if plain.endswith(f".{name}")), None)
        module, last = (plain.rpartition(".")[::2] if own is None else
                        (plain.removesuffix(f".{stored[own]}"), own))
        module_name = from_hf_name(module.removeprefix("bert."))
        if module_name in (norms if own is None else matrices):
            found.setdefault(module_name, (module, {}))[1][last] = tensor
        else:
            others.append(key)
    return (found if matrices & set(found) else {}), others


def check_others(bert, path, found, keys, pooler_read):
    """Refuse what a file adapts of the encoder beside `found`; warn of the rest (pooler, heads)."""
    plain = {key: key.removeprefix(PREFIX).removeprefix("bert.") for key in keys}
    wrong = [key for key in keys if plain[key].startswith(("embeddings.", "encoder."))]
    if wrong or not found:
        inner = [to_hf_name(f"layers.0.{module_name}").partition("0.")[2] for module_name in TARGETS.values()]
        raise UserError(f"{path} adapts what no adapter here acts on: "
                        f"{', '.join((wrong or keys)[:3]) or 'no matrix at all'}; the model's "
                        f"{len(bert.layers)} layers have {', '.join(inner)}, beside LayerNorms")
    pooler = [key for key in keys if plain[key].startswith("pooler.")]
    if pooler and pooler_read:
        raise UserError(f"{path} adapts the pooler, which the heads of this model read, and no "
                        f"adapter here acts on it; train one without it (in peft, exclude_modules="
                        f"['pooler.dense']), or {MERGE}")
    if keys:
        warnings.warn(f"{path}: left out {', '.join(keys)}, which no adapter here acts on"
                      + (" (pooler_output is the base's)" if pooler else ""), stacklevel=3)


def build(bert, path, module_name, module, parts, config, kind):
    """One matrix's or LayerNorm's adapter with its trained numbers; `module` is the file's name for
    the place."""
    base = base_layer(bert, module_name)
    if isinstance(base, nn.LayerNorm):
        adapter = LayerNormCopy(base)
    else:
        adapter = make_adapter(kind, base.weight, *rank_and_alpha(config, module),
                               config.get("lora_dropout", 0.0))
    expected = {key: list(p.shape) for key, p in adapter.named_parameters()}
    found = {key: list(tensor.shape) for key, tensor in parts.items()}
    if expected != found:
        raise UserError(f"{path}: for {module} it has {found}; the model needs {expected}")
    adapter.load_state_dict(parts)
    return adapter
