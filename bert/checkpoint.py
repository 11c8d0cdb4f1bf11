"""Hugging Face checkpoints: read under this project's names, checked strictly, written under
theirs. What is absent and made new, or left out (heads of tasks), is a warning.

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
from bert.files import read_tensors, resolve_checkpoint, write_json, write_tensors
from bert.json_files import read_json

FROM_HF = {                                              # their module: ours
    "embeddings.word_embeddings": "word_embeddings",
    "embeddings.position_embeddings": "position_embeddings",
    "embeddings.token_type_embeddings": "token_type_embeddings",
    "embeddings.LayerNorm": "embedding_norm",
    **{f"encoder.layer.#.attention.self.{part}": f"layers.#.attention.{part}"
       for part in ("query", "key", "value", "attention_function")},
    "encoder.layer.#.attention.output.dense": "layers.#.attention.output",
    "encoder.layer.#.attention.output.LayerNorm": "layers.#.attention_norm",
    "encoder.layer.#.intermediate.dense": "layers.#.ffn.fc_in",
    "encoder.layer.#.output.dense": "layers.#.ffn.fc_out",
    "encoder.layer.#.output.LayerNorm": "layers.#.output_norm",
    "pooler.dense": "pooler",
}
TO_HF = {ours: theirs for theirs, ours in FROM_HF.items()}
LEGACY = {"gamma": "weight", "beta": "bias"}             # LayerNorm's names in the first BERT files
PREFIXES = re.compile(r"^((module|model|bert)\.)*")      # of modules that hold the encoder
SHARD = re.compile(r"[^/\\:]+\.(safetensors|bin)")       # a file beside the index, and no path
INDEX = {"weight_map": dict[str, str]}                   # {tensor: its file}
PRETRAINING_HEAD, TASK_HEADS = "cls", {"classifier", "qa_outputs"}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json",
           "pytorch_model.bin", "pytorch_model.bin.index.json")
NEW_POOLER = "holds no pooler; the model has a new, untrained one, and reading it is an error"
NEW_FUNCTION = "holds no parameters of the attention function; the model has new, untrained ones"


def rename(name, table):
    """→ a parameter's name by `table`; one whose module is not in it stays unchanged."""
    number = re.search(r"\.\d+\.|$", name)[0]               # ".3.", or "" outside the layers
    pattern = name.replace(number, ".#.", 1) if number else name
    for module, new in table.items():
        if pattern.startswith(module + "."):
            return (new + pattern.removeprefix(module)).replace(".#.", number)
    return name


def read_weights(name, path):
    """→ {name: tensor} of a file of weights, or of the shards that the index `path` lists."""
    if path.suffix != ".json":
        return read_tensors(path)
    shards = read_json(path, INDEX)["weight_map"]
    for file in shards.values():
        if not SHARD.fullmatch(file):
            raise UserError(f"{path} names the file {file!r}; it must be a .safetensors or .bin "
                            f"file in the same folder")
    files, tensors = sorted(set(shards.values())), {}
    resolve_checkpoint(name, [(file,) for file in files])
    for file in files:
        found = read_tensors(path.with_name(file))
        for tensor in sorted(found.keys() ^ {t for t, place in shards.items() if place == file}):
            raise UserError(f"{path.with_name(file)} {'holds' if tensor in found else 'lacks'} "
                            f"{tensor}, but {path.name} says that it is in "
                            f"{shards.get(tensor, 'no file')}; fetch both again")
        tensors |= found
    return tensors


def read_checkpoint(name):
    """→ config, path of the weights, {our name: tensor} of the encoder, {their name: …} of heads"""
    folder = resolve_checkpoint(name, [("config.json",), WEIGHTS])
    fields = read_json(folder / "config.json")
    try:
        config = BertConfig.from_dict(fields)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    path = next(folder / file for file in WEIGHTS if (folder / file).is_file())
    encoder, heads = {}, {}
    for given, tensor in read_weights(name, path).items():
        plain = PREFIXES.sub("", given)
        module, dot, last = plain.rpartition(".")
        if module.endswith("LayerNorm"):
            plain = module + dot + LEGACY.get(last, last)
        if plain == "embeddings.position_ids":               # a buffer in older files: 0, 1, 2, …
            continue
        if not tensor.is_floating_point():
            raise UserError(f"{path} holds {given} as {tensor.dtype}; weights must be floats")
        head = plain.partition(".")[0] in {PRETRAINING_HEAD, *TASK_HEADS}
        to, key = (heads, plain) if head else (encoder, rename(plain, FROM_HF))
        if key in to:
            raise UserError(f"{path} holds {plain} twice (once as {given}); delete one of them")
        to[key] = tensor.float()
    return config, path, encoder, heads


