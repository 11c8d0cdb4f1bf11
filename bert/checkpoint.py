"""Pretrained weights: the names of Hugging Face's files on one side, ours on the other, checked
strictly.

    their name                                           our name
    encoder.layer.3.attention.self.query.weight    ↔     layers.3.attention.query.weight
"""

import re
from pathlib import Path

import torch

from bert.config import BertConfig
from bert.errors import UserError
from bert.files import find_files, read_tensors, write_json, write_tensors

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
    ("encoder.layer.#.intermediate.dense", "layers.#.fc_in"),
    ("encoder.layer.#.output.dense", "layers.#.fc_out"),
    ("encoder.layer.#.output.LayerNorm", "layers.#.output_norm"),
    ("pooler.dense", "pooler"),
]
TO_OURS = dict(RENAME)
TO_THEIRS = {ours: theirs for theirs, ours in RENAME}
LEGACY = {"gamma": "weight", "beta": "bias"}             # LayerNorm's names in the first BERT files
IGNORED = re.compile(r"embeddings\.position_ids")        # a buffer in older files: 0, 1, 2, …
PRETRAINING = re.compile(r"cls\..+")                     # the heads of masked LM and next sentence

CONFIG, WEIGHTS = ("config.json",), ("model.safetensors", "pytorch_model.bin")


def rename(name, table):
    """A parameter's name by `table`; a name that the table does not know comes back unchanged."""
    module, _, last = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    module = re.sub(r"\.\d+\.", ".#.", module, count=1)
    if module not in table:
        return name
    return f"{table[module]}.{last}".replace("#", number[1] if number else "")


def plain_name(name):
    """Their name as it is today: without the `bert.` prefix, LayerNorms with weight and bias."""
    name = name.removeprefix("bert.")
    module, dot, last = name.rpartition(".")
    return f"{module}{dot}{LEGACY.get(last, last)}"


def read_checkpoint(folder):
    """→ (encoder's tensors under our names, pretraining heads' tensors `cls.*` under theirs)."""
    path = next(folder / file for file in WEIGHTS if (folder / file).is_file())
    encoder, heads = {}, {}
    for name, tensor in read_tensors(path).items():
        plain = plain_name(name)
        if IGNORED.fullmatch(plain):
            continue
        if not tensor.is_floating_point():
            raise UserError(f"{path} holds {name} as {tensor.dtype}; weights must be floats")
        pretraining = PRETRAINING.fullmatch(plain)
        to, key = (heads, plain) if pretraining else (encoder, rename(plain, TO_OURS))
        if key in to:
            raise UserError(f"{path} holds {plain} twice (once as {name}); it must hold each "
                            "weight once")
        to[key] = tensor.float()
    return path, encoder, heads


def check_names_and_shapes(path, expected, found):
    """UserError that names what is missing, unexpected or of another shape; {name: tensor} both."""
    expected, found = ({rename(name, TO_THEIRS): list(t.shape) for name, t in side.items()}
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


def load_bert(cls, name, attention, reshape=None):
    """A `cls` (Bert) with the weights of the checkpoint `name`: a folder, "tiny" or a hub id.
    `reshape(bert)` does to the modules what had been done to those that were saved."""
    folder = find_files(name, [CONFIG, WEIGHTS])
    config = BertConfig.load(folder / "config.json")
    path, encoder, _ = read_checkpoint(folder)
    with torch.device("meta"):                               # shapes only: the weights are at hand
        bert = cls(config, attention)
        if reshape is not None:
            reshape(bert)
    check_names_and_shapes(path, bert.state_dict(), encoder)
    bert.load_state_dict(encoder, assign=True)
    return bert.eval()


def pretraining_heads(name):
    """{name: tensor} of the pretraining heads `cls.*` in the checkpoint `name`; empty if it has
    none."""
    return read_checkpoint(find_files(name, [CONFIG, WEIGHTS]))[2]


def save_bert(bert, folder, reshape=None):
    """Write the Hugging Face layout. A model whose weights are no longer those its configuration
    says is refused, unless `reshape` (see load_bert) accounts for it: nobody could open the
    file."""
    folder = Path(folder)
    with torch.device("meta"):
        plain = type(bert)(bert.config)
        if reshape is not None:
            reshape(plain)
    check_names_and_shapes(f"the model to be saved in {folder}", plain.state_dict(),
                           bert.state_dict())
    tensors = {rename(name, TO_THEIRS): tensor for name, tensor in bert.state_dict().items()}
    write_tensors(folder / "model.safetensors", tensors)
    fields = bert.config.to_dict() | {"dtype": "float32"}    # what is written, whatever was read
    fields.pop("torch_dtype", None)                          # its older name
    write_json(folder / "config.json", fields)
