"""An adapter as a folder in peft's layout: peft opens it on transformers' BertModel, and peft's
adapters open here.

    adapter_config.json          rank, alpha, dropout and modules, by Hugging Face's names
    adapter_model.safetensors    base_model.model.encoder.layer.0.output.dense.lora_A.weight, …

LoRA-XS uses the same two files with lora_R alone; peft cannot open it. The files saved here also
hold a fingerprint of the base model, and loading checks it. Heads are files of their own.
"""

import warnings
from pathlib import Path

from torch import nn

from bert import UserError, files
from bert.checkpoint import TO_HF, check_names_and_shapes, rename
from lora import adapters
from lora.kinds import KINDS, make_adapter
from lora.layers import LayerNormCopy, LoRALinear
from lora.peft import MERGE, make_config, rank_and_alpha, read_config, to_hf_name

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."                               # of every key in peft's files


def base_fingerprint(bert):
    """The fingerprint of the weights without adapters, under Hugging Face's names; what has no name
    there (exits) is left out. UserError if an adapter is merged."""
    with adapters.detached(bert):
        weights = {rename(name, TO_HF): tensor for name, tensor in bert.state_dict().items()
                   if rename(name, TO_HF) != name}
    return files.fingerprint(*(part for item in sorted(weights.items()) for part in item))


def save(bert, adapter, folder, base=None):
    """Write one adapter. base: the base_fingerprint, if the caller has it. UserError if an adapter
    is merged."""
    adapters.check_attached(bert, adapter)
    matrices, norms, tensors = {}, [], {}
    for name, layer in adapters.adapter_layers(bert).items():
        module, hf_name, stored = layer.adapters[adapter], to_hf_name(name), {}
        if module is None:
            continue
        if isinstance(layer, LoRALinear):
            matrices[hf_name], stored = module, KINDS[module.kind].tensors
        else:
            norms.append(hf_name)
        for key, tensor in module.named_parameters():
            tensors[f"{PREFIX}{hf_name}.{stored.get(key, key)}"] = tensor
    files.write_tensors(Path(folder, WEIGHTS[0]), tensors, base=base or base_fingerprint(bert))
    files.write_json(Path(folder, CONFIG), make_config(matrices, norms))


def load(bert, folder, adapter=None, reads_pooler=False):
    """Attach the adapter in a folder, or of that name on the hub → its name in the model, `adapter`
    or else the folder's. Weights for the pooler are left out with a warning. UserError if there are
    some and the heads read the pooler (`reads_pooler`), or if the adapter does not fit."""
    directory = files.resolve_checkpoint(folder, [(CONFIG,), WEIGHTS])
    adapter = Path(str(folder)).resolve().name if adapter is None else adapter
    adapters.check_new(bert, adapter)
    path = next(directory / file for file in WEIGHTS if (directory / file).is_file())
    config, kind = read_config(directory / CONFIG)
    metadata = files.read_metadata(path) if path.suffix == ".safetensors" else {}
    if metadata.get("base") not in (None, base_fingerprint(bert)):
        raise UserError(f"{path} was trained on another base (its fingerprint is "
                        f"{metadata['base']}, this model's is {base_fingerprint(bert)}); open the "
                        f"run it was trained in")
    tensors = files.read_tensors(path)
    found, others = group_by_module(bert, tensors, KINDS[kind].tensors)
    check_others(bert, path, found, others, reads_pooler)
    prefix = "bert." if any(f"{PREFIX}bert.encoder." in key for key in tensors) else ""
    modules = {}
    for name, parameters in found.items():
        base, hf_name = adapters.base_layer(bert, name), prefix + to_hf_name(name)
        modules[name] = LayerNormCopy(base) if isinstance(base, nn.LayerNorm) else make_adapter(
            kind, base.weight, *rank_and_alpha(config, hf_name), config.get("lora_dropout", 0.0))
        check_names_and_shapes(f"{path}: {hf_name}", modules[name].state_dict(), parameters)
        modules[name].load_state_dict(parameters)
    adapters.insert_adapters(bert, {adapter: modules})
    return adapter


def without_prefix(key):
    """"base_model.model.bert.encoder.layer.0…" → "encoder.layer.0…" """
    return key.removeprefix(PREFIX).removeprefix("bert.")


def group_by_module(bert, tensors, stored):
    """A file's {key: tensor} → {module's name: {parameter: tensor}} of the matrices and LayerNorms
    to adapt, and the keys of all other tensors. `stored`: the kind's {parameter: name in the
    file}."""
    norms = dict.fromkeys(adapters.layernorm_names(bert), {"weight": "weight", "bias": "bias"})
    suffixes = dict.fromkeys(adapters.matrix_names(bert), stored) | norms
    known = {f"{to_hf_name(name)}.{suffix}": (name, parameter)
             for name in suffixes for parameter, suffix in suffixes[name].items()}
    found, others = {}, []
    for key, tensor in tensors.items():
        name, parameter = known.get(without_prefix(key), (None, None))
        if name is None:
            others.append(key)
        else:
            found.setdefault(name, {})[parameter] = tensor
    return (found if found.keys() - norms.keys() else {}), others


def check_others(bert, path, found, others, reads_pooler):
    """UserError if the file adapts further modules of the encoder; a warning for the rest (pooler,
    heads), which is left out."""
    wrong = [key for key in others if without_prefix(key).startswith(("embeddings.", "encoder."))]
    if wrong or not found:
        known = dict.fromkeys(to_hf_name(name).split(".", 3)[3]
                              for name in adapters.matrix_names(bert))
        raise UserError(f"{path} adapts what no adapter here acts on: "
                        f"{', '.join((wrong or others)[:3]) or 'no matrix at all'}; the model's "
                        f"{len(bert.layers)} layers have {', '.join(known)}, beside LayerNorms")
    pooler = any(without_prefix(key).startswith("pooler.") for key in others)
    if pooler and reads_pooler:
        raise UserError(f"{path} adapts the pooler, which the heads of this model read, and no "
                        f"adapter here acts on it; train one without it (in peft, exclude_modules="
                        f"['pooler.dense']), or {MERGE}")
    if others:
        warnings.warn(f"{path}: left out {', '.join(others)}, which no adapter here acts on"
                      + (" (pooler_output is the base's)" if pooler else ""), stacklevel=3)
