"""Pretrained weights: the names of Hugging Face's files on one side, ours on the other, checked
strictly. A task's head is left out and an absent pooler replaced by a new one, with a warning.

    their name                                           our name
    encoder.layer.3.attention.self.query.weight    ↔     layers.3.attention.query.weight
"""

import re
import warnings
from functools import reduce
from pathlib import Path

import torch

from bert.config import BertConfig
from bert.errors import UserError
from bert.files import read_json, read_tensors, resolve_checkpoint, write_json, write_tensors

RENAME = [                                                   # (theirs, ours)
    ("embeddings.word_embeddings", "word_embeddings"),
    ("embeddings.position_embeddings", "position_embeddings"),
    ("embeddings.token_type_embeddings", "token_type_embeddings"),
    ("embeddings.LayerNorm", "embedding_norm"),
    ("encoder.layer.#.attention.self.query", "layers.#.attention.query"),
    ("encoder.layer.#.attention.self.key", "layers.#.attention.key"),
    ("encoder.layer.#.attention.self.value", "layers.#.attention.value"),
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
PREFIXES = re.compile(r"((module|model|bert)\.)*")        # of modules that hold the encoder
PRETRAINING, TASK = ("cls",), ("classifier", "qa_outputs")                        # names of heads
SHARD = re.compile(r"[^/\\:]+\.(safetensors|bin)")       # a file beside the index, and no path

CONFIG = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json",
           "pytorch_model.bin", "pytorch_model.bin.index.json")


def rename(name, table):
    """A parameter's name by `table`; a name that the table does not know comes back unchanged."""
    module, _, last = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    module = re.sub(r"\.\d+\.", ".#.", module, count=1)
    if module not in table:
        return name
    return f"{table[module]}.{last}".replace("#", number[1] if number else "")


def plain_name(name):
    """Their name as it is today: without prefixes, LayerNorms with weight and bias."""
    name = name[PREFIXES.match(name).end():]
    module, dot, last = name.rpartition(".")
    return f"{module}{dot}{LEGACY.get(last, last)}"


def read_weights(name, path):
    """{name: tensor} of a file of weights, or of all shards that `path`, an index, lists. `name`
    is the checkpoint's; shards on the hub are fetched."""
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
        wrong = found.keys() ^ {tensor for tensor, place in shards.items() if place == file}
        if wrong:
            tensor = min(wrong)
            raise UserError(f"{path.with_name(file)} {'holds' if tensor in found else 'lacks'} "
                            f"{tensor}, but {path.name} says that it is in "
                            f"{shards.get(tensor, 'no file')}; fetch both again")
        tensors |= found
    return tensors


def read_checkpoint(name):
    """→ config, path of the weights, {name: tensor} of the encoder under our names, the same of the
    heads under theirs."""
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
    """UserError that names what is missing, unexpected or of another shape; {name: tensor} both."""
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
    """A `cls` (Bert) with the weights of the checkpoint `name`: a folder, "tiny" or a hub id.
    `reshape(bert)` does to the modules what had been done to those that were saved."""
    config, path, encoder, heads = read_checkpoint(name)
    with torch.device("meta"):                               # shapes only: the weights are at hand
        bert = cls(config, attention)
        if rebuild is not None:
            rebuild(bert)
    bert.pooler_is_new = not any(key.startswith("pooler.") for key in encoder)
    if bert.pooler_is_new:
        encoder |= new_pooler(config)
    check_names_and_shapes(path, bert.state_dict(), encoder)
    bert.load_state_dict(encoder, assign=True)
    if bert.pooler_is_new:
        warnings.warn(f"{path} holds no pooler; the model has a new, untrained one, and reading "
                      f"it is an error", stacklevel=3)
    left_out = sorted({key.partition(".")[0] for key in heads} & set(TASK))
    if left_out:
        warnings.warn(f"{path} holds a task's head, {', '.join(f'{h}.*' for h in left_out)}; it is "
                      f"left out", stacklevel=3)
    return bert.eval()


def new_pooler(config):
    """A pooler's tensors as a new model has them, always the same."""
    weight, generator = torch.empty(config.hidden_size, config.hidden_size), torch.Generator()
    weight.normal_(std=config.initializer_range, generator=generator.manual_seed(0))
    return {"pooler.weight": weight, "pooler.bias": torch.zeros(config.hidden_size)}


def pretraining_heads(name):
    """{name: tensor} of the pretraining heads `cls.*` in the checkpoint `name`; empty if it has
    none."""
    *_, heads = read_checkpoint(name)
    return {key: tensor for key, tensor in heads.items() if key.partition(".")[0] in PRETRAINING}


def tensors_to_save(bert):
    """{their name: tensor}: all of the encoder, but no pooler that is new."""
    return {rename(name, TO_HF): tensor for name, tensor in bert.state_dict().items()
            if not (bert.pooler_is_new and name.startswith("pooler."))}


def save_bert(bert, folder, rebuild=None):
    """Write the Hugging Face layout. A model whose weights are no longer those its configuration
    says is refused, unless `reshape` (see load_bert) accounts for it: nobody could open the
    file."""
    folder = Path(folder)
    with torch.device("meta"):
        plain = type(bert)(bert.config)
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
