"""The numbers that fix a BERT's shape: config.json in the Hugging Face layout."""

import math
from dataclasses import dataclass, field, fields
from functools import partial

import torch.nn.functional as F

from bert.errors import UserError
from bert.files import read_json

ACTIVATIONS = {
    "gelu": F.gelu,                                       # exact: x · Φ(x), Φ by the error function
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
FIXED = {                                             # what this encoder is and cannot be otherwise
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass
class BertConfig:
    """Defaults are bert-base-uncased's. `extra` holds the fields of config.json that the model does
    not read; they are kept and written back. Heads keep their numbers when others of their layer
    are removed. An impossible value raises UserError that names the field."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    pruned_heads: dict = field(default_factory=dict)       # layer → heads that are gone
    masked_heads: dict = field(default_factory=dict)       # layer → heads that are switched off
    pruned_neurons: dict = field(default_factory=dict)     # layer → how many FFN neurons are gone
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.pad_token_id is None:
            self.pad_token_id = 0
        for name in (f.name for f in fields(self) if f.type is int):
            value, least = getattr(self, name), 0 if name == "pad_token_id" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} is {value!r}; it must be a whole number, {least} or more")
        for name in (f.name for f in fields(self) if f.type is float):
            value, most = getattr(self, name), 1.0 if name.endswith("prob") else math.inf
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < most:
                raise UserError(f"{name} is {value!r}; it must be a number, 0 or more and below "
                                f"{most}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"num_attention_heads {self.num_attention_heads} does not divide "
                            f"hidden_size {self.hidden_size}; every head needs the same size")
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act {self.hidden_act!r} is unknown; known are "
                            f"{sorted(ACTIVATIONS)}")
        if self.pad_token_id >= self.vocab_size:
            raise UserError(f"pad_token_id {self.pad_token_id} lies outside vocab_size "
                            f"{self.vocab_size}")
        for name, only in FIXED.items():
            if self.extra.get(name, only) != only:
                raise UserError(f"{name} is {self.extra[name]!r}; this encoder knows only {only!r}")
        for name, check in (("pruned_heads", self._heads), ("masked_heads", self._heads),
                            ("pruned_neurons", self._neurons)):
            setattr(self, name, self._by_layer(name, check))

    def _by_layer(self, name, check):
        """{layer: value} with whole numbers for layers, which JSON makes texts; none is empty."""
        try:
            given = {int(layer): check(value)
                     for layer, value in (getattr(self, name) or {}).items()}
            if not all(0 <= layer < self.num_hidden_layers for layer in given):
                raise ValueError
        except (AttributeError, TypeError, ValueError) as error:
            what = ("a number of neurons, at most " + str(self.intermediate_size)
                    if name == "pruned_neurons" else
                    f"a list of heads from 0 to {self.num_attention_heads - 1}")
            raise UserError(f"{name} is {getattr(self, name)!r}; it must give layers, from 0 to "
                            f"{self.num_hidden_layers - 1}, {what} each") from error
        return {layer: given[layer] for layer in sorted(given) if given[layer]}

    def _heads(self, heads):
        if not all(type(head) is int and 0 <= head < self.num_attention_heads for head in heads):
            raise ValueError
        return sorted(set(heads))

    def _neurons(self, count):
        if type(count) is not int or not 0 <= count <= self.intermediate_size:
            raise ValueError
        return count

    def remaining_heads(self, layer):
        """The numbers of the heads that this layer still has."""
        gone = self.pruned_heads.get(layer, ())
        return [head for head in range(self.num_attention_heads) if head not in gone]

    def ffn_size(self, layer):
        """How many neurons the feed-forward network of this layer still has."""
        return self.intermediate_size - self.pruned_neurons.get(layer, 0)

    @classmethod
    def from_dict(cls, values):
        """From the fields of a config.json; those the model does not read go to `extra`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        return cls(**{k: v for k, v in values.items() if k in known},
                   extra={k: v for k, v in values.items() if k not in known})

    @classmethod
    def load(cls, path):
        """From the file config.json at `path`."""
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def to_dict(self):
        """The fields of config.json, `extra` among them, in the form transformers reads."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        own = {name: value for name, value in own.items() if value != {}}   # nothing was pruned
        return {**self.extra, **own, "model_type": "bert", "architectures": ["BertModel"]}
