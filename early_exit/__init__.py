"""Stop early: exits between the layers, and the depth at which an encoder is cut.

Zero Time Waste (Wołczyk et al. 2021, arXiv 2106.05409): on a frozen, fine-tuned encoder a
classifier after every layer reads its states and the classifier before; a learned mean of all
classifiers so far answers as soon as it is confident.

    q_m ∝ exp(1/(m+1) Σ_{j=0…m} exp(w_mj) log p_j + b_m)      leave at the first m of max q_m > θ

    model.early_exit = EarlyExit(threshold=0.9)       # `model.encoder(task).exits` are Exits
    outputs = model(task, batch)

NetCut (Struski et al. 2020, arXiv 2004.08172): encoder, a head for every layer and the heads'
weights α are trained together; then the encoder is cut at the head of the largest α.

    L = -Σ_k α_k log p_k(y) + β Σ_k k·α_k             α = softmax(w)

Left out: exits for regressions, exits that are trained together with the encoder, patience.
"""

from early_exit.exits import ENSEMBLES, Exits, as_outputs, log_probabilities
from early_exit.leaving import EarlyExit, exit_layers, layer_states
from early_exit.netcut import DepthHeads, netcut_loss
