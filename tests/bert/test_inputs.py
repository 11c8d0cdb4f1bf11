"""What a caller gives the encoder by mistake is a sentence."""

import pytest
import torch
from conftest import NoWaiting
from parity import SMALL, tiny_batch

from bert import Bert, BertConfig, DenseLayout, Layout, Tokenizer, UserError

IDS, ONES = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3)
WRONG = {
    "no sequence": (dict(input_ids=IDS[:0]), r"the batch is empty: .*\[0, 3\]"),
    "no token": (dict(input_ids=IDS[:, :0]), r"the batch is empty: .*\[2, 0\]"),
    "ids in one dimension": (dict(input_ids=IDS[0]), r"input_ids has the shape \[3\]"),
    "ids in three dimensions": (dict(input_ids=IDS[None]), r"input_ids has .*\[1, 2, 3\]"),
    "ids of a list": (dict(input_ids=[[1, 2]]), "input_ids is a list"),
    "ids of floats": (dict(input_ids=ONES), r"input_ids is torch.float32.*\.long\(\)"),
    "ids of bools": (dict(input_ids=ONES.bool()), "input_ids is torch.bool"),
    "an id too high": (dict(input_ids=IDS * 60), "input_ids holds 60.*0 to 59"),
    "an id too low": (dict(input_ids=-IDS), "input_ids holds -1"),
    "a type too high": (dict(input_ids=IDS, token_type_ids=IDS * 2), "token_type_ids holds 2"),
    "a type too low": (dict(input_ids=IDS, token_type_ids=-IDS), "token_type_ids holds -1"),
    "types of floats": (dict(input_ids=IDS, token_type_ids=ONES), "token_type_ids is torch.float"),
    "types in three dimensions": (dict(input_ids=IDS, token_type_ids=IDS[..., None]),
                                  r"token_type_ids has the shape \[2, 3, 1\]"),
    "types of another shape": (dict(input_ids=IDS, token_type_ids=IDS[:1]), r"is \[1, 3\]"),
    "a mask in one dimension": (dict(input_ids=IDS, attention_mask=ONES[0]),
                                r"attention_mask has the shape \[3\]"),
    "a mask in three dimensions": (dict(input_ids=IDS, attention_mask=ONES[:, None]),
                                   r"attention_mask has the shape \[2, 1, 3\]"),
    "a mask of another length": (dict(input_ids=IDS, attention_mask=ONES[:, :2]), r"\[2, 2\]"),
    "a mask of a list": (dict(input_ids=IDS, attention_mask=[[1, 1, 1]] * 2), "is a list"),
    "embeddings in two dimensions": (dict(inputs_embeds=ONES), r"inputs_embeds has the shape"),
    "embeddings of another width": (dict(inputs_embeds=torch.ones(2, 3, 31)), r"\[2, 3, 31\]"),
    "embeddings of whole numbers": (dict(inputs_embeds=torch.ones(2, 3, 32).long()), "int64"),
    "nothing": ({}, "either"),
}
VALUES = ("an id too high", "an id too low", "a type too high", "a type too low")


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    return Bert(BertConfig(**SMALL)).eval()


@pytest.mark.parametrize("dense", [False, True], ids=["packed", "dense"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_sentence(bert, case, dense):
    given, says = WRONG[case]
    if dense and case in VALUES:
        pytest.skip("the dense path reads no values")
    for call in (bert, bert.embed):
        with pytest.raises(UserError, match=says):
            call(**given, dense=dense)


@pytest.mark.parametrize("kind", [Layout, DenseLayout])
@pytest.mark.parametrize("mask, says", [
    (torch.ones(0, 3), "empty"), (torch.ones(2, 0), "empty"), (torch.ones(3), r"\[3\]"),
    (torch.ones(2, 1, 3), r"\[2, 1, 3\]"), (None, "NoneType"), ([[1]], "list")])
def test_a_layout_of_no_mask_is_a_sentence(kind, mask, says):
    with pytest.raises(UserError, match=says):
        kind(mask)


def test_an_empty_batch_of_the_tokenizer_is_a_sentence():
    tokenizer = Tokenizer.from_pretrained("tiny")
    for call in (lambda: tokenizer([]), lambda: tokenizer.pad([], [])):
        with pytest.raises(UserError, match="one or more"):
            call()


def test_ids_at_padding_are_not_checked(bert):
    batch = tiny_batch()
    expected = bert(**batch)
    batch["input_ids"][batch["attention_mask"] == 0] = -100
    assert torch.equal(bert(**batch)[0], expected[0])
    small = {name: tensor.int() for name, tensor in tiny_batch().items()}
    assert torch.equal(bert(**small)[0], expected[0])


def test_the_dense_path_reads_no_values(bert):
    batch = tiny_batch()
    with NoWaiting():
        bert(**batch, dense=True)


def test_values_are_checked_on_the_cpu_only():
    """On meta, as on a GPU, a tensor's values cannot be had without waiting (here: at all)."""
    layout = Layout(torch.ones(2, 3)).to("meta")
    bert = Bert(BertConfig(**SMALL)).to("meta")
    hidden, _ = bert.embed(IDS.to("meta"), layout, IDS.to("meta"))
    assert hidden.is_meta and hidden.shape == (6, 32)


@pytest.mark.parametrize("dense", [False, True], ids=["packed", "dense"])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_other_precisions_run_with_masks_of_heads(dtype, atol, dense):
    torch.manual_seed(0)
    bert = Bert(BertConfig(**SMALL | {"initializer_range": 0.1})).eval()
    heads = torch.ones(3, 4)
    heads[0, 1] = 0
    for when in ("before", "after"):                         # the heads are masked
        other = Bert(bert.config).eval()
        other.load_state_dict(bert.state_dict())
        bert.layers[1].attention.set_masked_heads(bert.config, [2])
        if when == "before":
            other.layers[1].attention.set_masked_heads(bert.config, [2])
        other.to(dtype)
        other.layers[1].attention.set_masked_heads(bert.config, [2])
        found = other(**tiny_batch(), head_mask=heads, dense=dense)
        assert found[0].dtype == found[1].dtype == dtype
        torch.testing.assert_close(found[0].float(), bert(**tiny_batch(), head_mask=heads)[0],
                                   atol=atol, rtol=0)
