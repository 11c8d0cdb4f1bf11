"""Which experts a token runs: norms n̂ [N, E] of the experts' outputs for N tokens, and rules."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bert.errors import UserError, check_known


def expert_norms(ffn, hidden):
    """The true ‖Eᵢ(x)‖₂, without b₂: [N, H] → [N, E]."""
    activations = ffn.activation(ffn.fc_in(hidden)).split(ffn.size, dim=1)
    weights = ffn.fc_out.weight.split(ffn.size, dim=1)       # E of [H, n]
    return torch.stack([F.linear(a, w).float().norm(dim=1)
                        for a, w in zip(activations, weights)], dim=1)


NORMS = {                                                    # predicted, true, a bound from below
    "router": lambda ffn, hidden: ffn.router(hidden).float(),
    "oracle": expert_norms,
    "random": lambda ffn, hidden: torch.rand(len(hidden), ffn.experts, device=hidden.device),
}


def max_rule(norms, tau):
    """Run i iff n̂ᵢ ≥ (1 − τ)·max n̂. norms [N, E] → [N, E] bool. An expert of norm 0 adds nothing
    and does not run where τ < 1, but one always does: of a row of zeros the first."""
    largest, first = norms.max(dim=1, keepdim=True)
    mask = (norms >= (1 - tau) * largest) & (norms > 0) | (tau >= 1)
    return mask.scatter(1, first, True)


def cumulative_rule(norms, tau):
    """Run the fewest experts, largest first, whose shares n̂ᵢ/Σn̂ add up to τ; always one. τ ≥ 1
    runs all by definition: in float32 the sum of all shares can exceed 1 before the last."""
    ordered, order = norms.sort(dim=1, descending=True, stable=True)
    shares = ordered / ordered.sum(dim=1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
    before = shares.cumsum(dim=1) - shares                   # the sum of the larger ones
    chosen = (before < tau) & (shares > 0) | (tau >= 1)
    chosen[:, 0] = True
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def top_k_rule(norms, k):
    """Run the k experts of the largest norm, for every token the same number (MoEfication)."""
    order = norms.topk(int(k), dim=1).indices
    return torch.zeros_like(norms, dtype=torch.bool).scatter(1, order, True)


RULES = {"max": max_rule, "cumulative": cumulative_rule, "top-k": top_k_rule}


@dataclass(frozen=True)
class Selection:
    """Which experts run: a rule of RULES with its τ (top-k: k), by one of NORMS.
    `execution`: "skip" computes only the chosen experts, "masked" computes all and drops the
    others, with the same result, "auto" takes what is faster (docs/experts.md)."""

    rule: str = "max"
    tau: float = 1.0
    norms: str = "router"
    execution: str = "auto"

    def __post_init__(self):
        check_known(self.rule, RULES, "rule", where="--rule")
        check_known(self.norms, NORMS, "source of norms", where="--norms")
        valid, what = 0 <= self.tau <= 1, "from 0 (few experts) to 1 (all)"
        if self.rule == "top-k":
            valid, what = self.tau >= 1 and not self.tau % 1, "the number of experts of each token"
        if not valid:
            raise UserError(f"--tau is {self.tau:g}; with --rule {self.rule} it is {what}")

    def runs_all(self, experts):
        return self.tau >= (experts if self.rule == "top-k" else 1)