def check_names_and_shapes(path, expected, found, described="config.json"):
    """UserError if `found`, of the file `path`, has other names or shapes; compare `described`."""
    expected, found = ({rename(name, TO_HF): list(t.shape) for name, t in side.items()}
                       for side in (expected, found))
    wrong = {"missing": [name for name in expected if name not in found],
             "unexpected": [name for name in found if name not in expected],
             "of another shape:": [f"{name} {found[name]} instead of {shape}" for name, shape
                                   in expected.items() if found.get(name, shape) != shape]}
    problems = "; ".join(f"{what} {', '.join(names[:5])}"
                         + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                         for what, names in wrong.items() if names)
    if problems:
        other = "the attention it was trained with" if "_function." in problems else described
        raise UserError(f"{path} does not fit its configuration: {problems}. Compare {other}")


def load_bert(cls, name, attention="sdpa", rebuild=lambda bert: None):
    """→ a `cls` (Bert) with the weights of `name`, a folder in the Hugging Face layout or a model's
    name on the hub. `rebuild(bert)` repeats structural edits, such as factored matrices, before the
    weights are loaded. Warns that a task's head is left out, or that there is no pooler:
    `pooler_is_new` is then True, forward's pooler_output None, and no pooler is saved. Set
    `pooler_is_new = False` to train one."""
    config, path, encoder, heads = read_checkpoint(name)
    if config.num_hidden_layers > len(encoder):              # quick, where there are millions
        raise UserError(f"{path} holds {len(encoder):,} tensors, too few for num_hidden_layers "
                        f"{config.num_hidden_layers:,}; compare config.json")
    with torch.device("meta"):                               # no memory: weights are assigned below
        bert = cls(config)
        rebuild(bert)
    with torch.random.fork_rng(devices=[]):                  # new parts always have the same values
        torch.default_generator.manual_seed(0)
        size, std = config.hidden_size, config.initializer_range
        pooler = {"pooler.weight": torch.empty(size, size).normal_(std=std),
                  "pooler.bias": torch.zeros(size)}
        bert.use_attention(attention)
    function = {name: t for name, t in bert.state_dict().items() if ".attention_function." in name}
    notes = []
    for note, part in ((NEW_POOLER, pooler), (NEW_FUNCTION, function)):
        if part and not part.keys() & encoder.keys():
            encoder |= part
            notes.append(note)
    bert.pooler_is_new = NEW_POOLER in notes
    check_names_and_shapes(path, bert.state_dict(), encoder)
    bert.load_state_dict(encoder, assign=True)
    left_out = sorted({key.partition(".")[0] for key in heads} & TASK_HEADS)
    if left_out:
        notes.append(f"holds a task's head, {'.*, '.join(left_out)}.*; it is left out")
    for note in notes:
        warnings.warn(f"{path} {note}", stacklevel=2)
    return bert.eval()


def pretraining_heads(name):
    """→ {name: tensor} of the pretraining heads `cls.*` in the checkpoint `name`, or {}."""
    *_, heads = read_checkpoint(name)
    return {key: t for key, t in heads.items() if key.partition(".")[0] == PRETRAINING_HEAD}


def tensors_to_save(bert):
    """→ {their name: tensor} of all of the encoder, without a new pooler."""
    return {rename(name, TO_HF): tensor for name, tensor in bert.state_dict().items()
            if not (bert.pooler_is_new and name.startswith("pooler."))}


def save_bert(bert, folder, rebuild=lambda bert: None):
    """Write config.json and model.safetensors. transformers.BertModel opens them too, unless heads
    or neurons were removed; it ignores masked heads. → {path: bytes} of the weights. UserError if
    they are not those that the configuration, changed by `rebuild` (see load_bert), describes."""
    folder = Path(folder)
    with torch.device("meta"):
        plain = type(bert)(bert.config, bert.attention_name)
        rebuild(plain)
    check_names_and_shapes(f"the model to be saved in {folder}", plain.state_dict(),
                           bert.state_dict())
    tensors = tensors_to_save(bert)
    content = write_tensors(folder / "model.safetensors", tensors)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    fields = bert.config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    fields.pop("torch_dtype", None)                          # its older name
    write_json(folder / "config.json", fields)
    return {folder / "model.safetensors": content}
