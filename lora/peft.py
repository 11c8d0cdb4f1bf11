"""peft's names and peft's adapter_config.json (huggingface/peft)."""

import json
import re
from collections import Counter

from bert import UserError
from bert.checkpoint import FROM_HF, TO_HF, rename
from bert.files import read_utf8
from lora.kinds import KINDS

PREFIX = "base_model.model."
PLAIN = {"bias": "none", "fan_in_fan_out": False, "inference_mode": True, "use_dora": False,
         "use_rslora": False, "init_lora_weights": True}     # what peft's LoRA is without options
REFUSED = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out",
           "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
           "layer_replication", "arrow_config", "kasa_config", "monteclora_config",
           "velora_config")
SAME_BASE = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")
MERGE = "merge it in peft (merge_and_unload) and open the merged checkpoint"


def to_hf_name(module_name):
    """"layers.0.attention.query" → "encoder.layer.0.attention.self.query" """
    return rename(f"{module_name}.weight", TO_HF).removesuffix(".weight")


def from_hf_name(module):
    return rename(f"{module}.weight", FROM_HF).removesuffix(".weight")


def config_of(matrices, norms):
    """adapter_config.json for {their module: adapter} and LayerNorms. What most matrices have in
    common is said once, the others' rank and alpha stand in patterns."""
    first = next(iter(matrices.values()))
    (rank, alpha), _ = Counter((m.rank, m.alpha) for m in matrices.values()).most_common(1)[0]
    kind = KINDS[first.kind]
    return {
        "peft_type": kind.peft_type, "task_type": None, "base_model_name_or_path": None,
        "r": rank, "lora_alpha": alpha, "lora_dropout": first.dropout,
        "target_modules": list(matrices), "modules_to_save": norms or None,
        "rank_pattern": {name: m.rank for name, m in matrices.items() if m.rank != rank},
        "alpha_pattern": {name: m.alpha for name, m in matrices.items() if m.alpha != alpha},
    } | (PLAIN if kind.peft_type == "LORA" else {}) | kind.fields


def read_config(path):
    """→ the fields of adapter_config.json, and the kind (a name in KINDS) of adapter it describes.
    UserError where it asks for what is not built here."""
    try:
        config = json.loads(read_utf8(path))
        kind = kind_of(path, config)
        ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
        if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
            raise ValueError(f"ranks {ranks}")
        for number in (config["lora_alpha"], config.get("lora_dropout", 0),
                       *(config.get("alpha_pattern") or {}).values()):
            float(number)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or describes no adapter ({error!r})") from error
    more = [field for field in REFUSED if config.get(field) and field not in KINDS[kind].fields]
    if more or config.get("bias", "none") != "none":
        raise UserError(f"{path} asks for {', '.join(more) or 'trained biases'}, which is not "
                        f"built here; it would act as another adapter than the one trained")
    init = str(config.get("init_lora_weights", True))
    if init.lower() not in SAME_BASE:
        raise UserError(f"{path} has init_lora_weights {init!r}, which changes the base's weights, "
                        f"and the file holds the adapter alone: on the checkpoint's own weights "
                        f"its outputs would be wrong. In peft, save_pretrained(…, "
                        f"path_initial_model_for_weight_conversion=…) makes a plain LoRA of it; or "
                        f"{MERGE}")
    return config, kind


def kind_of(path, config):
    """The kind whose peft_type and fields the file has; of several the one with most fields."""
    peft_type = config["peft_type"]
    rows = {name: kind.fields for name, kind in KINDS.items() if kind.peft_type == peft_type}
    if not rows:
        known = dict.fromkeys(kind.peft_type for kind in KINDS.values())
        raise UserError(f"{path} describes an adapter of type {peft_type!r}, and only "
                        f"{' and '.join(known)} are built here; {MERGE}")
    fits = [name for name, fields in rows.items()
            if all(config.get(field) == value for field, value in fields.items())]
    if not fits:
        named = {field: config.get(field) for fields in rows.values() for field in fields}
        raise UserError(f"{path} describes a {peft_type} with {named}, and those built here have "
                        f"{' or '.join(map(str, rows.values()))}")
    return max(fits, key=lambda name: len(rows[name]))


def rank_and_alpha(config, module):
    """A matrix's rank, and its alpha such that alpha/rank is the scale peft would take. `module` is
    its name in the file: peft's patterns match that."""
    rank, alpha = (of_pattern(config.get(f"{name}_pattern") or {}, module, config[default])
                   for name, default in (("rank", "r"), ("alpha", "lora_alpha")))
    return rank, alpha * rank ** 0.5 if config.get("use_rslora") else alpha


def of_pattern(patterns, module, default):
    return next((value for pattern, value in patterns.items()
                 if re.match(rf"(.*\.)?({pattern})$", module)), default)
