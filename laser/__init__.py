"""Rank reduction after training, and compression without retraining.

    LASER    Sharma et al. 2023 (arXiv 2312.13558): a weight matrix W = U Σ Vᵀ of a trained model is
             replaced by its closest matrix of rank k,  W_k = U_k Σ_k V_kᵀ,  k = ⌊keep · min(m, n)⌋
    storage  Offline compression (arXiv 2302.04045) and token embeddings with a loss of direction
             (arXiv 2106.08181): see compression/__main__.py

    undo = apply(bert, parse("10:fc_out:0.1,8:fc_in:0.3"))      # and undo() puts W back
    python -m laser search RUN                                  # which interventions help, if any

The files, in reading order: reduce (one matrix), interventions (how they are written), factored
(two thin matrices), edit (in a model), replay (many models in one pass), outputs, heldout, sweep,
search, additive; then codecs, autoencoder, compress.

Left out: reducing several layers' matrices as one tensor, interventions on embeddings and pooler,
keeping the smallest singular values instead of the largest.
"""

from laser.edit import apply
from laser.interventions import MATRICES, Intervention, parse
from laser.reduce import Decomposition, low_rank

__all__ = ["MATRICES", "Decomposition", "Intervention", "apply", "low_rank", "parse"]
