"""Hugging Face checkpoints: read under this project's names, checked strictly, written under
theirs.

    their name                                           our name
    encoder.layer.3.attention.self.query.weight    ↔     layers.3.attention.query.weight

Two parts may be absent (OPTIONAL); the model then has new ones, with a warning. Heads of tasks are
left out, with a warning.
"""

import re
import warnings
from functools import reduce
from pathlib import Path

import torch

from bert.config import BertConfig
from bert.errors import UserError
from bert.files import read_json, read_tensors, resolve_checkpoint, write_json, write_tensors

RENAME = [                                                   # (their module, ours)
    ("embeddings.word_embeddings", "word_embeddings"),
    ("embeddings.position_embeddings", "position_embeddings"),
    ("embeddings.token_type_embeddings", "token_type_embeddings"),
    ("embeddings.LayerNorm", "embedding_norm"),
    ("encoder.layer.#.attention.self.query", "layers.#.attention.query"),
    ("encoder.layer.#.attention.self.key", "layers.#.attention.key"),
    ("encoder.layer.#.attention.self.value", "layers.#.attention.value"),
    ("encoder.layer.#.attention.self.attention_function", "layers.#.attention.attention_function"),
    ("encoder.layer.#.attention.output.dense", "layers.#.attention.output"),
    ("encoder.layer.#.attention.output.LayerNorm", "layers.#.attention_norm"),
    ("encoder.layer.#.intermediate.dense", "layers.#.ffn.fc_in"),
    ("encoder.layer.#.output.dense", "layers.#.ffn.fc_out"),
    ("encoder.layer.#.output.LayerNorm", "layers.#.output_norm"),
    ("pooler.dense", "pooler"),
]
FROM_HF = dict(RENAME)
TO_HF = {ours: theirs for theirs, ours in RENAME}
LEGACY = {"gamma": "weight", "beta": "bias"}             # LayerNorm's names in the first BERT files
IGNORED = re.compile(r"embeddings\.position_ids")        # a buffer in older files: 0, 1, 2, …
PREFIXES = re.compile(r"^((module|model|bert)\.)*")      # of modules that hold the encoder
PRETRAINING, TASK = ("cls",), ("classifier", "qa_outputs")                        # names of heads
SHARD = re.compile(r"[^/\\:]+\.(safetensors|bin)")       # a file beside the index, and no path
POOLER, ATTENTION = r"pooler\.", r"layers\.\d+\.attention\.attention_function\."
OPTIONAL = {                                             # our names → what the warning says
    POOLER: "no pooler; the model has a new, untrained one, and reading it is an error",
    ATTENTION: "no parameters of the attention function; the model has new, untrained ones",
}

CONFIG = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json",
           "pytorch_model.bin", "pytorch_model.bin.index.json")


def rename(name, table):
    """→ a parameter's name by `table`; a name whose module is not in it stays unchanged."""
    layer = re.search(r"\.\d+\.", name)                      # ".3."
    pattern = name.replace(layer[0], ".#.", 1) if layer else name
    for module in table:
        if pattern.startswith(module + "."):
            name = table[module] + pattern.removeprefix(module)
            return name.replace(".#.", layer[0], 1) if layer else name
    return name


def plain_name(name):
    """→ their name in today's form: no prefixes, LayerNorms with weight and bias."""
    module, dot, last = PREFIXES.sub("", name).rpartition(".")
    return module + dot + (LEGACY.get(last, last) if module.endswith("LayerNorm") else last)


def read_weights(name, path):
    """→ {name: tensor} of a file of weights, or of all shards listed in `path`, an index. Shards of
    a hub's model `name` are downloaded."""
    if path.suffix != ".json":
        return read_tensors(path)
    shards = read_json(path).get("weight_map")               # {tensor: its file}
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{path} holds no weight_map, which says in which file each weight lies")
    for file in shards.values():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise UserError(f"{path} names the file {file!r}; it must be a .safetensors or .bin "
                            f"file in the same folder")
    files = sorted(set(shards.values()))
    resolve_checkpoint(name, [(file,) for file in files])
    tensors = {}
    for file in files:
        found = read_tensors(path.with_name(file))
        for tensor in found.keys() ^ {tensor for tensor, place in shards.items() if place == file}:
            raise UserError(f"{path.with_name(file)} {'holds' if tensor in found else 'lacks'} "
                            f"{tensor}, but {path.name} says that it is in "
                            f"{shards.get(tensor, 'no file')}; fetch both again")
        tensors |= found
    return tensors


