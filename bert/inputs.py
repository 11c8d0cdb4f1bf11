"""What an encoder is given: the layout of its input, and checks whose errors are sentences."""

import torch

from bert.dense_layout import DenseLayout
from bert.errors import UserError
from bert.layout import Layout, check_shape


def input_layout(config, input_ids, attention_mask, inputs_embeds, dense=False):
    """Check the encoder's arguments → the layout of input_ids [B, T] or inputs_embeds [B, T, H].
    attention_mask is [B, T], None (no padding) or a Layout; `dense` makes a DenseLayout of it."""
    if (input_ids is None) == (inputs_embeds is None):
        raise UserError("give either input_ids or inputs_embeds")
    what, given, axes = (("input_ids", input_ids, "batch, tokens") if inputs_embeds is None else
                         ("inputs_embeds", inputs_embeds, "batch, tokens, hidden size"))
    check_shape(what, given, axes)
    batch, tokens, *width = given.shape
    if width and (width != [config.hidden_size] or not given.is_floating_point()):
        raise UserError(f"inputs_embeds is {given.dtype} of the shape {list(given.shape)}; it must "
                        f"hold floats [batch, tokens, {config.hidden_size}]")
    if tokens > config.max_position_embeddings:
        raise UserError(f"a sequence of {tokens} tokens is longer than the model's "
                        f"{config.max_position_embeddings} positions; truncate it")
    if attention_mask is None:
        layout = (DenseLayout(given.new_ones(batch, tokens)) if dense else
                  Layout(torch.ones(batch, tokens)).to(given.device))
    elif isinstance(attention_mask, Layout):
        layout = attention_mask
    else:
        layout = DenseLayout(attention_mask) if dense else Layout(attention_mask)
    check_grid("input", [batch, tokens], layout)
    return layout


def check_grid(what, shape, layout):
    if shape != [layout.batch, layout.tokens]:
        raise UserError(f"{what} is {shape} but attention_mask is {[layout.batch, layout.tokens]}; "
                        f"both are [batch, tokens]")


def unpad_ids(what, ids, layout, count):
    """ids [B, T] → [N], each from 0 to count - 1. Values are checked on the CPU only, because a
    check synchronizes a GPU, and not for a DenseLayout, whose graph must not depend on values."""
    check_shape(what, ids, "batch, tokens")
    check_grid(what, list(ids.shape), layout)
    if ids.dtype not in (torch.int64, torch.int32):
        raise UserError(f"{what} is {ids.dtype}, not whole numbers; convert it with .long()")
    rows = layout.unpad(ids)
    if rows.device.type == "cpu" and not isinstance(layout, DenseLayout):
        wrong = rows[(rows < 0) | (rows >= count)]
        if len(wrong):
            raise UserError(f"{what} holds {wrong[0].item()}; this model has only 0 to {count - 1}")
    return rows


def check_head_mask(head_mask, layers, heads, layout, hidden):
    """→ head_mask, [layers, heads] or [batch, layers, heads], on the device of `hidden`."""
    given = (list(head_mask.shape) if isinstance(head_mask, torch.Tensor)
             else f"a {type(head_mask).__name__}")
    if given not in ([layers, heads], [layout.batch, layers, heads]):
        raise UserError(f"head_mask is {given}; it must be a tensor [{layers} layers, {heads} "
                        f"heads] or [{layout.batch} in the batch, {layers} layers, {heads} heads]")
    return head_mask.to(hidden.device, hidden.dtype)
