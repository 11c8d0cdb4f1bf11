"""Batches without padding: which cell of the [batch, tokens] grid each row of a matrix belongs to.
Half of a real batch is padding; all but attention works on one matrix of its N real tokens.

    layout = Layout(attention_mask)          # [batch, tokens] of 0/1
    grid = layout.pad(rows)                  # [N, …] → [batch, tokens, …], zeros at padding
    rows = layout.unpad(grid)                # and back

A selection is a layout of some of the rows: layout.cls_rows(), .select(mask), .keep(sequences)."""

from copy import copy
from itertools import groupby

import torch
import torch.nn.functional as F

from bert.errors import UserError
from bert.transfer import to_device

BUCKET_PAIRS = 4000      # one more grid takes as long as this many pairs of a query and a key


def check_shape(what, tensor, axes):
    """Raise UserError unless `tensor` is a tensor with these axes, such as "batch, tokens"."""
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{what} is a {type(tensor).__name__}; it must be a tensor [{axes}]")
    if tensor.dim() != axes.count(",") + 1:
        raise UserError(f"{what} has the shape {list(tensor.shape)}; it must be [{axes}]")


class Gather(torch.autograd.Function):
    """rows[cells], for cells of which only rows[cells][row_cells] = rows get a gradient: the others
    are copies that nobody reads. torch's own gradient would be a sum, one row after the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows, cells, row_cells):
        return rows.index_select(0, cells)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, *ctx.saved_tensors), None, None


class Layout:
    """N rows on a [batch, tokens] grid. Make it on the CPU: a mask on a GPU is waited for once, and
    each selection of its rows again.

    mask [batch, tokens]   True at real tokens; of a selection, on its own grid, where a row is
    flat_index [N]         each row's cell on the flattened grid
    positions [N]          each row's position in its sequence, from 0; a selection keeps them
    rows [M]               of a selection, whose N is M: its rows in its parent (None: no selection)
    no_padding             True if every cell has a row; in a DenseLayout padding has rows too
    cells [batch·tokens]   each cell's row; at padding, which attention ignores, any of its sequence
    length_buckets         selections of sequences of similar length, which attend apart, or []
    bucket_cells           of their grids, one after the other: each cell's row, each row's cell
    offsets [batch + 1]    int32, the first row of each sequence, then N; None in a DenseLayout
    min_rows               the fewest rows of a sequence, 0 only in a selection
    adapters, adapter_rows [(LoRA adapter or None, its sequences or rows), …]; or None
    products               {modules: a function that computes them together}, for one pass
    memory                 the KeptMemory of that pass, or None"""

    def __init__(self, mask, rows=None, positions=None):
        check_shape("attention_mask", mask, "batch, tokens")
        if rows is None and 0 in mask.shape:
            raise UserError(f"the batch is empty: attention_mask is {list(mask.shape)}")
        self.batch, self.tokens = mask.shape
        self.mask, self.rows = mask.bool(), rows
        self.adapters, self.adapter_rows, self.products, self.memory = None, None, {}, None
        self.biases, self.blocks = {}, {}                    # of attention, made for all layers
        self.flat_index, own_positions, self.offsets, self.min_rows = self._cells()
        self.positions = own_positions if positions is None else positions
        self.no_padding = self.flat_index.size(0) == mask.numel()
        self.cells = self._cell_rows()
        self.length_buckets, self.bucket_cells = [], None
        if rows is None:
            self._make_length_buckets()

    def _cells(self):
        """→ flat_index [N], positions [N], offsets [batch + 1] and min_rows, which are counted on
        the CPU; bert/packed_attention.py reads the last two on a GPU."""
        mask = self.mask.cpu()                               # the one wait, if this is a GPU's
        counts = mask.sum(dim=1)
        empty = (counts == 0).nonzero() if self.rows is None else ()
        if len(empty):
            raise UserError(f"attention_mask hides every token of sequence {empty[0].item()}")
        cells = mask.flatten().nonzero().squeeze(1)
        offsets = F.pad(counts.cumsum(0), (1, 0)).int()
        return *to_device([cells, cells % self.tokens, offsets], self.mask.device), int(
            counts.min())

    def __len__(self):
        return len(self.flat_index)

    def mean_length(self):
        """The mean length of the rows' sequences, in cells of the grids of attention."""
        grids = self.length_buckets or [self]
        return (sum(grid.batch * grid.tokens ** 2 for grid in grids)
                / sum(grid.batch * grid.tokens for grid in grids))

    @property
    def sequence(self):
        """[N] the number of each row's sequence; `keep` and buckets number theirs from 0 again."""
        return self.flat_index // self.tokens

    @property
    def key_mask(self):
        """[batch, 1, 1, tokens], True at real tokens; None if every cell holds one."""
        return None if self.no_padding else self.mask[:, None, None, :]

    def key_bias(self, dtype):
        """[batch, 1, 1, tokens], 0 at real tokens, else the least number; None as for key_mask."""
        kind = dtype, torch.is_grad_enabled()    # autograd takes none made in inference mode
        if self.key_mask is not None and kind not in self.biases:
            self.biases[kind] = torch.zeros_like(self.key_mask, dtype=dtype).masked_fill_(
                ~self.key_mask, torch.finfo(dtype).min)
        return self.biases.get(kind)

    def _cell_rows(self):
        """→ cells [batch·tokens]"""
        if self.no_padding:
            return self.flat_index
        counts = self.mask.cumsum(dim=1)                     # [batch, tokens] 1 at the first row
        before = counts[:, -1].cumsum(dim=0) - counts[:, -1]         # [batch] rows before
        cells = before[:, None] + (counts - 1).clamp(min=0)
        return cells.clamp(max=len(self) - 1).flatten()      # a selection's sequence may have none

    def _make_length_buckets(self):
        """Make a selection for each group of sequences of similar length, because attention costs
        the square of the grid's length; none if that saves little, and none on a GPU."""
        if self.no_padding or self.mask.device.type != "cpu":
            return
        lengths = (self.mask * torch.arange(1, self.tokens + 1)).amax(dim=1)
        order, cuts = lengths.argsort(descending=True, stable=True), [0]
        sorted_lengths = lengths[order].tolist()
        for place, length in enumerate(sorted_lengths):
            longest = sorted_lengths[cuts[-1]]
            saved = (longest ** 2 - length ** 2) * (self.batch - place)
            if length < 0.7 * longest and saved > BUCKET_PAIRS:      # 0.7² ≈ half
                cuts.append(place)
        if len(cuts) == 1:
            return
        self.length_buckets = list(map(self._of_sequences, order.tensor_split(cuts[1:])))
        cells = [bucket.rows[bucket.cells] for bucket in self.length_buckets]
        row_cells, before = torch.empty_like(self.flat_index), 0
        for bucket in self.length_buckets:
            row_cells[bucket.rows] = bucket.flat_index + before
            before += len(bucket.cells)
        self.bucket_cells = torch.cat(cells), row_cells

    def _of_sequences(self, sequences):
        """→ the selection of these sequences [k] on a grid of [k, longest of them]."""
        longest = 1 + int(self.mask[sequences].any(dim=0).nonzero().max())
        mask = self.mask[sequences, :longest]
        numbers = self.pad(torch.arange(len(self), device=mask.device))        # [batch, tokens]
        return self._selection(mask, numbers[sequences, :longest][mask])

    def _selection(self, mask, rows):
        return Layout(mask, rows, self.positions.index_select(0, rows))

    def to_grid(self, rows):
        """[N, …] → [batch, tokens, …] for attention, which neither reads padding nor sends it a
        gradient: other than by `pad` it holds copies of rows, not zeros."""
        if not self.no_padding:
            rows = Gather.apply(rows, self.cells, self.flat_index)
        return rows.view(self.batch, self.tokens, *rows.shape[1:])

    def to_grids(self, rows):
        """[N, …] → the same for each length bucket, or [to_grid(rows)]"""
        if not self.length_buckets:
            return [self.to_grid(rows)]
        grids = Gather.apply(rows, *self.bucket_cells).split([len(b.cells)
                                                              for b in self.length_buckets])
        return [grid.view(bucket.batch, bucket.tokens, *rows.shape[1:])
                for bucket, grid in zip(self.length_buckets, grids)]

    def from_grids(self, grids):
        """What to_grids makes → [N, …]"""
        if not self.length_buckets:
            return self.unpad(*grids)
        return torch.cat([grid.flatten(0, 1) for grid in grids]).index_select(
            0, self.bucket_cells[1])

    def pad(self, rows):
        """[N, …] → [batch, tokens, …]"""
        if not self.no_padding:
            grid = rows.new_zeros(self.batch * self.tokens, *rows.shape[1:])
            rows = grid.index_copy_(0, self.flat_index, rows)
        return rows.view(self.batch, self.tokens, *rows.shape[1:])

    def unpad(self, grid):
        """[batch, tokens, …] → [N, …]"""
        flat = grid.flatten(0, 1)
        return flat if self.no_padding else flat.index_select(0, self.flat_index)

    def select(self, mask):
        """→ the selection of the rows where `mask` is set, moved left on a narrower grid."""
        chosen = mask.bool() & self.mask                     # [batch, tokens]
        counts = chosen.sum(dim=1)                           # [batch]
        grid = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]
        rows = self.unpad(chosen).nonzero().squeeze(1)       # [M]
        return self._selection(grid, rows).with_adapters(self.adapters)

    def cls_rows(self):
        """→ the selection of [CLS], every sequence's first token."""
        return self.select(self.mask & (self.mask.cumsum(dim=1) == 1))

    def first_rows(self):
        """[batch] the row of every sequence's first token. A GPU is not waited for."""
        lengths = self.mask.sum(dim=1)
        return lengths.cumsum(dim=0) - lengths

    def keep(self, sequences):
        """→ the selection `kept` of the sequences with these numbers [k]. The remaining layers take
        hidden.index_select(0, kept.rows) and kept."""
        check_shape("sequences", sequences, "sequences")
        if sequences.dtype != torch.int64 or not len(sequences):
            raise UserError("sequences must hold the numbers (int64) of one or more sequences")
        kept, adapters = self._of_sequences(sequences), self.adapters
        kept._make_length_buckets()
        if adapters is not None:
            names = [name for name, count in adapters for _ in range(count)]
            runs = groupby(names[number] for number in sequences.tolist())
            adapters = [(name, len(list(run))) for name, run in runs]
        return kept.with_adapters(adapters)

    def with_adapters(self, adapters):
        """→ this layout with the LoRA adapters [(name or None, number of sequences), …] of its
        sequences in their order. Name several adapters only while the layout is on the CPU:
        counting rows synchronizes a GPU."""
        if adapters is None:
            return self
        total = sum(count for _, count in adapters)
        if total != self.batch:
            raise UserError(f"adapters {adapters} are for {total} of {self.batch} sequences")
        other = copy(self)
        other.adapters, other.adapter_rows = adapters, self._count_rows(adapters)
        return other

    def with_products(self, products, memory):
        """→ this layout for one pass, with bert.linear.products_for's products, in this memory"""
        other = copy(self)
        other.products, other.memory = products, memory
        return other

    def _count_rows(self, adapters):
        if len(adapters) == 1:
            return [(adapters[0][0], len(self))]
        lengths = self.mask.sum(dim=1).split([count for _, count in adapters])
        return [(name, int(rows.sum())) for (name, _), rows in zip(adapters, lengths)]

    def to(self, device):
        """→ the same on another device, by one copy."""
        return to_device([self], device)[0]

    def tensors(self):
        """{attribute: tensor}"""
        return {name: value for name, value in vars(self).items()
                if isinstance(value, torch.Tensor)}

    def with_tensors(self, tensors):
        """→ this layout with these tensors {attribute: tensor}, which may be on a GPU."""
        other = copy(self)
        vars(other).update(tensors, biases={}, blocks={})
        other.length_buckets = self.length_buckets if other.mask.device.type == "cpu" else []
        return other