def read_checkpoint(name):
    """→ config, path of the weights, {our name: tensor} of the encoder, {their name: tensor} of the
    heads."""
    folder = resolve_checkpoint(name, [CONFIG, WEIGHTS])
    config = BertConfig.load(folder / "config.json")
    path = next(folder / file for file in WEIGHTS if (folder / file).is_file())
    encoder, heads = {}, {}
    for given, tensor in read_weights(name, path).items():
        plain = plain_name(given)
        if IGNORED.fullmatch(plain):
            continue
        if not tensor.is_floating_point():
            raise UserError(f"{path} holds {given} as {tensor.dtype}; weights must be floats")
        head = plain.partition(".")[0] in PRETRAINING + TASK
        to, key = (heads, plain) if head else (encoder, rename(plain, FROM_HF))
        if key in to:
            raise UserError(f"{path} holds {plain} twice (once as {given}); it must hold each "
                            "weight once")
        to[key] = tensor.float()
    return config, path, encoder, heads


def check_names_and_shapes(path, expected, found):
    """Raise UserError that names the tensors of `path` that are missing, unexpected or of another
    shape; `expected` and `found` are {name: tensor}."""
    expected, found = ({rename(name, TO_HF): list(t.shape) for name, t in side.items()}
                       for side in (expected, found))
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape:": [f"{name} {found[name]} instead of {shape}"
                              for name, shape in expected.items()
                              if found.get(name, shape) != shape],
    }
    problems = [f"{what} {', '.join(names[:5])}"
                + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                for what, names in wrong.items() if names]
    if problems:
        raise UserError(f"{path} does not fit its configuration: {'; '.join(problems)}. "
                        f"Compare config.json with the weights")


def load_bert(cls, name, attention, rebuild=None):
    """→ a `cls` (Bert) with the weights of the checkpoint `name`: a folder, "tiny" or a hub id.
    `rebuild(bert)` changes the modules as those of the saved model had been changed."""
    config, path, encoder, heads = read_checkpoint(name)
    with torch.device("meta"):                               # shapes only: the weights are at hand
        bert = cls(config)
        if rebuild is not None:
            rebuild(bert)
    notes, new = [], new_optional_parts(bert, attention)
    for pattern, note in OPTIONAL.items():
        made, held = ({name: tensor for name, tensor in tensors.items() if re.match(pattern, name)}
                      for tensors in (new, encoder))
        if held and not made:
            raise UserError(f"{path} holds {rename(min(held), TO_HF)}, but the attention "
                            f"{attention!r} has no parameters; open it with the attention that it "
                            "was trained with")
        if made and not held:
            encoder |= made
            notes.append(f"holds {note}")
            bert.pooler_is_new |= pattern == POOLER
    check_names_and_shapes(path, bert.state_dict(), encoder)
    bert.load_state_dict(encoder, assign=True)
    left_out = sorted({key.partition(".")[0] for key in heads} & set(TASK))
    if left_out:
        notes.append(f"holds a task's head, {', '.join(f'{h}.*' for h in left_out)}; it is left "
                     "out")
    for note in notes:
        warnings.warn(f"{path} {note}", stacklevel=3)
    return bert.eval()


def new_optional_parts(bert, attention):
    """Make `bert` use the attention → {name: tensor} of all OPTIONAL parts with the values of a new
    model, always the same. Draws no random numbers from torch's generator."""
    size = bert.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        weight = torch.empty(size, size).normal_(std=bert.config.initializer_range)
        bert.use_attention(attention)
    functions = {name: t for name, t in bert.state_dict().items() if re.match(ATTENTION, name)}
    return {"pooler.weight": weight, "pooler.bias": torch.zeros(size)} | functions


def pretraining_heads(name):
    """→ {name: tensor} of the pretraining heads `cls.*` in the checkpoint `name`; {} if it has
    none."""
    *_, heads = read_checkpoint(name)
    return {key: tensor for key, tensor in heads.items() if key.partition(".")[0] in PRETRAINING}


def tensors_to_save(bert):
    """→ {their name: tensor} of all of the encoder, without a new pooler."""
    return {rename(name, TO_HF): tensor for name, tensor in bert.state_dict().items()
            if not (bert.pooler_is_new and name.startswith("pooler."))}


def save_bert(bert, folder, rebuild=None):
    """Write the Hugging Face layout. UserError if the weights are not those that the configuration,
    changed by `rebuild` (see load_bert), describes: nobody could open the file."""
    folder = Path(folder)
    with torch.device("meta"):
        plain = type(bert)(bert.config, bert.attention_name)
        if rebuild is not None:
            rebuild(plain)
    check_names_and_shapes(f"the model to be saved in {folder}", plain.state_dict(),
                           bert.state_dict())
    tensors = tensors_to_save(bert)
    write_tensors(folder / "model.safetensors", tensors)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    fields = bert.config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    fields.pop("torch_dtype", None)                          # its older name
    write_json(folder / "config.json", fields)
