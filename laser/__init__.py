"""Rank reduction of a trained model, without training it again.

LASER (Sharma et al. 2023, arXiv 2312.13558) replaces a weight matrix W = U Σ Vᵀ by its closest
matrix of rank k,

    W_k = U_k Σ_k V_kᵀ,    k = ⌊keep · min(m, n)⌋

    undo = laser.apply(bert, laser.parse("10:fc_out:0.1,8:fc_in:0.3"))      # undo() puts W back
    python -m laser search RUN                        # which interventions help, if any

Reading order: reduce (one matrix), interventions (in a model), shared_prefix (many edited models in
one pass); for saved runs output_cache, sweep, search.

Left out: reducing several layers' matrices as one tensor, interventions on embeddings and pooler,
keeping the smallest singular values instead of the largest."""

from laser.interventions import Intervention, apply, parse
from laser.reduce import Decomposition, low_rank
