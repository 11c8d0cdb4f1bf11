"""An adapter as a folder in the layout of huggingface/peft: peft opens it, and peft's open here.

    adapter_config.json          rank, alpha, dropout and modules, by Hugging Face's names
    adapter_model.safetensors    base_model.model.encoder.layer.0.output.dense.lora_A.weight, …

LoRA-XS uses the same two files with lora_R alone; peft cannot open it. The files saved here also
hold a fingerprint of the base model, and loading checks it."""

import re
import warnings
from collections import Counter
from copy import deepcopy
from pathlib import Path

from torch import nn

from bert import UserError, files
from bert.checkpoint import TO_HF, check_names_and_shapes, rename
from bert.json_files import check_type, read_json
from bert.matrices import MATRICES
from lora import adapters
from lora.kinds import KINDS, make_adapter
from lora.linear import LoRALinear

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."                               # of every key in peft's files
PLAIN_LORA = {"bias": "none", "fan_in_fan_out": False, "inference_mode": True, "use_dora": False,
              "use_rslora": False, "init_lora_weights": True}
FIELDS = {                                                 # of adapter_config.json
    "r": range(1, 2 ** 31), "rank_pattern?": dict[str, range(1, 2 ** 31)] | None,
    "lora_alpha": float, "alpha_pattern?": dict[str, float] | None, "lora_dropout?": float,
    "use_rslora?": bool | None}
PATTERN = re.compile(r"\^?([\w-]|\\?\.)*(\.\*([\w-]|\\?\.)*)?\$?")     # a name, or with one .*
REFUSED = ("bias", "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out",
           "alora_invocation_tokens", "trainable_token_indices", "layer_replication",
           "target_parameters", "arrow_config", "kasa_config", "monteclora_config", "velora_config")
INITS_THAT_KEEP_THE_BASE = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")
MERGE = "merge it in peft (merge_and_unload) and open the merged checkpoint"


def to_hf_name(module):
    """"layers.0.attention.query" → "encoder.layer.0.attention.self.query" """
    return rename(f"{module}.weight", TO_HF).removesuffix(".weight")


def base_fingerprint(bert):
    """The fingerprint of the pretrained weights: what has no name in Hugging Face's layout (exits)
    is left out. UserError if an adapter is merged."""
    with adapters.detached(bert):
        weights = {rename(name, TO_HF): tensor for name, tensor in bert.state_dict().items()
                   if rename(name, TO_HF) != name}
    return files.fingerprint(*(part for item in sorted(weights.items()) for part in item))


def save(bert, adapter, folder):
    """Write one adapter in peft's layout."""
    write_adapter(bert, adapter, folder, base_fingerprint(bert))


def write_adapter(bert, adapter, folder, base):
    """The same, with the base_fingerprint `base` → {path: bytes} of the weights. The most common
    rank and alpha are the file's defaults, and patterns hold the others."""
    adapters.check_attached(bert, adapter)
    matrices, norms, tensors = {}, [], {}
    for name, layer in adapters.adapter_layers(bert).items():
        module, hf_name = layer.adapters[adapter], to_hf_name(name)
        if module is None:
            continue
        if isinstance(layer, LoRALinear):
            matrices[hf_name] = module
        else:
            norms.append(hf_name)
        stored = KINDS[module.kind].tensors if hf_name in matrices else {}
        for key, tensor in module.named_parameters():
            tensors[f"{PREFIX}{hf_name}.{stored.get(key, key)}"] = tensor
    path = Path(folder, WEIGHTS[0])
    content = files.write_tensors(path, tensors, base=base)
    first = next(iter(matrices.values()))
    (rank, alpha), _ = Counter((m.rank, m.alpha) for m in matrices.values()).most_common(1)[0]
    kind = KINDS[first.kind]
    files.write_json(Path(folder, CONFIG), {
        "peft_type": kind.peft_type, "task_type": None, "base_model_name_or_path": None,
        "r": rank, "lora_alpha": alpha, "lora_dropout": first.dropout,
        "target_modules": list(matrices), "modules_to_save": norms or None,
        "rank_pattern": {name: m.rank for name, m in matrices.items() if m.rank != rank},
        "alpha_pattern": {name: m.alpha for name, m in matrices.items() if m.alpha != alpha},
    } | (PLAIN_LORA if kind.peft_type == "LORA" else {}) | kind.fields)
    return {path: content}


def load(bert, folder, adapter=None, reads_pooler=False):
    """Attach the adapter in a folder, or of that name on the hub → its name in the model. Weights
    for the pooler are left out with a warning, or refused if the heads read it (reads_pooler)."""
    directory = files.resolve_checkpoint(folder, [(CONFIG,), WEIGHTS])
    adapter = Path(folder).resolve().name if adapter is None else adapter
    adapters.check_new(bert, adapter)
    path = next(directory / file for file in WEIGHTS if (directory / file).is_file())
    config, kind = read_config(directory / CONFIG)
    base = files.read_metadata(path).get("base") if path.suffix == ".safetensors" else None
    own = base_fingerprint(bert)
    if base not in (None, own):
        raise UserError(f"{path} was trained on another base (its fingerprint is {base}, this "
                        f"model's is {own}); open the run it was trained in")
    tensors = files.read_tensors(path)
    found = group_by_module(bert, path, tensors, KINDS[kind].tensors, reads_pooler)
    prefix = "bert." if any(f"{PREFIX}bert.encoder." in key for key in tensors) else ""
    modules = {}                             # "bert.": the encoder of a model with a task's head
    for name, parameters in found.items():
        layer, hf_name = adapters.base_layer(bert, name), prefix + to_hf_name(name)
        if isinstance(layer, nn.LayerNorm):
            module = deepcopy(layer)
        else:
            rank, alpha = rank_and_alpha(config, hf_name)
            module = make_adapter(kind, layer.weight, rank, alpha, config.get("lora_dropout", 0.0))
        check_names_and_shapes(f"{path}: {hf_name}", module.state_dict(), parameters, CONFIG)
        module.requires_grad_().load_state_dict(parameters)
        modules[name] = module
    adapters.insert_adapters(bert, {adapter: modules})
    return adapter


