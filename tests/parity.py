"""What the script that makes the reference values and the tests that read them must do alike."""

import csv
import zlib
from pathlib import Path

import torch

REFERENCE = Path(__file__).parent / "reference"
PROBES = 48                                             # of hidden states every 48th number is kept
SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 20, "initializer_range": 0.3}
SIGNS = 8                                               # random signs a gradient is multiplied with


def tiny_batch(types=2):
    """Four ragged sequences, one of a single token."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([7, 12, 1, 9])
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(1, 60, mask.shape, generator=generator) * mask
    kinds = torch.randint(0, types, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}


def real_texts(folder):
    """64 sentences and 64 pairs, the first of the course's dev files."""
    def column(file, *names):
        with open(folder / file, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))[:64]
        return [[row[name] for row in rows] for name in names]

    return {"single": column("ids-sst-dev.csv", "sentence"),
            "pair": column("sts-dev.csv", "sentence1", "sentence2")}


def summed_loss(out, batch):
    """A loss that reads every real token of the last layer, and the pooler: Σ sin(i)·hᵢ over all
    numbers."""
    states = out.last_hidden_state[batch["attention_mask"].bool()].flatten()
    pooled = out.pooler_output.flatten()
    return sum(torch.sin(torch.arange(x.numel(), dtype=x.dtype)) @ x for x in (states, pooled))


def gradient_probes(name, gradient):
    """[1 + SIGNS]: the norm of a gradient, then its products g·s with random signs s, which do not
    depend on anything but the tensor's name. E (g·s)² = ‖g‖², so that probes of a difference tell
    its norm."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    signs = [torch.randint(0, 2, gradient.shape, generator=generator, dtype=torch.int8) * 2.0 - 1
             for _ in range(SIGNS)]
    return torch.stack([gradient.double().norm()] + [(gradient * s).double().sum() for s in signs])
