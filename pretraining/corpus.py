"""Text for pretraining: files → lines → token ids, once → batches of lines.

A line is a sentence or passage, or two of them with a tab between: a pair.
"""

import hashlib
import math
import tempfile
from collections import Counter
from pathlib import Path

import tokenizers
import torch
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from bert.errors import UserError
from bert.files import read_utf8, write_json
from bert.layout import Layout
from bert.tokenizer import SPECIAL, Tokenizer

POOL = 32                            # batches whose lines are sorted by length together


def read_text(name):
    """Every line of the .txt files in a folder, or of one file, white space collapsed; empty ones
    are left out. A line of two texts with a tab between them is a pair."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise UserError(f"--text {name} holds no .txt file; put the text there, a sentence or "
                            f"passage a line")
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"--text {name} does not exist; give a folder of .txt files, or one file")
    lines = [normalize_whitespace(line) for file in files for line in read_utf8(file).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"--text {name} holds no text: every line is empty")
    return lines


def normalize_whitespace(line):
    """White space collapsed, but for the tab between two texts."""
    texts = [" ".join(text.split()) for text in line.split("\t")]
    return "\t".join(texts) if len(texts) == 2 and all(texts) else " ".join(filter(None, texts))


def is_held_out(line, fraction):
    """Decided by the text alone: it is on the same side in every run and file. A pair is held out
    if one of its texts is, so that no held-out text is seen in a pair either."""
    digests = (hashlib.sha256(text.encode()).digest()[:7] for text in line.split("\t"))
    return any(int.from_bytes(digest, "big") < fraction * 256 ** 7 for digest in digests)


def train_tokenizer(lines, size, limit):
    """A lower-case WordPiece vocabulary of these lines; [PAD] [UNK] [CLS] [SEP] [MASK] are 0 to 4.

    The trainer numbers characters in an order that differs from run to run, and then breaks ties by
    these numbers. Given as its first tokens, sorted, they have the same numbers in every run."""
    backend = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts = Counter("".join(map(backend.normalizer.normalize_str, lines)))
    characters = sorted(c for c, count in counts.items() if count > 1 and not c.isspace())
    first = [*SPECIAL, *characters, *("##" + c for c in characters)]
    if len(first) >= size:
        raise UserError(f"--vocab-size {size} is too few: the text has {len(characters)} different "
                        f"characters, so give more than {len(first)}")
    backend.train_from_iterator(lines, WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False))
    number = backend.get_vocab()
    vocabulary = "\n".join(sorted(number, key=number.get)) + "\n"
    with tempfile.TemporaryDirectory() as folder:            # read back: used is what is saved
        Path(folder, "vocab.txt").write_text(vocabulary, encoding="utf-8")
        write_json(Path(folder, "tokenizer_config.json"), {
            "do_lower_case": True, "model_max_length": limit, "tokenizer_class": "BertTokenizer"})
        return Tokenizer.from_pretrained(folder)


class Corpus:
    """The token ids of all lines, end to end, and their types (1 in the second text of a pair):
    line i is ids[start[i] : start[i] + length[i]]."""

    def __init__(self, tokenizer, lines, limit=None):
        pairs = [line.split("\t") if "\t" in line else (line, None) for line in lines]
        self.lines, (self.first, self.second) = lines, zip(*pairs)
        rows, types = tokenizer.encode(self.first, self.second, max_length=limit)
        self.length = torch.tensor([len(row) for row in rows])           # [lines]
        self.start = self.length.cumsum(0) - self.length                 # [lines]
        self.ids = torch.tensor([number for row in rows for number in row])
        self.types = torch.tensor([number for row in types for number in row])

    def any_of(self, wanted):
        """wanted [V] bool → [lines] bool: the line has a token of these."""
        line = torch.arange(len(self.length)).repeat_interleave(self.length)
        return torch.zeros(len(self.length)).index_add_(0, line, wanted[self.ids].float()) > 0

    def collate(self, lines):
        """[B] line numbers → their tokens' ids and types [N], and the layout of these N rows."""
        length = self.length[lines]
        column = torch.arange(int(length.max()))
        mask = column < length[:, None]                                  # [B, T]
        places = (self.start[lines][:, None] + column)[mask]             # [N]
        return self.ids[places], self.types[places], Layout(mask)


def split_by_tokens(order, length, tokens):
    """[n] line numbers → batches of them, in this order, each of about so many tokens: a line
    belongs to the batch into which its last token falls. Their number depends on no order."""
    batch = (length[order].cumsum(0) - 1) // tokens
    return order.split(torch.bincount(batch).tolist())


class BucketBatchSampler:
    """Shuffled passes over the lines, without end. Seed and step say which lines come, so there is
    no state to save. Attention's grid is as wide as the batch's longest line: lines of like length
    together made a step three times as fast. So each pool of shuffled lines is sorted by length and
    cut into batches, and then these are shuffled."""

    def __init__(self, lines, length, tokens, seed):
        self.lines, self.length, self.tokens, self.seed = lines, length, tokens, seed
        self.steps_per_epoch = math.ceil(int(length[lines].sum()) / tokens)
        self.number, self.batches = None, None

    def __getitem__(self, step):
        """The line numbers [B] of this step; steps count from 1."""
        number, place = divmod(step - 1, self.steps_per_epoch)
        if number != self.number:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            order = self.lines[torch.randperm(len(self.lines), generator=generator)]
            pools = split_by_tokens(order, self.length, POOL * self.tokens)
            order = torch.cat([p[self.length[p].argsort(stable=True)] for p in pools])
            batches = split_by_tokens(order, self.length, self.tokens)
            shuffled = torch.randperm(len(batches), generator=generator)
            self.number, self.batches = number, [batches[i] for i in shuffled]
        return self.batches[place]
