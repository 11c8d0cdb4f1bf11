"""Checks of the encoder's arguments: a wrong one raises UserError. Values of ids are checked on the
CPU only."""

import torch

from bert.errors import UserError
from bert.layout import DenseLayout, Layout, check_shape


def input_layout(config, input_ids, attention_mask, inputs_embeds, dense=False):
    """→ the layout of input_ids [B, T] or inputs_embeds [B, T, H]. attention_mask is [B, T], None
    (no padding) or a Layout already; `dense` makes a DenseLayout of a mask."""
    if (input_ids is None) == (inputs_embeds is None):
        raise UserError("give either input_ids or inputs_embeds")
    if inputs_embeds is None:
        given = input_ids
        check_shape("input_ids", given, "batch, tokens")
    else:
        given = inputs_embeds
        check_shape("inputs_embeds", given, "batch, tokens, hidden size")
        if given.size(2) != config.hidden_size or not given.is_floating_point():
            raise UserError(f"inputs_embeds is {given.dtype} of the shape {list(given.shape)}; it "
                            f"must hold floats [batch, tokens, {config.hidden_size}]")
    batch, tokens = given.shape[:2]
    if tokens > config.max_position_embeddings:
        raise UserError(f"a sequence of {tokens} tokens is longer than the model's "
                        f"{config.max_position_embeddings} positions; truncate it")
    layout = attention_mask
    if not isinstance(layout, Layout):
        mask = given.new_ones(batch, tokens) if attention_mask is None else attention_mask
        layout = DenseLayout(mask) if dense else Layout(mask)
    check_grid("input", (batch, tokens), layout)
    return layout


def check_grid(what, shape, layout):
    """Raise UserError unless `shape` is the [batch, tokens] of `layout`."""
    if tuple(shape) != (layout.batch, layout.tokens):
        raise UserError(f"{what} is {list(shape)} but attention_mask is "
                        f"{[layout.batch, layout.tokens]}; both are [batch, tokens]")


def unpad_ids(what, ids, layout, count):
    """ids [B, T] → [N], each from 0 to count - 1. Values are checked on the CPU only, because a
    check synchronizes a GPU, and not for a DenseLayout, whose graph must not depend on values."""
    check_shape(what, ids, "batch, tokens")
    check_grid(what, ids.shape, layout)
    if ids.dtype not in (torch.int64, torch.int32):
        raise UserError(f"{what} is {ids.dtype}, not whole numbers; convert it with .long()")
    rows = layout.unpad(ids)
    if rows.device.type == "cpu" and not isinstance(layout, DenseLayout):
        wrong = rows[(rows < 0) | (rows >= count)]
        if len(wrong):
            raise UserError(f"{what} holds {wrong[0].item()}; this model has only 0 to "
                            f"{count - 1}, so the tokenizer must be the model's own")
    return rows


def check_head_mask(head_mask, layers, heads, layout, hidden):
    """→ head_mask, [layers, heads] or [batch, layers, heads], on the device of `hidden`."""
    given = (list(head_mask.shape) if isinstance(head_mask, torch.Tensor)
             else f"a {type(head_mask).__name__}")
    if given not in ([layers, heads], [layout.batch, layers, heads]):
        raise UserError(f"head_mask is {given}; it must be a tensor [{layers} layers, {heads} "
                        f"heads] or [{layout.batch} in the batch, {layers} layers, {heads} heads]")
    return head_mask.to(hidden.device, hidden.dtype)
