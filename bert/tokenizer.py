"""Text to token ids: WordPiece on the `tokenizers` library, with the files of a BERT checkpoint.

    tokenizer = Tokenizer.from_pretrained("bert-base-uncased")
    batch = tokenizer(["a sentence"], pairs=["its pair"])   # [CLS] a sentence [SEP] its pair [SEP]
    ids, types = tokenizer.encode(texts)                    # a whole file at once, not padded
"""

import json
import math
import warnings
from itertools import zip_longest
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from bert.errors import UserError
from bert.files import atomic_write, read_utf8, resolve_checkpoint
from bert.json_files import NUMBER, read_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = ("tokenizer.json", "vocab.txt")                # one of them must be there
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
FIELDS = {"do_lower_case?": bool, "tokenize_chinese_chars?": bool,       # tokenizer_config.json
          "strip_accents?": bool | None, "model_max_length?": NUMBER | None}


class Tokenizer:
    """`backend` is a tokenizers.Tokenizer with WordPiece, `limit` the number of tokens of the
    model's longest sequence, `files` {name: bytes} what save_pretrained writes."""

    def __init__(self, backend, limit=512, files=None):
        self.backend, self.limit, self.files = backend, limit, files or {}
        self.vocab_size = 1 + max(backend.get_vocab().values())          # as embeddings count
        self.pad_token_id, self.mask_token_id = map(backend.token_to_id, ("[PAD]", "[MASK]"))
        backend.no_padding()
        backend.no_truncation()
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")])

    @classmethod
    def from_pretrained(cls, name):
        """Open the vocabulary of `name`, a folder or a model's name on the hub."""
        folder = resolve_checkpoint(name, [VOCABULARY], (*SETTINGS, "config.json", "vocab.txt"))
        files = {name: (folder / name).read_bytes() for name in VOCABULARY + SETTINGS
                 if (folder / name).is_file()}
        limit = min(_limit(folder / "tokenizer_config.json", "model_max_length"),
                    _limit(folder / "config.json", "max_position_embeddings"))
        return cls(_read_backend(folder), 512 if limit == math.inf else limit, files)

    def check_fits(self, config, name, joint_pairs=False):
        """UserError unless the encoder of `config`, a BertConfig, has an embedding for every token
        id, and for both token types if it reads pairs in one sequence. name: the checkpoint's."""
        if self.vocab_size > config.vocab_size:
            raise UserError(f"{name}: a tokenizer with token ids up to {self.vocab_size - 1:,} and "
                            f"an encoder of {config.vocab_size:,} tokens are of different "
                            f"checkpoints; take both from one")
        if joint_pairs and config.type_vocab_size < 2:
            raise UserError(f"{name} knows one type of token (type_vocab_size 1), and a pair of "
                            f"texts in one sequence needs two; encode each text alone (--pairs "
                            f"separate), or take another checkpoint")

    def save_pretrained(self, folder):
        """Write the files that the tokenizer was made from, unchanged."""
        for name, content in self.files.items():
            with atomic_write(Path(folder) / name) as file:
                file.write(content)

    def encode(self, texts, pairs=None, max_length=None):
        """→ token ids and token types, one list of each per text, with [CLS] and [SEP]. `pairs`
        holds each text's partner or None. Above `max_length` tokens (default: the model's limit)
        the longer text is cut; one warning counts the cut texts."""
        for given in (texts,) if pairs is None else (texts, pairs):
            if isinstance(given, (str, bytes)) or not hasattr(given, "__len__") or not len(given):
                raise UserError(f"{given!r:.60} is no list of texts; give a list of one or more")
        pairs = [None] * len(texts) if pairs is None else pairs
        if len(pairs) != len(texts):
            raise UserError(f"{len(texts)} texts but {len(pairs)} pairs; give every text a partner")
        limit = self.limit if max_length is None else max_length
        special = 2 + any(text is not None for text in pairs)            # [CLS], one or two [SEP]
        if type(limit) is not int or min(limit, self.limit) <= special:
            raise UserError(f"a sequence may have {limit!r} tokens (the model: {self.limit}), and "
                            f"[CLS] and [SEP] take {special}; allow a whole number of tokens, "
                            f"{special + 1} or more")
        limit = min(limit, self.limit)
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

        def grid(rows, filler):
            return torch.tensor(list(zip_longest(*rows, fillvalue=filler))).T.contiguous()

        return {"input_ids": grid(ids, self.pad_token_id),
                "attention_mask": grid([[1] * len(row) for row in ids], 0),
                "token_type_ids": grid(types, 0)}


def check_texts(texts):
    """Raise UserError that names the first of the texts that is no Unicode text."""
    for number, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            why = ("holds half a character (a lone surrogate)" if isinstance(text, str)
                   else f"is of the type {type(text).__name__}")
            raise UserError(f"text {number}, {text!r:.60}, {why}; give a whole str") from error


def _limit(path, field):
    """The maximum number of tokens by this field; absent or 10³⁰ (as transformers writes) is ∞."""
    limit = read_json(path).get(field) if path.is_file() else None
    if limit is None or (isinstance(limit, (int, float)) and limit >= 10 ** 9):
        return math.inf
    if type(limit) is not int or limit < 3:
        raise UserError(f"{path}: {field} is {limit!r}; it must be a whole number, 3 or more")
    return limit


def _read_backend(folder):
    """From tokenizer.json or vocab.txt; tokenizer_config.json overrides how text is cleaned."""
    path, text_path = folder / "tokenizer.json", folder / "vocab.txt"
    if path.is_file():
        for name, part in read_json(path, {"model": dict}).items():
            if name in ("normalizer", "pre_tokenizer") and '"Regex"' in json.dumps(part):
                raise UserError(f"{path}: its {name} holds a regular expression, which may run for "
                                f"ever; BERT's tokenizers have none")
        try:
            backend = Backend.from_str(read_utf8(path))
        except Exception as error:                           # the library raises nothing else
            raise UserError(f"{path} is not a tokenizer file: {error}") from error
        if not isinstance(backend.model, models.WordPiece):
            raise UserError(f"{path} holds a {type(backend.model).__name__}; BERT's is WordPiece")
    else:
        lines = read_utf8(text_path).replace("\r\n", "\n").removesuffix("\n").split("\n")
        vocabulary = {token: number for number, token in enumerate(lines)}
        if len(vocabulary) < len(lines):
            raise UserError(f"{text_path} holds a token twice; every line needs its own")
        backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    absent = [token for token in (*SPECIAL, backend.model.unk_token)
              if backend.token_to_id(token) is None]
    if absent:
        raise UserError(f"{folder}: the vocabulary lacks {', '.join(absent)}, which BERT needs")
    path = folder / "tokenizer_config.json"
    settings = read_json(path, FIELDS) if path.is_file() else {}
    now = backend.normalizer or normalizers.BertNormalizer()
    if isinstance(now, normalizers.BertNormalizer):
        backend.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=settings.get("tokenize_chinese_chars", now.handle_chinese_chars),
            strip_accents=settings.get("strip_accents", now.strip_accents),  # None: if lower-casing
            lowercase=settings.get("do_lower_case", now.lowercase))
    return backend
