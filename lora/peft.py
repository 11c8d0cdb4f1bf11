"""peft's names and peft's adapter_config.json (huggingface/peft)."""

import json
import re
from collections import Counter

from bert import UserError
from bert.checkpoint import TO_OURS, TO_THEIRS, rename
from bert.files import read_utf8
from lora.layers import LoRA
from lora.xs import XS

PREFIX = "base_model.model."
MATRIX = re.compile(r"(.+)\.lora_([ABR])\.weight")
KINDS = {"LORA": LoRA, "LORA_XS": XS}
REFUSED = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out",
           "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
           "layer_replication")


def theirs(place):
    """"layers.0.attention.query" → "encoder.layer.0.attention.self.query" """
    return rename(f"{place}.weight", TO_THEIRS).removesuffix(".weight")


def ours(module):
    return rename(f"{module}.weight", TO_OURS).removesuffix(".weight")


def config_of(matrices, norms):
    """adapter_config.json for {their module: adapter} and LayerNorms. What most matrices have in
    common is said once, the others' rank and alpha stand in patterns."""
    first = next(iter(matrices.values()))
    (rank, alpha), _ = Counter((m.rank, m.alpha) for m in matrices.values()).most_common(1)[0]
    kind = next(name for name, made in KINDS.items() if isinstance(first, made))
    own = {"sigma": first.sigma, "init": first.init} if kind == "LORA_XS" else {
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "use_dora": False,
        "use_rslora": False, "init_lora_weights": True}
    return {
        "peft_type": kind, "task_type": None, "base_model_name_or_path": None,
        "r": rank, "lora_alpha": alpha, "lora_dropout": first.dropout,
        "target_modules": list(matrices), "modules_to_save": norms or None,
        "rank_pattern": {name: m.rank for name, m in matrices.items() if m.rank != rank},
        "alpha_pattern": {name: m.alpha for name, m in matrices.items() if m.alpha != alpha},
    } | own


def read_config(path):
    try:
        config = json.loads(read_utf8(path))
        float(config["lora_alpha"]), float(config.get("lora_dropout", 0))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged, or describes no LoRA ({error!r})") from error
    if config.get("peft_type") not in KINDS:
        raise UserError(f"{path} describes an adapter of type {config.get('peft_type')!r}; only "
                        f"{' and '.join(KINDS)} are known here")
    more = [field for field in REFUSED if config.get(field)]
    if more or config.get("bias", "none") != "none":
        raise UserError(f"{path} asks for {', '.join(more) or 'trained biases'}, which is not "
                        f"built here; it would act as another adapter than the one trained")
    return config


def alpha_of(config, module, rank):
    """A matrix's alpha, such that alpha/rank is the scale peft would take."""
    patterns = config.get("alpha_pattern") or {}
    match = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
    alpha = config["lora_alpha"] if match is None else patterns[match]
    return alpha * rank ** 0.5 if config.get("use_rslora") else alpha
