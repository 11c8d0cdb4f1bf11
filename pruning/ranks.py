"""LoRA ranks that follow importance (Pruning-Adapter, §2.3 of arXiv 2303.14704): layers whose heads
matter most get adapters of a higher rank."""

ATTENTION = ("query", "key", "value", "output")


def ranks_by_importance(raw, high=8, low=4, blocks=4, matrices=ATTENTION):
    """raw importance [layers, heads], NaN where a head is gone, → {(layer, matrix): rank}: `high`
    in the `blocks` layers whose heads have the largest sum, else `low`. Raw, because importance
    that was normalised in each layer has the same size in all. Paper B gives no definition."""
    order = raw.nan_to_num().sum(dim=1).argsort(descending=True, stable=True)
    best = set(order[:blocks].tolist())
    return {(layer, matrix): high if layer in best else low
            for layer in range(len(raw)) for matrix in matrices}


def adapter_parameters(ranks, bert):
    """How many numbers the matrices A [rank, in] and B [out, rank] hold in all."""
    attentions = [layer.attention for layer in bert.layers]
    matrices = {place: getattr(attentions[place[0]], place[1]) for place in ranks}
    return sum(rank * (matrices[place].in_features + matrices[place].out_features)
               for place, rank in ranks.items())
