"""Which examples come next: shuffled passes over a task's examples, endless and resumable."""

import torch


class Batches:
    """Lists of indices, `size` at a time; every pass over the n examples has an order of its own,
    which (seed, pass number) fixes. So two integers are all the state there is."""

    def __init__(self, n, size, seed):
        self.n, self.size, self.seed = n, size, seed
        self.passes, self.position = 0, 0
        self.order = self._shuffle()

    def _shuffle(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.passes)
        return torch.randperm(self.n, generator=generator).tolist()

    def __len__(self):
        """Batches in one pass."""
        return -(-self.n // self.size)

    def __next__(self):
        if self.position >= self.n:
            self.passes, self.position = self.passes + 1, 0
            self.order = self._shuffle()
        indices = self.order[self.position:self.position + self.size]
        self.position += self.size
        return indices

    def state_dict(self):
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, state):
        self.passes, self.position = state["passes"], state["position"]
        self.order = self._shuffle()
