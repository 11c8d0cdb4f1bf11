"""From examples to batches: token ids, once, then padding-free batches."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from bert import Layout
from bert.transfer import to_device


class Batch(NamedTuple):
    """Token ids and types [sequences, tokens], their layout, its selection of [CLS], labels [B].
    For pairs encoded separately all first sentences come before all second ones: sequences = 2B."""

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    layout: Layout
    cls_rows: Layout
    labels: torch.Tensor | None

    def with_adapters(self, adapters):
        """The same batch, whose layout names each sequence's adapter (Layout.with_adapters)."""
        return self._replace(layout=self.layout.with_adapters(adapters),
                             cls_rows=self.cls_rows.with_adapters(adapters))

    def to(self, device):
        """The same batch on `device`, by one copy that waits for nothing."""
        return Batch(*to_device(self, device))


@dataclass
class Split:
    """The examples of one file, tokenized once. `segments` holds (token ids, token types) for
    each text that is encoded alone, with one list an example."""

    ids: list
    labels: torch.Tensor | None
    segments: list
    tokenizer: object

    def __len__(self):
        return len(self.ids)

    def batch(self, indices):
        ids = [ids[i] for ids, _ in self.segments for i in indices]
        types = [types[i] for _, types in self.segments for i in indices]
        tensors = self.tokenizer.pad(ids, types)
        layout = Layout(tensors["attention_mask"])
        labels = None if self.labels is None else self.labels[list(indices)]
        return Batch(tensors["input_ids"], tensors["token_type_ids"],
                     layout, layout.cls_rows(), labels)

    def by_length(self, tokens):
        """Lists of indices, longest first, each of at most `tokens` tokens or one long example."""
        lengths = [sum(len(ids[i]) for ids, _ in self.segments) for i in range(len(self))]
        batches, tokens_left = [], 0
        for i in sorted(range(len(self)), key=lambda i: -lengths[i]):
            if tokens_left < lengths[i]:
                batches.append([])
                tokens_left = tokens
            batches[-1].append(i)
            tokens_left -= lengths[i]
        return batches


def tokenize(examples, tokenizer, pairs="joint"):
    """[Example] → Split. pairs: both texts of a pair in one sequence ("joint"), or "separate"."""
    texts = list(zip(*(example.texts for example in examples)))
    labels = None if examples[0].label is None else torch.tensor([e.label for e in examples])
    segments = ([tokenizer.encode(*texts)] if pairs == "joint"
                else [tokenizer.encode(text) for text in texts])
    return Split([example.id for example in examples], labels, segments, tokenizer)
