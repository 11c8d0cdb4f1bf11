"""peft's module names and its adapter_config.json (huggingface/peft)."""

import math
import re
from collections import Counter

from bert import UserError
from bert.checkpoint import TO_HF, rename
from bert.files import read_json
from lora.kinds import KINDS

PLAIN_LORA = {"bias": "none", "fan_in_fan_out": False, "inference_mode": True, "use_dora": False,
              "use_rslora": False, "init_lora_weights": True}
REFUSED = ("bias", "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out",
           "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
           "layer_replication", "arrow_config", "kasa_config", "monteclora_config",
           "velora_config")
INITS_THAT_KEEP_THE_BASE = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")
MERGE = "merge it in peft (merge_and_unload) and open the merged checkpoint"


def to_hf_name(module):
    """"layers.0.attention.query" → "encoder.layer.0.attention.self.query" """
    return rename(f"{module}.weight", TO_HF).removesuffix(".weight")


def make_config(matrices, norms):
    """adapter_config.json of an adapter: {Hugging Face's module name: module} of its matrices, and
    the names of its LayerNorms. The most common rank and alpha are the defaults; patterns hold the
    others."""
    first = next(iter(matrices.values()))
    (rank, alpha), _ = Counter((m.rank, m.alpha) for m in matrices.values()).most_common(1)[0]
    kind = KINDS[first.kind]
    return {
        "peft_type": kind.peft_type, "task_type": None, "base_model_name_or_path": None,
        "r": rank, "lora_alpha": alpha, "lora_dropout": first.dropout,
        "target_modules": list(matrices), "modules_to_save": norms or None,
        "rank_pattern": {name: m.rank for name, m in matrices.items() if m.rank != rank},
        "alpha_pattern": {name: m.alpha for name, m in matrices.items() if m.alpha != alpha},
    } | (PLAIN_LORA if kind.peft_type == "LORA" else {}) | kind.fields


def read_config(path):
    """→ the fields of adapter_config.json, and the kind of adapter (a key of KINDS) it describes.
    UserError if the file is damaged or asks for an unsupported feature."""
    config = read_json(path)
    kind = find_kind(path, config)
    try:
        ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
        if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
            raise ValueError(f"ranks {ranks}")
        alphas = [config["lora_alpha"], *(config.get("alpha_pattern") or {}).values()]
        if not all(map(math.isfinite, (*alphas, config.get("lora_dropout", 0)))):
            raise ValueError(f"alpha {alphas}, dropout {config.get('lora_dropout')}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or describes no adapter ({error!r})") from error
    wrong = [field for field in REFUSED if (config.get(field) or "none") != "none"
             and field not in KINDS[kind].fields]
    if wrong:
        raise UserError(f"{path} asks for {', '.join(wrong)}, which is not supported; without it "
                        f"the adapter would compute something else; {MERGE}")
    init = str(config.get("init_lora_weights", True))
    if init.lower() not in INITS_THAT_KEEP_THE_BASE:
        raise UserError(f"{path} has init_lora_weights {init!r}, which changes the base's weights, "
                        f"and the file holds the adapter alone: on the checkpoint's own weights "
                        f"its outputs would be wrong. In peft, save_pretrained(…, "
                        f"path_initial_model_for_weight_conversion=…) makes a plain LoRA of it; or "
                        f"{MERGE}")
    return config, kind


def find_kind(path, config):
    """The row of KINDS with the config's peft_type and fields; if several fit, the one with the
    most fields."""
    rows = {name: {"peft_type": kind.peft_type} | kind.fields for name, kind in KINDS.items()}
    matching = [name for name, row in rows.items() if row.items() <= config.items()]
    if not matching:
        found = {field: config.get(field) for row in rows.values() for field in row}
        raise UserError(f"{path} describes an adapter with {found}; supported are "
                        f"{', '.join(map(str, rows.values()))}; {MERGE}")
    return max(matching, key=lambda name: len(rows[name]))


def rank_and_alpha(config, module):
    """A matrix's rank, and its alpha such that alpha/rank is peft's scale (rsLoRA: alpha/√rank).
    `module` is its name in the file, which peft's patterns match."""
    def value(field, default):
        patterns = config.get(f"{field}_pattern") or {}
        return next((value for pattern, value in patterns.items()
                     if re.match(rf"(.*\.)?({pattern})$", module)), config[default])

    rank, alpha = value("rank", "r"), value("alpha", "lora_alpha")
    return rank, alpha * rank ** 0.5 if config.get("use_rslora") else alpha
