"""Which experts a token runs, by norms n̂ [N, E] that a router predicts for N tokens."""

from dataclasses import dataclass

import torch

from bert.errors import UserError, check_known

SOURCES = ("router", "oracle", "random")                     # of norms: predicted, true, random


def max_rule(norms, tau):
    """Run i iff n̂ᵢ ≥ (1 − τ)·max n̂. norms [N, E] → [N, E] bool. An expert of norm 0 adds nothing
    and does not run, but one always does: of a row of zeros the first."""
    if tau >= 1:
        return torch.ones_like(norms, dtype=torch.bool)
    largest, first = norms.max(dim=1, keepdim=True)
    mask = (norms >= (1 - tau) * largest) & (norms > 0)
    return mask.scatter(1, first, True)


def cumulative_rule(norms, tau):
    """Run the fewest experts, largest first, whose shares n̂ᵢ/Σn̂ add up to τ; always one. τ ≥ 1
    runs all by definition: in float32 the sum of all shares can exceed 1 before the last."""
    if tau >= 1:
        return torch.ones_like(norms, dtype=torch.bool)
    ordered, order = norms.sort(dim=1, descending=True, stable=True)
    shares = ordered / ordered.sum(dim=1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
    before = shares.cumsum(dim=1) - shares                   # the sum of the larger ones
    chosen = (before < tau) & (shares > 0)
    chosen[:, 0] = True
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def top_k_rule(norms, k):
    """Run the k experts of the largest norm, for every token the same number (MoEfication)."""
    order = norms.topk(int(k), dim=1).indices
    return torch.zeros_like(norms, dtype=torch.bool).scatter(1, order, True)


RULES = {"max": max_rule, "cumulative": cumulative_rule, "top-k": top_k_rule}


@dataclass(frozen=True)
class Selection:
    """Which experts run: a rule of RULES with its τ (top-k: k), by norms of one of SOURCES.
    `execution`: "skip" computes only the chosen experts, "masked" computes all and drops the
    others, with the same result, "auto" takes what is faster (docs/experts.md)."""

    rule: str = "max"
    tau: float = 1.0
    norms: str = "router"
    execution: str = "auto"

    def __post_init__(self):
        check_known(self.rule, RULES, "rule", where="--rule")
        check_known(self.norms, SOURCES, "source of norms")
        if self.rule == "top-k" and not (self.tau >= 1 and float(self.tau).is_integer()):
            raise UserError(f"--tau is {self.tau:g}; with --rule top-k it is the number of experts "
                            f"that each token runs, 1 or more")
        if self.rule != "top-k" and not 0 <= self.tau <= 1:
            raise UserError(f"--tau is {self.tau:g}; with --rule {self.rule} it is a number from 0 "
                            f"(few experts) to 1 (all)")

    def runs_all(self, experts):
        return self.tau >= (experts if self.rule == "top-k" else 1)
