"""Choose the parts to remove by importance and a budget, and the ranks of adapters."""

import torch

from bert.errors import UserError, check_known

ORDERS = ("importance", "random", "inverse")


def choose(scores, keep, order="importance", seed=0):
    """scores [layers, parts], NaN where a part is gone → {layer: [part]} to remove, so that `keep`
    parts stay: the most important ones, random ones, or (inverse) the least important ones.
    UserError if nothing would stay, or nothing would be removed."""
    check_known(order, ORDERS, "order")
    present = ~scores.isnan()
    if not 0 < keep < present.sum():
        raise UserError(f"{int(present.sum()):,} are there and {keep:,} are to be kept, so nothing "
                        f"would be removed, or nothing left; keep fewer, and at least one")
    if order == "random":
        scores = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    elif order == "inverse":
        scores = -scores
    ordered = scores.masked_fill(~present, -torch.inf).flatten()
    ranks = ordered.argsort(descending=True, stable=True).argsort().view(scores.shape)
    removed = present & (ranks >= keep)
    return {layer: row.nonzero().flatten().tolist()
            for layer, row in enumerate(removed) if row.any()}


def parse_heads(texts, flag):
    """["0:3,7", "5"] → {0: [3, 7]}, [5]: heads of layers, and whole layers."""
    heads, layers = {}, []
    for text in texts:
        layer, colon, numbers = text.partition(":")
        try:
            if colon:
                heads.setdefault(int(layer), []).extend(map(int, numbers.split(",")))
            else:
                layers.append(int(layer))
        except ValueError as error:
            raise UserError(f"--{flag} {text!r} is not understood; write layer:head,head as in "
                            f"0:3,7") from error
    return heads, layers


def parse_budget(text, total, flag):
    """"100" → 100 parts; "0.7" → that fraction of `total`, which includes removed parts."""
    try:
        keep = round(float(text) * total) if "." in text else int(text)
    except (ValueError, OverflowError):
        keep = -1
    if not 0 < keep <= total:
        raise UserError(f"--{flag} {text}: give how many to keep (1 to {total:,}), or a fraction "
                        f"with a point in it, as 0.7")
    return keep


def ranks_by_importance(raw, high=8, low=4, blocks=4,
                        matrices=("query", "key", "value", "attention_output")):
    """LoRA ranks that follow importance (Wang, Yang & Sun 2023, section 2.3, which leaves open how
    to measure a layer's). raw [layers, heads], not normalized, NaN where a head is gone → {(layer,
    matrix): rank}: `high` in the `blocks` layers with the largest sums, else `low`."""
    order = raw.nan_to_num().sum(dim=1).argsort(descending=True, stable=True)
    best = order[:blocks].tolist()
    return {(layer, matrix): high if layer in best else low
            for layer in range(len(raw)) for matrix in matrices}
