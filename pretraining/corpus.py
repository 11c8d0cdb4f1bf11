"""Text for pretraining: files → lines → token ids, once → batches of line numbers. A line is a
sentence or passage, or a pair: two of them with a tab between.
"""

import hashlib
import math
import tempfile
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bert.errors import UserError
from bert.files import read_utf8, write_json
from bert.layout import Layout
from bert.tokenizer import SPECIAL, Tokenizer

POOL = 32                            # batches whose lines are sorted by length together
EVAL_TOKENS = 8192                   # tokens in a batch that needs no gradients


def read_text(name):
    """→ the lines of the .txt files in a folder, or of one file; empty lines are left out."""
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"--text {name} does not exist; give a folder of .txt files, or one file")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    lines = "\n".join(map(read_utf8, files)).splitlines()
    lines = list(filter(None, map(normalize_whitespace, lines)))
    if not lines:
        reason = "holds no text: every line is empty" if files else "holds no .txt file"
        raise UserError(f"--text {name} {reason}; give text with a sentence or passage a line")
    return lines


def normalize_whitespace(line):
    """Collapse white space, except for the tab between the two texts of a pair."""
    texts = [" ".join(text.split()) for text in line.split("\t")]
    return "\t".join(texts) if len(texts) == 2 and all(texts) else " ".join(filter(None, texts))


def is_held_out(line, fraction):
    """Decide by a hash of the text, so that a line is on the same side in every run and file. A
    pair is held out if one of its texts is: training then contains no held-out text."""
    digests = (hashlib.sha256(text.encode()).digest()[:7] for text in line.split("\t"))
    return any(int.from_bytes(digest, "big") < fraction * 256 ** 7 for digest in digests)


def train_tokenizer(lines, size, limit):
    """→ a Tokenizer with a new lower-case WordPiece vocabulary of `size` tokens, for sequences of
    at most `limit` tokens. The library would number characters in an order that differs from run to
    run, and break ties by these numbers: the sorted characters as special tokens fix them."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts = Counter("".join(map(backend.normalizer.normalize_str, lines)))
    characters = sorted(c for c, count in counts.items() if count > 1 and not c.isspace())
    first = [*SPECIAL, *characters, *("##" + c for c in characters)]
    if len(first) >= size:
        raise UserError(f"--vocab-size {size} is too few: the characters need {len(first) + 1}")
    size = min(size, len(first) + counts.total())            # the library reserves memory for it
    backend.train_from_iterator(lines, trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False))
    ids = backend.get_vocab()
    with tempfile.TemporaryDirectory() as folder:            # read back: equal to the saved one
        vocabulary = "\n".join(sorted(ids, key=ids.get)) + "\n"
        Path(folder, "vocab.txt").write_text(vocabulary, encoding="utf-8")
        write_json(Path(folder, "tokenizer_config.json"), {
            "do_lower_case": True, "model_max_length": limit, "tokenizer_class": "BertTokenizer"})
        return Tokenizer.from_pretrained(folder)


class Corpus:
    """The token ids of all lines in one tensor, and their types (1 in the second text of a pair):
    line i is ids[start[i] : start[i] + length[i]]."""

    def __init__(self, tokenizer, lines, max_length=None):
        self.lines = lines
        first, second = zip(*(line.split("\t") if "\t" in line else (line, None) for line in lines))
        ids, types = tokenizer.encode(first, second, max_length=max_length)
        self.length = torch.tensor([len(line) for line in ids])          # [lines]
        self.start = self.length.cumsum(0) - self.length                 # [lines]
        self.ids = torch.tensor([number for line in ids for number in line])
        self.types = torch.tensor([number for line in types for number in line])

    def collate(self, line_ids):
        """[B] line numbers → token ids and types [N], and the layout of these N rows."""
        length = self.length[line_ids]
        column = torch.arange(int(length.max()))
        mask = column < length[:, None]                                  # [B, T]
        index = (self.start[line_ids][:, None] + column)[mask]           # [N]
        return self.ids[index], self.types[index], Layout(mask)


def split_by_tokens(line_ids, length, tokens):
    """[n] line numbers → batches of about `tokens` tokens, in the same order. A line belongs to the
    batch in which its last token falls, so the number of batches does not depend on the order."""
    batch = (length[line_ids].cumsum(0) - 1) // tokens
    return line_ids.split(torch.bincount(batch).tolist())


class BucketBatchSampler:
    """Endless shuffled epochs. A batch is as wide as its longest line, so each pool of shuffled
    lines is sorted by length and split into batches, then the batches are shuffled: a step is three
    times as fast. Seed and step alone determine a batch: there is no state to save."""

    def __init__(self, line_ids, length, tokens, seed):
        self.line_ids, self.length, self.tokens, self.seed = line_ids, length, tokens, seed
        self.steps_per_epoch = math.ceil(int(length[line_ids].sum()) / tokens)
        self.epoch, self.batches = None, None

    def __getitem__(self, step):
        """→ the line numbers [B] of this step; steps count from 1."""
        epoch, number = divmod(step - 1, self.steps_per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = self.line_ids[torch.randperm(len(self.line_ids), generator=generator)]
            pools = split_by_tokens(order, self.length, POOL * self.tokens)
            order = torch.cat([pool[self.length[pool].argsort(stable=True)] for pool in pools])
            batches = split_by_tokens(order, self.length, self.tokens)
            shuffled = torch.randperm(len(batches), generator=generator)
            self.epoch, self.batches = epoch, [batches[i] for i in shuffled]
        return self.batches[number]
