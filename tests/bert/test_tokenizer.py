"""Text to ids: the checkpoint's vocabulary and casing, pairs, truncation, batches."""

import json
import re
import warnings

import pytest
import torch

from bert import Tokenizer, UserError
from bert.tokenizer import SPECIAL

WORDS = ("hello", "Hello", "world", "##s", "cafe", "café", "!", "a", "b", "c", "d")


def tokenizer_in(folder, words=SPECIAL + WORDS, **settings):
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.from_pretrained(folder)


def tokens(tokenizer, text):
    ids, _ = tokenizer.encode([text])
    return [(SPECIAL + WORDS)[i] for i in ids[0]][1:-1]


def test_case_and_accents_are_as_the_checkpoint_says(tmp_path):
    text = "Hello worlds, café!"
    assert tokens(tokenizer_in(tmp_path), text) == ["hello", "world", "##s", "[UNK]", "cafe", "!"]
    cased = tokenizer_in(tmp_path, do_lower_case=False)
    assert tokens(cased, text) == ["Hello", "world", "##s", "[UNK]", "café", "!"]
    kept = tokenizer_in(tmp_path, do_lower_case=True, strip_accents=False)
    assert tokens(kept, "CAFÉ") == ["café"]


def test_settings_go_before_what_tokenizer_json_says(tmp_path):
    cased = tokenizer_in(tmp_path, do_lower_case=False)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").write_text(cased.backend.to_str())
    assert tokens(Tokenizer.from_pretrained(tmp_path), "Hello") == ["Hello"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert tokens(Tokenizer.from_pretrained(tmp_path), "Hello") == ["hello"]


def test_pairs_have_two_separators_and_token_types(tmp_path):
    batch = tokenizer_in(tmp_path)(["a b", "a"], pairs=["c", "c d d"])
    first, second = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
    a, b, c, d = (len(SPECIAL) + WORDS.index(x) for x in "abcd")
    assert batch["input_ids"].tolist() == [[first, a, b, second, c, second, 0],
                                           [first, a, second, c, d, d, second]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 7]
    assert all(tensor.dtype == torch.long for tensor in batch.values())


def test_the_longer_text_is_cut_and_one_warning_counts(tmp_path):
    tokenizer = tokenizer_in(tmp_path, model_max_length=8)
    with pytest.warns(UserWarning, match="2 of 3 texts were longer than 8 tokens") as seen:
        ids, types = tokenizer.encode(["a " * 20, "b", "a a a a"], ["b", "c", "b b b b"])
    assert len(seen) == 1
    assert [len(row) for row in ids] == [8, 5, 8]
    assert [sum(row) for row in types] == [2, 2, 4]          # [CLS] a a [SEP] b b b [SEP]


def test_the_limit_is_the_least_that_any_file_says(tmp_path):
    assert tokenizer_in(tmp_path, model_max_length=10 ** 30).limit == 512
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 40}')
    assert tokenizer_in(tmp_path, model_max_length=64).limit == 40
    assert tokenizer_in(tmp_path, model_max_length=16).limit == 16


@pytest.mark.parametrize("limit", [2, 1, 0, -1, 2.5, "64", True])
def test_a_limit_without_room_for_text_is_refused(tmp_path, limit):
    with pytest.raises(UserError, match="tokenizer_config.json: model_max_length is"):
        tokenizer_in(tmp_path, model_max_length=limit)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": limit}))
    with pytest.raises(UserError, match="config.json: max_position_embeddings is"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"may have {limit!r} tokens")):
        tokenizer(["a"], max_length=limit)
    with pytest.raises(UserError, match="take 2; allow"):
        Tokenizer(tokenizer.backend, limit=2)(["a"])


def test_a_pair_needs_room_for_three_special_tokens_and_one_of_text(tmp_path):
    tokenizer = tokenizer_in(tmp_path, model_max_length=3)
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 3 tokens"):
        assert tokenizer(["a b"])["input_ids"].shape == (1, 3)
    with pytest.raises(UserError, match="take 3; allow a whole number of tokens, 4 or more"):
        tokenizer(["a"], pairs=["b"])


@pytest.mark.parametrize("text, says", [
    ("bad\udcff", "surrogate"), ("\ud83d", "surrogate"), (b"bytes", "bytes"), (None, "NoneType"),
    (3, "int"), (float("nan"), "float")])
def test_what_is_no_unicode_text_is_a_sentence(tmp_path, text, says):
    tokenizer = tokenizer_in(tmp_path)
    with pytest.raises(UserError, match=f"text 1, .*{says}") as refusal:
        tokenizer(["a", text])
    str(refusal.value).encode()                              # can be printed
    if text is not None:                                     # which means: no partner
        with pytest.raises(UserError, match=f"text 1, .*{says}"):
            tokenizer(["a", "b"], pairs=["c", text])


@pytest.mark.parametrize("texts, pairs", [
    (None, None), (3, None), (b"bytes", None), (["a", "b"], "cd"), ("a", ["b"])])
def test_what_is_no_list_of_texts_is_a_sentence(tmp_path, texts, pairs):
    with pytest.raises(UserError, match="no list of texts|is of the type"):
        tokenizer_in(tmp_path)(texts, pairs)
    with pytest.raises(UserError, match="'abc' is no list"):
        tokenizer_in(tmp_path).encode("abc")


def test_short_texts_warn_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer_in(tmp_path)(["a", ""])


def test_saved_tokenizer_is_the_same_files(tmp_path):
    tokenizer_in(tmp_path).save_pretrained(tmp_path / "again")
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_useless_vocabulary_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"lacks \[CLS\]"):
        tokenizer_in(tmp_path, [word for word in SPECIAL if word != "[CLS]"])
    with pytest.raises(UserError, match="twice"):
        tokenizer_in(tmp_path, (*SPECIAL, "a", "a"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_every_text_needs_its_partner(tmp_path):
    with pytest.raises(UserError, match="2 texts but 1 pairs"):
        tokenizer_in(tmp_path)(["a", "b"], pairs=["c"])


def test_real_vocabulary_gives_the_known_ids(real_weights):
    tokenizer = Tokenizer.from_pretrained(real_weights)
    batch = tokenizer(["hello world", "Hello neural network pooling?"])
    assert batch["input_ids"][0].tolist()[:4] == [101, 7592, 2088, 102]
    assert batch["input_ids"][1].tolist() == [101, 7592, 15756, 2897, 4770, 2075, 1029, 102]
