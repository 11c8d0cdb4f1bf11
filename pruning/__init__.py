"""Measure the importance of heads, neurons and layers, and remove the least important ones
(Michel, Levy & Neubig 2019, arXiv 1905.10650; Wang, Yang & Sun 2023, arXiv 2303.14704).

    I(part) = Σ_x |∂L(x)/∂ξ| / tokens       ξ = 1 multiplies what the part adds; x: the examples

    raw = importance(bert, batches, loss)                        # [layers, heads]
    remove_heads(bert, choose(normalize(raw), keep=100))         # or by name: {0: [3, 7], 5: [0]}
    bert(**batch, head_mask=mask)                        # [layers, heads] or [batch, layers, heads]

Removing a head deletes its weights. The other heads keep their numbers, and `pruned_heads` in
config.json lists the removed ones, so that Bert.from_pretrained opens the smaller encoder.

Left out: pruning of single weights, of embeddings and of the hidden size; masks that are learned.
"""

from pruning.cost import multiply_adds
from pruning.gates import importance, normalize
from pruning.removal import mask_heads, remove_heads, remove_layers, remove_neurons
from pruning.selection import choose, ranks_by_importance
