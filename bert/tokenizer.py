"""Text to token ids: WordPiece on the `tokenizers` library, with the files of a BERT checkpoint.

    tokenizer = Tokenizer.from_pretrained("bert-base-uncased")
    batch = tokenizer(["a sentence"], pairs=["its pair"])   # [CLS] a sentence [SEP] its pair [SEP]
    ids, types = tokenizer.encode(texts)                    # a whole file at once, not padded
"""

import math
import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from bert.errors import UserError
from bert.files import atomic_write, read_json, read_utf8, resolve_checkpoint

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = ("tokenizer.json", "vocab.txt")                # one of them must be there
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


class Tokenizer:
    """`backend` is a tokenizers.Tokenizer with a WordPiece vocabulary, `limit` the number of tokens
    of the model's longest sequence, `files` {name: bytes} what save_pretrained writes."""

    def __init__(self, backend, limit=512, files=None):
        self.backend, self.limit, self.files = backend, limit, files or {}
        absent = [token for token in SPECIAL if backend.token_to_id(token) is None]
        if absent:
            raise UserError(f"the vocabulary lacks {', '.join(absent)}; BERT needs "
                            f"{', '.join(SPECIAL)}")
        self.pad_token_id, self.mask_token_id = map(backend.token_to_id, ("[PAD]", "[MASK]"))
        backend.no_padding()
        backend.no_truncation()
        backend.post_processor = TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )

    @property
    def vocab_size(self):
        return self.backend.get_vocab_size()

    @classmethod
    def from_pretrained(cls, name):
        """Open the vocabulary of `name`, a folder or a model's name on the hub, with the settings
        (lower-casing, limit) of its tokenizer_config.json."""
        folder = resolve_checkpoint(name, [VOCABULARY], ("vocab.txt", *SETTINGS, "config.json"))
        files = {name: (folder / name).read_bytes() for name in VOCABULARY + SETTINGS
                 if (folder / name).is_file()}
        path, model = folder / "tokenizer_config.json", folder / "config.json"
        settings, config = (read_json(p) if p.is_file() else {} for p in (path, model))
        limit = min(_limit(path, settings, "model_max_length"),
                    _limit(model, config, "max_position_embeddings"))
        read = _read_tokenizer_json if "tokenizer.json" in files else _read_vocabulary
        backend = read(folder)
        _set_normalizer(backend, settings)
        try:
            return cls(backend, 512 if limit == math.inf else limit, files)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    def save_pretrained(self, folder):
        """Write the files that the tokenizer was made from, unchanged."""
        files = self.files or {"tokenizer.json": self.backend.to_str().encode()}
        for name, content in files.items():
            with atomic_write(Path(folder) / name) as file:
                file.write(content)

    def encode(self, texts, pairs=None, max_length=None):
        """→ token ids and token types, one list of each per text or pair of texts, with [CLS] and
        [SEP]. `pairs` holds each text's partner, None for none. Above `max_length` tokens (default:
        the model's limit) the longer text is truncated; one warning counts the truncated texts."""
        for given in (texts,) if pairs is None else (texts, pairs):
            if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
                raise UserError(f"{given!r:.60} is no list of texts; give a list of str")
        pairs = [None] * len(texts) if pairs is None else pairs
        if len(pairs) != len(texts):
            raise UserError(f"{len(texts)} texts but {len(pairs)} pairs; every text needs its "
                            "partner")
        if not len(texts):
            raise UserError("there is no text to encode; give one or more")
        limit = self._checked_limit(max_length, 2 + any(b is not None for b in pairs))
        self.backend.enable_truncation(limit, strategy="longest_first")
        try:
            encodings = self.backend.encode_batch(
                [a if b is None else (a, b) for a, b in zip(texts, pairs)])
        except (TypeError, UnicodeError):
            check_texts(texts)
            check_texts([text for text in pairs if text is not None])
            raise
        finally:
            self.backend.no_truncation()                     # its checksum stays what it was
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        if cut:
            warnings.warn(f"{cut:,} of {len(encodings):,} texts were longer than {limit} tokens "
                          f"and were cut to that length", stacklevel=2)
        return [e.ids for e in encodings], [e.type_ids for e in encodings]

    def _checked_limit(self, max_length, special):
        """→ the maximum length. UserError if `special` tokens leave no room for text."""
        limit = self.limit if max_length is None else max_length
        if type(limit) is not int or min(limit, self.limit) <= special:
            raise UserError(f"a sequence may have {limit!r} tokens (the model's limit: "
                            f"{self.limit}), of which [CLS] and [SEP] take {special}; allow a "
                            f"whole number of tokens, {special + 1} or more")
        return min(limit, self.limit)

    def __call__(self, texts, pairs=None, max_length=None):
        """encode, then pad; one text may be a str."""
        if isinstance(texts, str):
            texts, pairs = [texts], None if pairs is None else [pairs]
        return self.pad(*self.encode(texts, pairs, max_length))

    def pad(self, ids, types):
        """Lists of token ids and token types → {input_ids, attention_mask, token_type_ids}, each
        [batch, tokens of the longest]."""
        if not ids:
            raise UserError("the batch is empty; give one or more lists of token ids")
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]       # [batch, tokens]
        input_ids = torch.full(mask.shape, self.pad_token_id)
        token_types = torch.zeros_like(input_ids)
        input_ids[mask] = torch.tensor([i for row in ids for i in row])
        token_types[mask] = torch.tensor([t for row in types for t in row])
        return {"input_ids": input_ids, "attention_mask": mask.long(),
                "token_type_ids": token_types}


