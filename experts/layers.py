"""A feed-forward network as experts of equal size, of which each token runs some.

    FFN(x) = Σᵢ Eᵢ(x) + b₂        Eᵢ(x) = W₂[:, Sᵢ] · act(W₁[Sᵢ] x + b₁[Sᵢ])

Sᵢ are the neurons of expert i: rows i·n to (i+1)·n of W₁. A router predicts n̂ᵢ ≈ ‖Eᵢ(x)‖₂ for each
token x, and a rule chooses the experts by it. Experts that do not run add nothing; b₂ always stays.

Shapes: N tokens, H hidden size, E experts, n neurons of an expert.
"""

import torch.nn.functional as F
from torch import nn

from bert.errors import UserError
from experts.rules import NORMS, RULES

FEW = 128                  # tokens below which skipping does not pay


def skipping_pays(tokens, share, size):
    """Whether `skipping` is faster than `masked` on a CPU, as measured by benchmarks/experts.py
    --speed: with many tokens, few experts to run (`share`), and experts that are not too small."""
    return tokens >= FEW and share <= 0.8 * size / (size + 32)


def masked(ffn, hidden, mask):
    """All experts are computed, and those that `mask` [N, E] lacks are multiplied by 0."""
    activations = ffn.activation(ffn.fc_in(hidden))
    return ffn.fc_out(activations * mask.repeat_interleave(ffn.size, dim=1))


def skipping(ffn, hidden, mask):
    """Only the chosen experts are computed, each for its own tokens. mask [N, E] → [N, H]."""
    w_in, bias_in, w_out = ffn.fc_in.weight, ffn.fc_in.bias, ffn.fc_out.weight
    out = ffn.fc_out.bias.to(hidden.dtype).repeat(len(hidden), 1)
    rows = mask.T.nonzero()[:, 1].split(mask.sum(dim=0).tolist())        # E of [tokens]
    for expert, tokens in enumerate(rows):
        if len(tokens):
            part = slice(expert * ffn.size, (expert + 1) * ffn.size)
            own = F.linear(hidden.index_select(0, tokens), w_in[part], bias_in[part])
            out.index_add_(0, tokens, F.linear(ffn.activation(own), w_out[:, part]).to(out.dtype))
    return out


class ExpertFeedForward(nn.Module):
    """Takes the place of a FeedForward whose neurons lie sorted by expert, and uses its matrices.
    Without a `selection` it computes what the FeedForward does. `rows` and `runs` count tokens and
    executed experts since the selection was set."""

    def __init__(self, ffn, router, experts):
        super().__init__()
        self.fc_in, self.fc_out, self.activation = ffn.fc_in, ffn.fc_out, ffn.activation
        self.router, self.experts = router, experts
        self.size = ffn.fc_in.out_features // experts        # n
        self.selection, self.rows, self.runs = None, 0, 0

    def forward(self, hidden, layout):
        """hidden [N, H] → [N, H]"""
        chosen = self.selection
        if chosen is None or chosen.runs_all(self.experts):
            return self.fc_out(self.activation(self.fc_in(hidden, layout)), layout)
        mask = RULES[chosen.rule](NORMS[chosen.norms](self, hidden), chosen.tau)         # [N, E]
        runs = int(mask.sum())
        self.rows, self.runs = self.rows + len(hidden), self.runs + runs
        skip = chosen.execution == "skip" or chosen.execution == "auto" and skipping_pays(
            len(hidden), runs / mask.numel(), self.size)
        return (skipping if skip else masked)(self, hidden, mask)

    @property
    def dense_multiply_adds(self):
        return self.fc_in.weight.numel() + self.fc_out.weight.numel()

    @property
    def router_multiply_adds(self):
        return sum(weight.numel() for weight in self.router.parameters())

    def multiply_adds(self, adapter=None):
        """Of one token, the router included: the mean over what ran since the selection was set."""
        if self.selection is None or not self.rows:
            return self.dense_multiply_adds
        share = self.runs / (self.rows * self.experts)
        return self.router_multiply_adds + share * self.dense_multiply_adds


def expert_layers(bert):
    """The ExpertFeedForward of every layer. UserError if the model has none."""
    found = [layer.ffn for _, layer, _ in bert.walk() if isinstance(layer.ffn, ExpertFeedForward)]
    if not found:
        raise UserError("this run has no experts; make a run that has some: python -m experts "
                        "split RUN --out RUN2")
    return found


def select_experts(bert, selection):
    """Run the experts that `selection` chooses (None: all), and count from 0 again."""
    for ffn in expert_layers(bert):
        if selection and selection.rule == "top-k" and selection.tau > ffn.experts:
            raise UserError(f"--tau is {selection.tau:g}; each layer has {ffn.experts} experts")
        ffn.selection, ffn.rows, ffn.runs = selection, 0, 0


def ffn_share(bert):
    """Executed multiply-adds of the feed-forward networks, routers included, as a share of what all
    experts would need, since the selection was set."""
    layers = expert_layers(bert)
    dense = sum(ffn.rows * ffn.dense_multiply_adds for ffn in layers)
    return sum(ffn.rows * ffn.multiply_adds() for ffn in layers) / dense if dense else 1.0
