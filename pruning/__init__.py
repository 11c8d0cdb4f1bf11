"""Heads, neurons and whole layers that matter little, found and taken out (Michel, Levy & Neubig
2019, arXiv 1905.10650; Wang, Yang & Sun 2023, Pruning-Adapter, arXiv 2303.14704).

    I(part) = Σ_x |∂L(x)/∂ξ| / tokens,   ξ = 1 a gate on what the part adds; the sum over examples

    python -m pruning importance runs/first                  # heat map layers × heads, and its CSV
    python -m pruning prune runs/first --heads 100 --out runs/pruned

    bert(**batch, head_mask=mask)              # no package needed: [layers, heads] of 0 and 1, or
                                               # [batch, layers, heads], each example its own
    remove_heads(bert, {0: [3, 7], 5: [0]})    # for good: {layer: [head]}

A removed head is gone from the weights: rows of query, key and value, columns of output. What is
left keeps its numbers, `pruned_heads` in config.json says what is missing, and from_pretrained
builds that shape. Training goes on from the pruned run with --from.

gates.py      importance by gradients       removal.py  the cuts
measure.py    importance of a run           start.py    pruning before training
selection.py  what goes, and LoRA's ranks   cost.py     multiply-adds
report.py     what runs cost and reach      picture.py  heat maps

Left out: pruning of single weights, of embeddings and of the hidden size; masks that are learned.
"""

from pruning.cost import multiply_adds
from pruning.gates import importance, normalize
from pruning.removal import mask_heads, remove_heads, remove_layers, remove_neurons
from pruning.selection import choose, ranks_by_importance

__all__ = ["choose", "importance", "mask_heads", "multiply_adds", "normalize",
           "ranks_by_importance", "remove_heads", "remove_layers", "remove_neurons"]
