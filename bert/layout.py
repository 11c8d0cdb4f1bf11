"""Padding-free batches: where the rows of a [real tokens, hidden] matrix lie on the [batch, tokens]
grid.

About half of a batch of real sentences is padding. Linear layers, LayerNorms and GELUs treat each
token alone, so they see one matrix of real tokens; only attention, where the tokens of a sequence
meet, puts them back on the grid:

    layout = Layout(attention_mask)          # [batch, tokens] of 0/1
    grid = layout.pad(rows)                  # [N, …] → [batch, tokens, …], zeros where no token is
    rows = layout.unpad(grid)                # and back

DenseLayout has the same interface, with a row for every cell of the grid (docs/export.md).
"""

import torch

from bert.errors import UserError


def check_shape(what, tensor, axes):
    """UserError unless `tensor` is a tensor with these axes, such as "batch, tokens"."""
    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"{what} is a {type(tensor).__name__}; it must be a tensor [{axes}]")
    if tensor.dim() != axes.count(",") + 1:
        raise UserError(f"{what} has the shape {list(tensor.shape)}; it must be [{axes}]")


class Layout:
    """How the N rows of a batch lie: `cell` [N] is each row's cell on the flattened grid, `visible`
    [batch, 1, 1, tokens] says where a token is (None: everywhere), `groups` see below. Best made on
    the CPU and then moved with `.to(device)`, because counting real tokens would make a GPU
    wait."""

    def __init__(self, mask, rows=None):
        self._set_mask(mask, rows)
        self.flat_index = self.mask.flatten().nonzero().squeeze(1)             # [N]
        self.no_padding = len(self.flat_index) == mask.numel()
        if rows is None and not self.mask.any(dim=1).all():
            empty = (~self.mask.any(dim=1)).nonzero()[0].item()
            raise UserError(f"attention_mask hides every token of sequence {empty}; it must keep "
                            "one")
        self.length_buckets = self._length_buckets() if rows is None and mask.device.type == "cpu" else []

    def _set_mask(self, mask, rows):
        """What both kinds of layout have. UserError where the mask has the wrong shape."""
        check_shape("attention_mask", mask, "batch, tokens")
        if rows is None and 0 in mask.shape:
            raise UserError(f"the batch is empty: attention_mask is {list(mask.shape)}, which is "
                            f"[batch, tokens]; give at least one sequence of one token")
        self.batch, self.tokens = mask.shape
        self.mask = mask.bool()                              # [batch, tokens]
        self.rows = rows                               # of a selection: its rows among its parent's
        self.adapters = self.served = None             # see served_by

    def __len__(self):
        return len(self.flat_index)

    @property
    def key_mask(self):
        return None if self.no_padding else self.mask[:, None, None, :]

    @property
    def sequence(self):
        """[N] the number of the sequence that each row belongs to."""
        return self.flat_index // self.tokens

    @property
    def position(self):
        """[N] each row's place in its sequence, counted from 0."""
        return self.flat_index % self.tokens

    def _length_buckets(self):
        """→ selections of sequences of like length, for a grid each: on one grid every sequence
        costs the square of the longest. Empty where one grid is as good."""
        numbers = torch.zeros_like(self.mask, dtype=torch.long)
        numbers[self.mask] = torch.arange(len(self))
        lengths = (self.mask * torch.arange(1, self.tokens + 1)).amax(dim=1)
        order, cuts = lengths.argsort(descending=True, stable=True), [0]
        sorted_lengths = lengths[order].tolist()
        for place, length in enumerate(sorted_lengths):
            if length < 0.7 * sorted_lengths[cuts[-1]] and sorted_lengths[cuts[-1]] > 16:      # 0.7² is half
                cuts.append(place)
        if cuts == [0]:
            return []
        grids = [(chosen, self.mask[chosen, :lengths[chosen[0]]])
                 for chosen in order.tensor_split(cuts[1:])]
        return [Layout(mask, rows=numbers[chosen, :mask.size(1)][mask]) for chosen, mask in grids]

    def join(self, parts):
        """One matrix for each of my groups → one of all my rows, in their order."""
        rows = torch.cat([group.rows for group in self.length_buckets])
        return torch.cat(parts).index_select(0, rows.argsort())

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
        """The layout of those of my rows where `mask` [batch, tokens] is set; its `.rows` [M] says
        which of my N rows they are. A layer that is told of a selection computes nothing else."""
        chosen = mask.bool() & self.mask
        counts = chosen.sum(dim=1)
        packed = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]
        selection = Layout(packed, rows=chosen.flatten()[self.flat_index].nonzero().squeeze(1))
        return selection if self.adapters is None else selection.with_adapters(self.adapters)

    def cls_rows(self):
        """The selection of every sequence's first token, [CLS]."""
        return self.select(self.mask & (self.mask.cumsum(dim=1) == 1))

    def with_adapters(self, adapters):
        """The same layout, which also knows what adapter (lora/) serves which sequence: `adapters`
        is [(name, number of sequences), …] in the order of the sequences, None naming no adapter.
        `served` is then the same in rows. More than one are counted: do that on the CPU."""
        if sum(count for _, count in adapters) != self.batch:
            raise UserError(f"adapters {adapters} serve {sum(count for _, count in adapters)} "
                            f"sequences; the batch has {self.batch}")
        other = self._map(lambda tensor: tensor)
        other.adapters, other.served = adapters, self._count_rows(adapters)
        return other

    def _count_rows(self, adapters):
        """[(name, number of sequences), …] → [(name, number of rows), …]"""
        if len(adapters) == 1:
            return [(adapters[0][0], len(self))]
        lengths = self.mask.sum(dim=1).split([count for _, count in adapters])
        return [(name, int(rows.sum())) for (name, _), rows in zip(adapters, lengths)]

    def pin_memory(self):
        return self._map(torch.Tensor.pin_memory)

    def to(self, device, non_blocking=False):
        """The same layout on another device. A GPU would rather have one large grid than groups."""
        other = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        other.length_buckets = self.length_buckets if other.mask.device.type == "cpu" else []
        return other

    def _map(self, function):
        other = object.__new__(type(self))
        vars(other).update({name: function(value) if isinstance(value, torch.Tensor) else value
                            for name, value in vars(self).items()})
        return other


