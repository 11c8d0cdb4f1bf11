"""Text to token ids: WordPiece on the `tokenizers` library, with the files of a BERT checkpoint.

    tokenizer = Tokenizer.from_pretrained("bert-base-uncased")
    batch = tokenizer(["a sentence"], pairs=["its pair"])   # [CLS] a sentence [SEP] its pair [SEP]
    ids, types = tokenizer.encode(texts)                    # a whole file at once, not padded
"""

import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from bert.errors import UserError
from bert.files import atomic_write, read_json, resolve_checkpoint

VOCABULARY = ("tokenizer.json", "vocab.txt")
OPTIONAL = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """`backend` is a tokenizers.Tokenizer with a WordPiece vocabulary; `limit` the longest sequence
    of token ids that the model takes; `files` {name: bytes} what save_pretrained writes back."""

    def __init__(self, backend, limit=512, files=None):
        self.backend, self.limit, self.files = backend, limit, files or {}
        absent = [token for token in SPECIAL if backend.token_to_id(token) is None]
        if absent:
            raise UserError(f"the vocabulary lacks {', '.join(absent)}; BERT needs "
                            f"{', '.join(SPECIAL)}")
        pad, _, first, separator, mask = map(backend.token_to_id, SPECIAL)
        self.pad_token_id, self.mask_token_id = pad, mask
        backend.no_padding()
        backend.no_truncation()
        backend.post_processor = TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", first), ("[SEP]", separator)],
        )

    @property
    def vocab_size(self):
        return self.backend.get_vocab_size()

    @classmethod
    def from_pretrained(cls, name):
        """From tokenizer.json or vocab.txt, with the settings in tokenizer_config.json
        (lower-casing, limit); `name`: a folder, or a model's name on the hub."""
        folder = resolve_checkpoint(name, [VOCABULARY], OPTIONAL)
        files = {name: (folder / name).read_bytes() for name in (*VOCABULARY, *OPTIONAL[1:3])
                 if (folder / name).is_file()}
        settings = _json(folder / "tokenizer_config.json")
        limits = [_limit(folder / "tokenizer_config.json", "model_max_length"),
                  _limit(folder / "config.json", "max_position_embeddings")]
        limit = min((n for n in limits if n is not None), default=512)
        if (folder / "tokenizer.json").is_file():
            backend = _from_json(folder / "tokenizer.json", settings)
        else:
            backend = _from_vocabulary(folder / "vocab.txt", settings)
        try:
            return cls(backend, limit, files)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    def save_pretrained(self, folder):
        """Write the files the tokenizer was made from, unchanged."""
        files = self.files or {"tokenizer.json": self.backend.to_str().encode()}
        for name, content in files.items():
            with atomic_write(Path(folder) / name) as file:
                file.write(content)

    def encode(self, texts, pairs=None, max_length=None):
        """Token ids and token types, one list of each a text (or pair of texts; None: no partner),
        `[CLS]` and `[SEP]` among them. What is longer than `max_length` (default: the model's
        limit) loses tokens from the end of its longer text; one warning counts how many texts were
        cut."""
        for given in (texts,) if pairs is None else (texts, pairs):
            if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
                raise UserError(f"{given!r:.60} is no list of texts; give a list of str")
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"{len(texts)} texts but {len(pairs)} pairs; every text needs its "
                            "partner")
        if not len(texts):
            raise UserError("there is no text to encode; give one or more")
        limit = self._checked_limit(max_length, 2 + any(b is not None for b in pairs or ()))
        self.backend.enable_truncation(limit, strategy="longest_first")
        rows = zip(texts, pairs or [None] * len(texts))
        try:
            encodings = self.backend.encode_batch([a if b is None else (a, b) for a, b in rows])
        except (TypeError, UnicodeError):
            check_texts(texts)
            check_texts([text for text in pairs or [] if text is not None])
            raise
        self.backend.no_truncation()                         # its checksum stays what it was
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        if cut:
            warnings.warn(f"{cut:,} of {len(encodings):,} texts were longer than {limit} tokens "
                          f"and were cut to that length", stacklevel=2)
        return [e.ids for e in encodings], [e.type_ids for e in encodings]

    def _checked_limit(self, max_length, special):
        """The most tokens of a sequence; UserError where special tokens leave no room for text."""
        limit = self.limit if max_length is None else max_length
        if type(limit) is not int or min(limit, self.limit) <= special:
            raise UserError(f"a sequence may have {limit!r} tokens (the model's limit: "
                            f"{self.limit}), of which [CLS] and [SEP] take {special}; allow a "
                            f"whole number of tokens, {special + 1} or more")
        return min(limit, self.limit)

    def __call__(self, texts, pairs=None, max_length=None):
        """→ {input_ids, attention_mask, token_type_ids}, each [batch, tokens] of the longest
        text."""
        if isinstance(texts, str):
            texts, pairs = [texts], None if pairs is None else [pairs]
        return self.pad(*self.encode(texts, pairs, max_length))

    def pad(self, ids, types):
        """Lists of token ids and token types → {input_ids, attention_mask, token_type_ids}."""
        if not ids:
            raise UserError("the batch is empty; give one or more lists of token ids")
        lengths = torch.tensor([len(row) for row in ids])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]       # [batch, tokens]
        input_ids = torch.full(mask.shape, self.pad_token_id)
        token_types = torch.zeros(mask.shape, dtype=torch.long)
        input_ids[mask] = torch.tensor([i for row in ids for i in row])
        token_types[mask] = torch.tensor([t for row in types for t in row])
        return {"input_ids": input_ids, "attention_mask": mask.long(),
                "token_type_ids": token_types}


