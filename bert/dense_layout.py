"""A layout of fixed shapes, for export and compilation (docs/export.md)."""

import torch

from bert.errors import UserError
from bert.layout import Layout


class DenseLayout(Layout):
    """A layout with a row for every cell, N = batch · tokens: all shapes follow from the mask's, so
    graphs can be exported and compiled (docs/export.md). `pad` and `unpad` set padding to zero."""

    def _cells(self):
        cells, positions = (torch.arange(count, device=self.mask.device)
                            for count in (self.mask.numel(), self.tokens))
        return cells, positions.repeat(self.batch), None, 0  # offsets: padding has rows too

    @property
    def key_mask(self):
        """A sequence without any token attends to padding: softmax over nothing is NaN."""
        return (self.mask | ~self.mask.any(dim=1, keepdim=True))[:, None, None, :]

    def pad(self, rows):
        return self._without_padding(rows.unflatten(0, (self.batch, self.tokens)))

    def unpad(self, grid):
        return self._without_padding(grid).flatten(0, 1)

    def _without_padding(self, grid):
        padding = ~self.mask.view(*self.mask.shape, *[1] * (grid.dim() - 2))
        return grid.masked_fill(padding, 0)

    def to_grid(self, rows):
        return self.pad(rows)

    def cls_rows(self):
        rows, ones = self.first_rows(), torch.ones_like(self.mask[:, :1])
        return DenseLayout(ones, rows, rows % self.tokens).with_adapters(self.adapters)

    def first_rows(self):
        column = self.mask.int().argmax(dim=1)               # [batch]
        return torch.arange(self.batch, device=column.device) * self.tokens + column

    def keep(self, sequences):
        raise UserError("a DenseLayout cannot drop sequences: its shapes are fixed; use a Layout")

    def _count_rows(self, adapters):
        return [(name, count * self.tokens) for name, count in adapters]