class DenseLayout(Layout):
    """A layout whose rows are all cells of the grid, padding included: N = batch · tokens. All
    shapes follow from the mask's shape, never from its values, so that graphs can be exported and
    compiled with it. `pad` and `unpad` set padding to zero. A sequence without any token is
    allowed, and its states are zero."""

    def __init__(self, mask, rows=None):
        self._set_mask(mask, rows)
        self.flat_index = torch.arange(self.batch * self.tokens, device=mask.device)
        self.no_padding, self.length_buckets = False, []

    @property
    def key_mask(self):
        """Without any token to attend to softmax is NaN: such a sequence attends to its padding."""
        return (self.mask | ~self.mask.any(dim=1, keepdim=True))[:, None, None, :]

    @property
    def sequence(self):
        return torch.arange(self.batch, device=self.mask.device).repeat_interleave(self.tokens)

    @property
    def position(self):
        return torch.arange(self.tokens, device=self.mask.device).repeat(self.batch)

    def pad(self, rows):
        return self._without_padding(rows.unflatten(0, (self.batch, self.tokens)))

    def unpad(self, grid):
        return self._without_padding(grid).flatten(0, 1)

    def _without_padding(self, grid):
        padding = ~self.mask.view(*self.mask.shape, *[1] * (grid.dim() - 2))
        return grid.masked_fill(padding, 0)

    def cls_rows(self):
        column = self.mask.int().argmax(dim=1)               # [batch]
        rows = torch.arange(self.batch, device=column.device) * self.tokens + column
        selection = DenseLayout(torch.ones_like(self.mask[:, :1]), rows)
        return selection if self.adapters is None else selection.with_adapters(self.adapters)

    def _count_rows(self, adapters):
        return [(name, count * self.tokens) for name, count in adapters]
