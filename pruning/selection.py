"""What to remove, by importance and a budget, and where adapters get a higher rank."""

import torch

from bert.errors import UserError, check_known, plain_number

ORDERS = ("importance", "random", "inverse")


def choose(scores, keep, order="importance", seed=0, per_layer=False):
    """scores [layers, parts], NaN where a part is gone → {layer: [part]} to remove, so that `keep`
    parts stay: the most important ones, random ones, or (inverse) the least important ones.
    per_layer: the same number in every layer, or all of a layer that has fewer. UserError if
    nothing would stay or nothing be removed, or if `keep` cannot be divided among the layers."""
    check_known(order, ORDERS, "order")
    layers, lower = len(scores), keep - keep % len(scores)
    if per_layer and lower != keep:
        raise UserError(f"{keep:,} cannot be divided evenly among {layers} layers; "
                        f"{f'{lower:,} or ' if lower else ''}{lower + layers:,} can")
    there = ~scores.isnan()
    if order == "random":
        scores = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    elif order == "inverse":
        scores = -scores
    groups = scores.masked_fill(~there, -torch.inf).view(len(scores) if per_layer else 1, -1)
    places = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(scores.shape)
    removed = there & (places >= keep // len(groups))
    if keep < 1 or not removed.any():
        raise UserError(f"{int(there.sum()):,} are there and {keep:,} are to be kept, so nothing "
                        f"would be removed, or nothing left; keep fewer, and at least one")
    return {layer: row.nonzero().flatten().tolist()
            for layer, row in enumerate(removed) if row.any()}


def left_after_rounds(there, keep, rounds, step=1):
    """How many parts are left after each round that removes any, in multiples of `step`."""
    left = (there - round((there - keep) * number / rounds) for number in range(1, rounds))
    multiples = {number - number % step for number in left}
    return sorted({keep, *(n for n in multiples if keep < n < there)}, reverse=True)


def parse_heads(texts, flag):
    """["0:3,7", "5"] → {0: [3, 7]}, [5]: heads of layers, and whole layers."""
    heads, layers = {}, []
    for text in texts:
        layer, colon, numbers = text.partition(":")
        try:
            if colon:
                heads.setdefault(plain_number(layer, int), []).extend(
                    plain_number(number, int) for number in numbers.split(","))
            else:
                layers.append(plain_number(layer, int))
        except ValueError as error:
            raise UserError(f"--{flag} {text!r} is not understood; write layer:head,head as in "
                            f"0:3,7") from error
    return heads, layers


def parse_budget(text, total, flag):
    """"100" → 100 parts; "0.7" → that fraction of `total`, which includes removed parts."""
    try:
        keep = round(plain_number(text) * total) if "." in text else plain_number(text, int)
    except (ValueError, OverflowError):
        keep = -1
    if not 0 < keep <= total:
        raise UserError(f"--{flag} {text}: give how many to keep (1 to {total:,}), or a fraction "
                        f"with a point in it, as 0.7")
    return keep


def ranks_by_importance(raw, high=8, low=4, blocks=4,
                        matrices=("query", "key", "value", "attention_output")):
    """LoRA ranks that follow importance (Wang, Yang & Sun 2023, section 2.3, which does not say how
    a layer's is measured). raw [layers, heads], not normalized, NaN where a head is gone → {(layer,
    matrix): rank}: `high` in the `blocks` layers with the largest sums, else `low`."""
    order = raw.nan_to_num().sum(dim=1).argsort(descending=True, stable=True)
    best = order[:blocks].tolist()
    return {(layer, matrix): high if layer in best else low
            for layer in range(len(raw)) for matrix in matrices}
