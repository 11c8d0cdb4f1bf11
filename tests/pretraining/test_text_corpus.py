"""From text files to batches of lines, and the vocabulary."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bert import UserError
from pretraining.corpus import (
    BucketBatchSampler,
    Corpus,
    is_held_out,
    read_text,
    split_by_tokens,
    train_tokenizer,
)

ROOT = Path(__file__).parent.parent.parent


def test_batches_keep_to_the_budget_and_miss_no_line():
    length = torch.randint(3, 30, (500,), generator=torch.Generator().manual_seed(0))
    lines = torch.arange(500)[::2]
    batches = BucketBatchSampler(lines, length, 100, seed=1)
    steps = [batches[step] for step in range(1, 2 * batches.steps_per_epoch + 1)]
    epochs = steps[:batches.steps_per_epoch], steps[batches.steps_per_epoch:]
    for batch in epochs[0]:
        assert 0 < int(length[batch].sum()) < 130
    assert all(torch.equal(torch.cat(one).sort().values, lines) for one in epochs)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    again = BucketBatchSampler(lines, length, 100, seed=1)
    assert torch.equal(again[batches.steps_per_epoch + 3], epochs[1][2])     # no state is needed


def test_a_line_belongs_to_the_batch_of_its_last_token():
    batches = split_by_tokens(torch.arange(4), torch.tensor([5, 5, 9, 1]), 10)
    assert [len(batch) for batch in batches] == [2, 2]


def test_the_text_alone_decides_whether_a_line_is_held_out():
    lines = [f"line {n}" for n in range(5000)]
    held = {one for one in lines if is_held_out(one, 0.1)}
    assert 0.08 < len(held) / len(lines) < 0.12
    assert held == {one for one in reversed(lines) if is_held_out(one, 0.1)}


def test_vocabulary_is_the_same_in_every_process(text):
    code = ("import sys; from pretraining.corpus import read_text, train_tokenizer; "
            "tokenizer = train_tokenizer(read_text(sys.argv[1]), 100, 32); "
            "print(tokenizer.files['vocab.txt'].decode())")
    made = [subprocess.run([sys.executable, "-c", code, str(text)], cwd=ROOT, text=True, check=True,
                           capture_output=True).stdout for _ in range(2)]
    assert made[0] == made[1]
    vocabulary = made[0].split()
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(vocabulary) <= 100 and {"sea", "salt"} <= set(vocabulary)


def test_vocabulary_that_cannot_hold_the_characters_is_refused():
    with pytest.raises(UserError, match="--vocab-size 12 is too few"):
        train_tokenizer(["abcdefgh abcdefgh"], 12, 32)


def test_a_line_with_a_tab_is_a_pair(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the  cat\tthe dog \nthe film\t\n a \t b \t c\n")
    lines = read_text(tmp_path)
    assert lines == ["the cat\tthe dog", "the film", "a b c"]
    ids, types, layout = Corpus(tokenizer, lines).collate(torch.tensor([0, 1]))
    batch = tokenizer(["the cat"], pairs=["the dog"])
    assert torch.equal(ids[:7], batch["input_ids"][0]) and len(ids) == 11
    assert torch.equal(types[:7], batch["token_type_ids"][0]) and not types[7:].any()
