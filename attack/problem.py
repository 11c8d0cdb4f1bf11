"""A batch of examples under attack: its words that may change, and what may take their place."""

from typing import NamedTuple

import torch

from bert.layout import Layout


class Problem(NamedTuple):
    """b examples, S sequences (b, or 2b for pairs encoded separately), M words that may change, K
    candidates for each. `numbers` and `positions` are those in the whole batch, of which keep()
    selects."""

    batch: NamedTuple                # input_ids [S, T], token_type_ids, layout, cls_rows, labels
    labels: torch.Tensor             # [b]
    numbers: torch.Tensor            # [b]
    sequences: torch.Tensor          # [S] in the whole batch
    positions: torch.Tensor          # [M]
    example: torch.Tensor            # [M] which of the b examples
    row: torch.Tensor                # [M] of the grid [S, T]
    column: torch.Tensor             # [M]
    candidates: torch.Tensor         # [M, K] ids; the first one is the word that stands there
    budget: torch.Tensor             # [b] how many words may change

    def one_hot(self, chosen):
        """[M] numbers of candidates → probabilities [M, K]"""
        return torch.nn.functional.one_hot(chosen, self.candidates.size(1)).float()

    def total(self, values):
        """Sum values [M] over the words of each example → [b]"""
        return values.new_zeros(len(self.labels)).index_add_(0, self.example, values)

    def embed(self, embeddings, probabilities, ids=None):
        """→ [S, T, H]: the embeddings [V, H] of the batch, P·E at the words that may change."""
        ids = self.batch.input_ids if ids is None else ids
        soft = (probabilities[:, None] @ embeddings[self.candidates]).squeeze(1)       # [M, H]
        return embeddings[ids].index_put((self.row, self.column), soft)

    def top_positions(self, scores):
        """scores [M] → [b]: the word with the highest score of each example."""
        return torch.stack([scores.masked_fill(self.example != n, -torch.inf).argmax()
                            for n in range(len(self.labels))])

    def within_budget(self, chosen, order):
        """Set words back to what stood there, those with the lowest `order` [M] first, so that no
        example changes more than its budget."""
        chosen = chosen.clone()
        for n, budget in enumerate(self.budget.tolist()):
            changed = ((self.example == n) & (chosen > 0)).nonzero().squeeze(1)
            chosen[changed[order[changed].argsort(descending=True)[budget:]]] = 0
        return chosen

    def keep(self, stay):
        """→ the problem of the examples where `stay` [b] is True, and which words it has [M]."""
        examples = stay.nonzero().squeeze(1)
        segments = len(self.sequences) // len(self.labels)
        rows = torch.cat([examples + len(self.labels) * n for n in range(segments)])
        mask = self.batch.layout.mask[rows].cpu()
        mask = mask[:, :1 + int(mask.any(dim=0).nonzero().max())]
        layout, device = Layout(mask), rows.device
        batch = self.batch._replace(
            input_ids=self.batch.input_ids[rows, :mask.size(1)],
            token_type_ids=self.batch.token_type_ids[rows, :mask.size(1)],
            layout=layout.to(device), cls_rows=layout.cls_rows().to(device))
        words = stay[self.example]
        new_example = (stay.cumsum(0) - 1)[self.example[words]]
        segment = self.row[words] // len(self.labels)
        return Problem(batch, self.labels[examples], self.numbers[examples], self.sequences[rows],
                       self.positions[words], new_example, new_example + segment * len(examples),
                       self.column[words], self.candidates[words], self.budget[examples]), words