def group_by_module(bert, path, tensors, stored, reads_pooler):
    """A file's {key: tensor} → {module's name: {parameter: tensor}}; stored: the kind's {parameter:
    name in the file}. Further modules of the encoder are a UserError, the rest a warning."""
    norms = dict.fromkeys(adapters.layernorm_names(bert), {"weight": "weight", "bias": "bias"})
    suffixes = dict.fromkeys(adapters.matrix_names(bert), stored) | norms
    known = {f"{to_hf_name(name)}.{suffix}": (name, parameter)
             for name in suffixes for parameter, suffix in suffixes[name].items()}
    plain = {key: key.removeprefix(PREFIX).removeprefix("bert.") for key in tensors}
    found, others = {}, [key for key in tensors if plain[key] not in known]
    for key, tensor in tensors.items():
        if plain[key] in known:
            name, parameter = known[plain[key]]
            found.setdefault(name, {})[parameter] = tensor
    wrong = [key for key in others if plain[key].startswith(("embeddings.", "encoder."))]
    if wrong or not found.keys() - norms.keys():
        names = [to_hf_name(f"layers.0.{part}").split(".", 3)[3] for part in MATRICES.values()]
        raise UserError(f"{path} adapts what no adapter here acts on: "
                        f"{', '.join((wrong or others)[:3]) or 'no matrix at all'}; the model's "
                        f"{len(bert.layers)} layers have {', '.join(names)}, beside LayerNorms")
    pooler = any(plain[key].startswith("pooler.") for key in others)
    if pooler and reads_pooler:
        raise UserError(f"{path} adapts the pooler, which the heads of this model read; train one "
                        f"without it (in peft, exclude_modules=['pooler.dense']), or {MERGE}")
    if others:
        warnings.warn(f"{path}: left out {', '.join(others)}, which no adapter here acts on"
                      + (" (pooler_output is the base's)" if pooler else ""), stacklevel=3)
    return found


def read_config(path):
    """→ the fields of adapter_config.json, and the kind of adapter (a key of KINDS)."""
    config = read_json(path)
    rows = {name: {"peft_type": kind.peft_type} | kind.fields for name, kind in KINDS.items()}
    matching = [name for name, row in rows.items() if row.items() <= config.items()]
    if not matching:
        given = {field: config.get(field) for row in rows.values() for field in row}
        raise UserError(f"{path} describes an adapter with {given}; supported are "
                        f"{', '.join(map(str, rows.values()))}; {MERGE}")
    kind = max(matching, key=lambda name: len(rows[name]))               # the most specific row
    check_type(config, FIELDS, path)
    if not 0 <= config.get("lora_dropout", 0) <= 1:
        raise UserError(f"{path}: lora_dropout is {config['lora_dropout']}; it must be from 0 to 1")
    for field in ("rank_pattern", "alpha_pattern"):
        check_patterns(path, field, config.get(field) or {})
    wrong = [field for field in REFUSED if (config.get(field) or "none") != "none"
             and field not in KINDS[kind].fields]
    if wrong:
        raise UserError(f"{path} asks for {', '.join(wrong)}, which is not supported; {MERGE}")
    init = str(config.get("init_lora_weights", True))
    if init.lower() not in INITS_THAT_KEEP_THE_BASE:
        raise UserError(f"{path} has init_lora_weights {init!r}, which changed the base's weights, "
                        f"and the file holds the adapter alone. In peft, save_pretrained(…, "
                        f"path_initial_model_for_weight_conversion=…) makes it a plain LoRA; or "
                        f"{MERGE}")
    return config, kind


def check_patterns(path, field, patterns):
    """UserError unless these are plain names, or alternatives (a|b) of names with a .* in them: a
    further regular expression could take for ever to match."""
    others = [pattern for pattern in patterns if not re.fullmatch(r"[\w.-]+", pattern)]
    for pattern in others:
        inner = pattern[1:-1] if pattern[:1] + pattern[-1:] == "()" else pattern
        if not all(map(PATTERN.fullmatch, inner.split("|"))):
            raise UserError(f"{path}: {field} has the pattern {pattern!r}; it must be a name, or "
                            f"alternatives a|b, with no more than one .* in each")
    if len(patterns) > 5000 or sum(map(len, others)) > 2000:
        raise UserError(f"{path}: {field} has too many patterns; name each matrix once")


def rank_and_alpha(config, module):
    """A matrix's rank and alpha; rsLoRA scales by alpha/√rank, so alpha·√rank is returned.
    `module` is its name in the file, which peft's patterns match."""
    def value(field, default):
        patterns = config.get(f"{field}_pattern") or {}
        return next((given for pattern, given in patterns.items()
                     if re.match(rf"(.*\.)?({pattern})$", module)), config[default])

    rank, alpha = value("rank", "r"), value("alpha", "lora_alpha")
    return rank, alpha * rank ** 0.5 if config.get("use_rslora") else alpha
