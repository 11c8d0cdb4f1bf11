"""The numbers that fix a BERT's shape: config.json in the Hugging Face layout."""

import math
import os
from dataclasses import dataclass, field, fields
from functools import partial

import torch
import torch.nn.functional as F

from bert.errors import UserError, check_known

ACTIVATIONS = {
    "gelu": F.gelu,                                       # exact: x · Φ(x), Φ by the error function
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
IN_PLACE = {F.gelu: torch.ops.aten.gelu_, F.relu: F.relu_}     # those that overwrite their argument
FIXED = {"model_type": "bert", "position_embedding_type": "absolute",    # the only values supported
         "is_decoder": False, "add_cross_attention": False}
OVERHEAD = 2 ** 16                                        # bytes of a layer's Python objects


def memory():
    """The machine's memory in bytes; where it is unknown, more than any has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2 ** 46


@dataclass
class BertConfig:
    """Defaults are bert-base-uncased's; `extra` holds fields that the model does not read. The
    remaining heads of a pruned layer keep their numbers. UserError names an impossible field."""

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
    pruned_heads: dict = field(default_factory=dict)       # {layer: [removed heads]}
    masked_heads: dict = field(default_factory=dict)       # {layer: [masked heads]}
    pruned_neurons: dict = field(default_factory=dict)     # {layer: number of removed FFN neurons}
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        self.pad_token_id = self.pad_token_id or 0           # null in some files
        for name, kind in ((f.name, f.type) for f in fields(self)):
            value = getattr(self, name)
            minimum, bound = 0 if name == "pad_token_id" else 1, 1.0 if "prob" in name else math.inf
            if kind is int and not (type(value) is int and minimum <= value < 2 ** 40):
                raise UserError(f"{name} is {value!r:.60}; it must be a whole number, {minimum} or "
                                f"more and below 2^40")
            if kind is float and not (type(value) in (int, float) and 0 <= value < bound):
                raise UserError(f"{name} is {value!r}; it must be a number from 0 to below {bound}")
        self._check_size()
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"num_attention_heads {self.num_attention_heads} does not divide "
                            f"hidden_size {self.hidden_size}")
        check_known(self.hidden_act, list(ACTIVATIONS), "activation", where="hidden_act")
        for name, only in FIXED.items():
            if self.extra.get(name, only) != only:
                raise UserError(f"{name} is {self.extra[name]!r}; this encoder knows only {only!r}")
        for name in ("pruned_heads", "masked_heads", "pruned_neurons"):
            setattr(self, name, self._by_layer(name))

    def _check_size(self):
        """UserError if the weights, in float32 and without pruning, exceed the machine's memory."""
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        matrices = 4 * self.hidden_size + 2 * self.intermediate_size
        layer = 4 * self.hidden_size * matrices + OVERHEAD
        need = 4 * self.hidden_size * (rows + self.hidden_size) + self.num_hidden_layers * layer
        if need > memory():
            sizes = {name: value for name, value in vars(self).items() if type(value) is int}
            raise UserError(f"a model of {sizes} takes {need / 2 ** 30:,.0f} GiB, and this machine "
                            f"has {memory() / 2 ** 30:,.1f}; lower the largest of these numbers")

    def _by_layer(self, name):
        """→ the field as {layer: value} (JSON makes the layers texts), without empty values."""
        counts, layers = name == "pruned_neurons", range(self.num_hidden_layers)     # else lists
        known = range(self.intermediate_size + 1 if counts else self.num_attention_heads)
        try:
            given = {int(layer): value if counts else sorted(set(value))
                     for layer, value in (getattr(self, name) or {}).items()}
            numbers = list(given.values()) if counts else sum(given.values(), [])
            if not all(type(n) is int and n in known for n in numbers) or set(given) - set(layers):
                raise ValueError
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{name} is {getattr(self, name)!r}; it must give layers, 0 to "
                            f"{layers[-1]}, numbers from 0 to {known[-1]}") from error
        return {layer: given[layer] for layer in sorted(given) if given[layer]}

    def remaining_heads(self, layer):
        gone = self.pruned_heads.get(layer, ())
        return [head for head in range(self.num_attention_heads) if head not in gone]

    def ffn_size(self, layer):
        return self.intermediate_size - self.pruned_neurons.get(layer, 0)

    @classmethod
    def from_dict(cls, values):
        """From the fields of a config.json; those that the model does not read go to `extra`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        return cls(**{k: v for k, v in values.items() if k in known},
                   extra={k: v for k, v in values.items() if k not in known})

    def to_dict(self):
        """The fields of config.json, `extra` among them, in the form transformers reads."""
        own = {name: value for name, value in vars(self).items()
               if name != "extra" and value != {}}         # {}: nothing was pruned
        return {**self.extra, **own, "model_type": "bert", "architectures": ["BertModel"]}
