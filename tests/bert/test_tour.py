"""python -m bert: a text's way through the encoder, as the modules themselves compute it."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bert import Bert, Tokenizer, UserError
from bert.__main__ import main
from bert.tour import attention_maps, watch
from pruning import remove_heads

ROOT = Path(__file__).parent.parent.parent
TEXTS = ["the film was dull .", "good"]


@pytest.fixture
def tiny():
    return Bert.from_pretrained("tiny").eval(), Tokenizer.from_pretrained("tiny")


def test_the_tour_shows_tokens_rows_shapes_and_lines(capsys):
    main(["A dull, dull film."])
    out = capsys.readouterr().out
    assert "A grid [3, 22]" in out and "N = 34 rows" in out
    assert "■■■■■■■■··············" in out and "attention on a grid [2, 8]" in out
    assert re.search(r"11 +1 +3 +25 +3 +0  \[SEP\]", out)    # row, sequence, position, cell, id
    for name, shape in (("embedding_norm", "[34, 128]"), ("layers.0.ffn.fc_in", "[34, 512]"),
                        ("layers.0.attention.probabilities of each head", "[1, 4, 22, 22]"),
                        ("layers.3.attention.query", "[3, 128]"), ("pooler", "[3, 128]")):
        assert re.search(rf"^{re.escape(name)} +{re.escape(shape)} +bert/\w+\.py:\d+$", out,
                         re.MULTILINE), name


def test_a_line_of_the_tour_is_the_line_that_calls_the_module(tiny):
    bert, tokenizer = tiny
    with watch(bert) as seen:
        bert(**tokenizer(TEXTS))
    for name, _, line in seen:
        file, number = line.split(":")
        last = name.split(".")[-1]
        if last in ("query", "fc_in", "fc_out", "embedding_norm", "pooler", "output_norm"):
            assert f"self.{last}" in (ROOT / file).read_text().splitlines()[int(number) - 1]


def test_shapes_are_those_of_the_model_at_hand(checkpoint):
    bert, tokenizer = Bert.from_pretrained(checkpoint).eval(), Tokenizer.from_pretrained(checkpoint)
    remove_heads(bert, {1: [0, 3]})
    with watch(bert) as seen:
        bert(**tokenizer("good film"))
    shapes = {name: list(tensor.shape) for name, tensor, _ in seen}
    assert shapes["layers.0.attention.context of each head"] == [1, 4, 4, 8]
    assert shapes["layers.1.attention.context of each head"] == [1, 2, 4, 8]
    assert shapes["layers.1.attention.query"] == [4, 16]


def test_watching_changes_no_output_and_leaves_no_trace(tiny):
    bert, tokenizer = tiny
    batch = tokenizer(TEXTS)
    functions = [layer.attention.attention_function for layer in bert.layers]
    before = bert(**batch)
    with watch(bert) as seen:
        during = bert(**batch)
    count = len(seen)
    after = bert(**batch)
    torch.testing.assert_close(during[0], before[0], atol=1e-5, rtol=0)      # of another kernel
    assert torch.equal(before[0], after[0])
    assert len(seen) == count
    assert [layer.attention.attention_function for layer in bert.layers] == functions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_maps_are_softmax_of_query_and_key(tiny, attention):
    bert, tokenizer = tiny
    bert.use_attention(attention)
    hidden, layout = bert.embed(**tokenizer(TEXTS[0]))
    found = attention_maps(bert, hidden, layout)
    module = bert.layers[0].attention
    (query,), (key,) = (module.split_heads(layout.pad(part(hidden, layout)))
                        for part in (module.query, module.key))
    expected = (query @ key.transpose(-1, -2) / math.sqrt(module.head_size)).softmax(dim=-1)
    assert list(found) == [0, 1, 2, 3]
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_the_picture_is_a_png(tmp_path, capsys, checkpoint):
    main(["the film is good", "the book is good", "--bert", str(checkpoint),
          "--picture", str(tmp_path / "to" / "tour.png")])
    assert (tmp_path / "to" / "tour.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments, says", [
    ([" "], "text is empty"), (["a", ""], "text is empty"),
    (["a", "--bert", "./nowhere"], "is not a folder")])
def test_a_mistake_is_a_sentence(arguments, says):
    with pytest.raises(UserError, match=says):
        main(arguments)


def test_a_mistake_exits_with_2():
    done = subprocess.run([sys.executable, "-m", "bert", " "], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