def check_texts(texts):
    """Raise UserError that names the first of the texts that is no Unicode text."""
    for number, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            why = ("holds half a character (a lone surrogate), which is no Unicode"
                   if isinstance(text, str) else f"is of the type {type(text).__name__}")
            raise UserError(f"text {number}, {text!r:.60}, {why}; give a str of whole characters "
                            f"(bytes: decode them as UTF-8 first)") from error


def _limit(path, values, field):
    """The maximum number of tokens by this field of a file; infinity if it is absent or 10³⁰, which
    transformers writes for no limit."""
    limit = values.get(field)
    if limit is None or (isinstance(limit, (int, float)) and limit >= 10 ** 9):
        return math.inf
    if type(limit) is not int or limit < 3:
        raise UserError(f"{path}: {field} is {limit!r}; it must be a whole number, 3 or more: "
                        f"[CLS], [SEP] and a token of text")
    return limit


def _set_normalizer(backend, settings):
    """Clean, lower-case and strip accents as tokenizer_config.json says, or else as now."""
    now = backend.normalizer or BertNormalizer()
    if isinstance(now, BertNormalizer):
        backend.normalizer = BertNormalizer(
            handle_chinese_chars=settings.get("tokenize_chinese_chars", now.handle_chinese_chars),
            strip_accents=settings.get("strip_accents", now.strip_accents),  # None: if lower-casing
            lowercase=settings.get("do_lower_case", now.lowercase))


def _read_tokenizer_json(folder):
    path = folder / "tokenizer.json"
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:                            # all that the library raises is Exception
        raise UserError(f"{path} is not a tokenizer file: {error}") from error
    if not isinstance(backend.model, WordPiece):
        raise UserError(f"{path} holds a {type(backend.model).__name__} tokenizer; BERT's is "
                        "WordPiece")
    return backend


def _read_vocabulary(folder):
    """From vocab.txt: one token a line; its id is the number of lines before it."""
    path = folder / "vocab.txt"
    lines = read_utf8(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines)}
    if len(vocabulary) < len(lines):
        raise UserError(f"{path} holds a token twice; every line needs its own")
    backend = Backend(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.pre_tokenizer = BertPreTokenizer()
    backend.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    return backend
