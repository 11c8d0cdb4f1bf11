"""Which tasks a step trains, and which of their examples come next. Both follow from the seed and
the number of the step or pass alone, so that a resumed run draws the same."""

import torch


class BatchSampler:
    """Shuffled passes over n examples, as lists of `size` indices. (seed, pass number) fixes the
    order of a pass, so two integers are the whole state."""

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


# A sampler: (sizes {task: examples}, step from 1, epoch from 1, epochs, settings) → [task, …]

def every_task(sizes, step, epoch, epochs, settings):
    """One batch of every task; the shorter data sets are cycled ("stretched")."""
    return list(sizes)


def round_robin(sizes, step, epoch, epochs, settings):
    """One task after the other."""
    return [list(sizes)[(step - 1) % len(sizes)]]


def proportional(sizes, step, epoch, epochs, settings):
    """One task, p ∝ N, its number of examples."""
    return draw(sizes, 1.0, settings.seed, step)


def annealed(sizes, step, epoch, epochs, settings):
    """One task, p ∝ N^α with α = 1 − c·(e − 1)/(E − 1) in epoch e of E: by size at first, more
    evenly towards the end (Stickland & Murray 2019, section 4.1)."""
    return draw(sizes, annealing_exponent(epoch, epochs, settings.annealing), settings.seed, step)


def annealing_exponent(epoch, epochs, c):
    """α of this epoch, 1 … epochs; 1 where there is only one."""
    return 1.0 if epochs == 1 else 1.0 - c * (epoch - 1) / (epochs - 1)


def draw(sizes, alpha, seed, step):
    weights = torch.tensor(list(sizes.values()), dtype=torch.float64) ** alpha
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return [list(sizes)[torch.multinomial(weights, 1, generator=generator).item()]]


SAMPLERS = {"all": every_task, "round-robin": round_robin, "proportional": proportional,
            "annealed": annealed}


def steps_in_epoch(batches, sampling):
    """batches {task: batches in a pass} → steps of an epoch: one full pass over the longest task if
    the sampler gives all tasks equally many batches, or else the batches of all tasks together."""
    if sampling in ("all", "round-robin"):
        return max(batches.values()) * (len(batches) if sampling == "round-robin" else 1)
    return sum(batches.values())
