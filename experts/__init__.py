"""Feed-forward networks as mixtures of experts, of which each token runs only those that matter:
DSTI, later D2DMoE (arXiv 2310.04361).

    FFN(x) = Σᵢ Eᵢ(x) + b₂        run Eᵢ for this token iff n̂ᵢ ≥ (1 − τ)·maxⱼ n̂ⱼ,  n̂ ≈ ‖E(x)‖₂

    split(bert, experts=16)                          # permutes neurons; outputs stay as they were
    fit_routers(bert, ffn_inputs(bert, batches, model_forward))          # n̂, by regression
    select_experts(bert, Selection("max", tau=0.9))                      # None: all experts

Most activations must be zero first: replace GELU by ReLU and train with a penalty on activations
(experts/sparsity.py). `python -m experts` does all of it for a saved run.

Left out: query, key, value and output matrices as experts (the later paper's second part).
"""

from experts.layers import ExpertFeedForward, ffn_share, select_experts
from experts.rules import NORMS, RULES, Selection
from experts.sparsity import PENALTIES, Recorder, Sparsity, to_relu
from experts.split import Router, balanced_clusters, ffn_inputs, fit_routers, router_width, split