def check_texts(texts):
    """UserError that names the first of the texts that is no Unicode text."""
    for number, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            why = ("holds half a character (a lone surrogate), which is no Unicode"
                   if isinstance(text, str) else f"is of the type {type(text).__name__}")
            raise UserError(f"text {number}, {text!r:.60}, {why}; give a str of whole characters "
                            f"(bytes: decode them as UTF-8 first)") from error


def _json(path):
    """The object in a JSON file; {} where there is no such file."""
    return read_json(path) if path.is_file() else {}


def _limit(path, field):
    """The most tokens a sequence may have, as this file says; None where it sets no limit, for
    which transformers writes 10³⁰."""
    limit = _json(path).get(field)
    if limit is None or (isinstance(limit, (int, float)) and limit >= 10 ** 9):
        return None
    if type(limit) is not int or limit < 3:
        raise UserError(f"{path}: {field} is {limit!r}; it must be a whole number, 3 or more: "
                        f"[CLS], [SEP] and a token of text")
    return limit


def _normalizer(settings, now=None):
    """BERT's cleaning, lower-casing and accent stripping; `settings` of tokenizer_config.json go
    before what `now`, the normalizer of tokenizer.json, says."""
    def setting(theirs, attribute, default):
        return settings.get(theirs, getattr(now, attribute, default))

    return BertNormalizer(
        clean_text=True,
        handle_chinese_chars=setting("tokenize_chinese_chars", "handle_chinese_chars", True),
        strip_accents=setting("strip_accents", "strip_accents", None),   # None: where lower-casing
        lowercase=setting("do_lower_case", "lowercase", True),
    )


def _from_json(path, settings):
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:                            # all that the library raises is Exception
        raise UserError(f"{path} is not a tokenizer file: {error}") from error
    if not isinstance(backend.model, WordPiece):
        raise UserError(f"{path} holds a {type(backend.model).__name__} tokenizer; BERT's is "
                        "WordPiece")
    if backend.normalizer is None or isinstance(backend.normalizer, BertNormalizer):
        backend.normalizer = _normalizer(settings, backend.normalizer)
    return backend


def _from_vocabulary(path, settings):
    """From vocab.txt: one token a line, its id the number of lines before it."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no vocabulary, one token a line in UTF-8: {error}") from error
    vocabulary = {token: number for number, token in enumerate(lines)}
    if len(vocabulary) < len(lines):
        raise UserError(f"{path} holds a token twice; every line needs its own")
    backend = Backend(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = _normalizer(settings)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    return backend
