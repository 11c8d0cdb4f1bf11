"""Which parts to keep: a budget and an order → what is to be removed. And where adapters get a
higher rank."""

import torch

from bert import UserError

ORDERS = ("importance", "random", "inverse")


def choose(scores, keep, order="importance", per_layer=False, seed=0):
    """scores [layers, parts], NaN where a part is gone, → {layer: [part]} to be removed so that
    `keep` parts stay: the most important ones, random ones, or (inverse) the least important ones.
    per_layer: the same number in every layer, where there are still so many."""
    if order not in ORDERS:
        raise UserError(f"the order {order!r} is unknown; known are {', '.join(ORDERS)}")
    if keep < 1:
        raise UserError(f"{keep} are to be kept; keep at least one")
    there = ~scores.isnan()
    if order == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(scores.shape, generator=generator)
    ranked = scores if order != "inverse" else -scores
    ranked = ranked.masked_fill(~there, -torch.inf)
    if per_layer:
        check_even(keep, len(scores))
        places = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        stays = there & (places < keep // len(scores))
    else:
        places = ranked.flatten().argsort(descending=True, stable=True).argsort()
        stays = there & (places.view(scores.shape) < keep)
    if torch.equal(stays, there):
        raise UserError(f"{int(there.sum())} are there and {keep} are to be kept, so nothing would "
                        f"be removed; keep fewer")
    gone = there & ~stays
    return {layer: row.nonzero().flatten().tolist() for layer, row in enumerate(gone) if row.any()}


def check_even(keep, layers):
    near = keep - keep % layers
    if near != keep:
        raise UserError(f"{keep} cannot be divided evenly among {layers} layers; "
                        f"{f'{near} or ' if near else ''}{near + layers} can")


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
            layer = ", or a whole layer as in 5" if flag == "remove" else ""
            raise UserError(f"--{flag} {text!r} is not understood; write layer:head,head as in "
                            f"0:3,7{layer}") from error
    return heads, layers


def parse_budget(text, total, what):
    """"100" → 100 parts; "0.7" → so many of `total`, which counts what was removed before too."""
    try:
        keep = round(float(text) * total) if "." in text else int(text)
    except (ValueError, OverflowError):
        keep = -1
    if not 0 < keep <= total:
        none = f"would keep none of the {total:,}" if keep == 0 else "is not understood"
        raise UserError(f"--{what} {text} {none}: give how many to keep (1 to {total:,}), or a "
                        f"fraction with a point in it, as 0.7")
    return keep


def ranks_by_importance(raw, high=8, low=4, blocks=4,
                        matrices=("query", "key", "value", "attention_output")):
    """LoRA ranks that follow importance (Pruning-Adapter, §2.3 of arXiv 2303.14704, which does not
    say how a layer's importance is measured). raw [layers, heads], NaN where a head is gone, →
    {(layer, matrix): rank}: `high` in the `blocks` layers whose heads have the largest sum, else
    `low`. Raw, because importance that was normalized in each layer has the same size in all."""
    order = raw.nan_to_num().sum(dim=1).argsort(descending=True, stable=True)
    best = set(order[:blocks].tolist())
    return {(layer, matrix): high if layer in best else low
            for layer in range(len(raw)) for matrix in matrices}
