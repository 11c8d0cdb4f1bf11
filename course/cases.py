"""Fresh inputs for each exercise: several shapes, and edges. Expected results are computed by the
project's own functions.

Kinds: "forward" (results), "gradient" (float64, results and gradients of the inputs), "edge".
"""

import random
from typing import NamedTuple

import torch

from course.drivers import run_case


class Case(NamedTuple):
    kind: str
    title: str
    tensors: dict = {}
    options: dict = {}


class Draw:
    """Random tensors from one seed."""

    def __init__(self, seed):
        self.python = random.Random(seed)
        self.torch = torch.Generator().manual_seed(self.python.getrandbits(40))

    def normal(self, *shape, double=False):
        return torch.randn(shape, generator=self.torch, dtype=torch.float64 if double else None)

    def ids(self, *shape, below=50):
        return torch.randint(below, shape, generator=self.torch)

    def size(self, low, high):
        return self.python.randint(low, high)

    def seed(self):
        return self.python.getrandbits(30)

    def mask(self, batch, tokens):
        """[batch, tokens] with sequences of random lengths, one of them whole."""
        lengths = [tokens, *(self.size(1, tokens) for _ in range(batch - 1))]
        return (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def attention(draw):
    def given(batch, heads, queries, keys, size, double=False):
        return {"query": draw.normal(batch, heads, queries, size, double=double),
                "key": draw.normal(batch, heads, keys, size, double=double),
                "value": draw.normal(batch, heads, keys, size, double=double)}

    batch, tokens, size = draw.size(2, 4), draw.size(5, 9), draw.size(3, 8)
    key_mask = draw.mask(batch, tokens).bool()[:, None, None, :]
    one = torch.zeros(2, 1, 1, 6, dtype=torch.bool)
    one[0, ..., draw.size(0, 5)] = one[1, ..., draw.size(0, 5)] = True
    yield Case("forward", "no mask", given(2, 3, tokens, tokens, size))
    yield Case("forward", "padding", given(batch, 2, tokens, tokens, size) | {"key_mask": key_mask})
    yield Case("forward", "fewer queries than keys", given(batch, 2, tokens - 2, tokens, size))
    yield Case("gradient", "gradients", given(batch, 2, tokens, tokens, size, True))
    yield Case("gradient", "gradients beside padding",
               given(batch, 2, 3, tokens, size, True) | {"key_mask": key_mask})
    yield Case("edge", "one token", given(2, 2, 1, 1, size))
    yield Case("edge", "all keys but one are masked", given(2, 2, 4, 6, size) | {"key_mask": one})
    yield Case("edge", "equal scores", given(2, 2, 4, 6, size) | {"key": torch.ones(2, 2, 6, size)})
    yield Case("edge", "large scores",
               {name: 40 * t for name, t in given(2, 2, 4, 6, size).items()})
    yield Case("edge", "dropout drops everything", given(2, 2, 4, 6, size), {"dropout": 1.0})


def add_and_norm(draw):
    def given(mask, double=False):
        rows = int(mask.sum())
        return {"hidden": 3 + 2 * draw.normal(rows, 12, double=double),
                "ffn_output": draw.normal(rows, 12, double=double), "mask": mask}

    def options(train=False):
        return {"seed": draw.seed(), "train": train}

    for batch in (2, draw.size(3, 5)):
        yield Case("forward", f"{batch} sequences", given(draw.mask(batch, 7)), options())
    yield Case("gradient", "gradients", given(draw.mask(3, 6), True), options())
    yield Case("edge", "one token", given(torch.ones(1, 1).long()), options())
    yield Case("edge", "dropout drops everything in training", given(draw.mask(2, 5)),
               options(train=True))


def ffn(draw):
    for rows in (draw.size(2, 5), draw.size(6, 20)):
        yield Case("forward", f"{rows} rows", {"hidden": draw.normal(rows, 12)},
                   {"seed": draw.seed()})
    yield Case("gradient", "gradients", {"hidden": draw.normal(7, 12, double=True)},
               {"seed": draw.seed()})
    yield Case("edge", "one row", {"hidden": draw.normal(1, 12)}, {"seed": draw.seed()})
    yield Case("edge", "another activation", {"hidden": draw.normal(4, 12)},
               {"seed": draw.seed(), "activation": "relu"})


def embeddings(draw):
    def given(batch, tokens, types=True):
        found = {"mask": draw.mask(batch, tokens), "input_ids": draw.ids(batch, tokens)}
        return found | ({"token_type_ids": draw.ids(batch, tokens, below=2)} if types else {})

    for batch in (2, draw.size(3, 5)):
        yield Case("forward", f"{batch} sequences", given(batch, draw.size(5, 9)),
                   {"seed": draw.seed()})
    yield Case("gradient", "gradients of inputs_embeds",
               {"mask": draw.mask(3, 6), "inputs_embeds": draw.normal(3, 6, 12, double=True),
                "token_type_ids": draw.ids(3, 6, below=2)}, {"seed": draw.seed()})
    yield Case("edge", "one token", given(1, 1), {"seed": draw.seed()})
    yield Case("edge", "no token types", given(3, 5, types=False), {"seed": draw.seed()})
    yield Case("edge", "dropout drops everything in training", given(2, 5),
               {"seed": draw.seed(), "train": True})


def adamw(draw):
    def given(*shape, double=False):
        names = ("weight", "gradient", "first", "second")
        found = {name: draw.normal(*shape, double=double) for name in names}
        return found | {"second": found["second"].square()}

    for shape in ((5,), (draw.size(2, 6), draw.size(2, 6))):
        for step in (1, draw.size(2, 20)):
            yield Case("forward", f"step {step}", given(*shape), {"step": step, "lr": 0.1})
    yield Case("gradient", "gradients", given(3, 4, double=True), {"step": 3, "lr": 0.1})
    zeros = {name: torch.zeros(4) for name in ("gradient", "first", "second")}
    yield Case("edge", "the gradient is zero", {"weight": draw.normal(4)} | zeros,
               {"step": 1, "lr": 0.1, "weight_decay": 0.5})
    yield Case("edge", "no weight decay", given(3), {"step": 2, "lr": 0.1, "weight_decay": 0.0})
    yield Case("edge", "other betas and a large eps", given(6),
               {"step": 4, "lr": 0.1, "betas": [0.5, 0.7], "eps": 0.3})


def masking(draw):
    words = [f"word{n}" for n in range(30)] + [f"##piece{n}" for n in range(30)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special[:2], *words[:20], *special[2:], *words[20:]]      # not only the first

    def ids(*tokens):
        return {"ids": torch.tensor([vocabulary.index(token) for token in tokens])}

    def sentences(count):
        pick = draw.python.choice
        return [token for _ in range(count) for token in
                ("[CLS]", *(token for _ in range(6) for token in (
                    pick(words[:30]), *([pick(words[30:])] * draw.size(0, 2)))), "[SEP]")]

    def options(whole_word=False):
        return {"vocabulary": vocabulary, "whole_word": whole_word, "seed": draw.seed()}

    yield Case("forward", "many tokens", ids(*sentences(700)), options())
    yield Case("forward", "many tokens, whole words", ids(*sentences(700)), options(True))
    yield Case("edge", "three tokens", ids("[CLS]", "word3", "word5", "word4", "[SEP]"), options())
    yield Case("edge", "one token", ids("word1"), options())
    yield Case("edge", "one token beside special ones", ids("[CLS]", "word1", "[SEP]"), options())
    yield Case("edge", "special tokens only", ids("[CLS]", "[SEP]"), options())
    yield Case("edge", "one word of three pieces",
               ids("[CLS]", "word1", "##piece1", "##piece1", "[SEP]"), options(True))
    yield Case("edge", "eleven tokens", ids(*words[:11]), options())         # 1.65 are two


def lora(draw):
    def given(rows, out, width, rank, double=False):
        shapes = {"rows": (rows, width), "out": (rows, out), "weight": (out, width),
                  "a": (rank, width), "b": (out, rank)}
        return {name: draw.normal(*shape, double=double) for name, shape in shapes.items()}

    for rank in (2, 3):
        yield Case("forward", f"rank {rank}",
                   given(draw.size(3, 8), draw.size(4, 9), draw.size(4, 9), rank), {"alpha": 7})
    yield Case("gradient", "gradients", given(4, 5, 6, 3, True), {"alpha": 8})
    yield Case("edge", "one row, rank 1", given(1, 5, 3, 1), {"alpha": 3})
    yield Case("edge", "B is zero, as at the start",
               given(3, 5, 4, 2) | {"b": torch.zeros(5, 2)}, {"alpha": 4})
    yield Case("edge", "dropout drops everything in training", given(3, 5, 4, 2),
               {"alpha": 4, "train": True})


def low_rank(draw):
    for shape in ((draw.size(6, 9), draw.size(3, 5)), (draw.size(3, 5), draw.size(6, 9))):
        yield Case("forward", f"a {shape[0]} × {shape[1]} matrix", {"weight": draw.normal(*shape)},
                   {"ranks": [1, 2, 3]})
    yield Case("forward", "float64", {"weight": draw.normal(5, 6, double=True)}, {"ranks": [2, 4]})
    yield Case("edge", "full rank", {"weight": draw.normal(4, 6)}, {"ranks": [4]})
    yield Case("edge", "one column", {"weight": draw.normal(4, 1)}, {"ranks": [1]})
    product = draw.normal(5, 2) @ draw.normal(2, 6)
    yield Case("edge", "a matrix of rank 2", {"weight": product}, {"ranks": [1, 2]})


def pcgrad(draw):
    def given(tasks, shapes, opposed=True):
        found = {f"{i}.{n}": draw.normal(*shape, double=True) for i in range(tasks)
                 for n, shape in enumerate(shapes)}
        for n in range(len(shapes)) if opposed else ():      # so that each case has conflicts
            found[f"1.{n}"] = 0.3 * found[f"1.{n}"] - 0.8 * found[f"0.{n}"]
        return found

    def options(tasks, tensors, **more):
        others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
        for order in others:
            draw.python.shuffle(order)
        return {"orders": others, "tensors": tensors, **more}

    for tasks in (2, 3, 4):
        yield Case("forward", f"{tasks} tasks", given(tasks, [(3, 4), (5,)]), options(tasks, 2))
    yield Case("forward", "each tensor by itself", given(3, [(3, 4), (5,)]),
               options(3, 2, per_tensor=True))
    yield Case("edge", "one task", given(1, [(4,)], opposed=False), options(1, 1))
    away = draw.normal(6, double=True)
    yield Case("edge", "opposite gradients", {"0.0": away, "1.0": -2 * away}, options(2, 1))
    yield Case("edge", "a gradient is zero", given(3, [(4,)]) | {"2.0": torch.zeros(4).double()},
               options(3, 1))
    lacking = {name: t for name, t in given(3, [(4,), (2, 2)]).items() if name != "2.1"}
    yield Case("edge", "a task does not reach a tensor", lacking, options(3, 2))


def annealing(draw):
    def options(tasks, epochs, c=0.8, steps=1500):
        sizes = [draw.size(20, 60) * 10 ** n for n in range(tasks)]
        return {"sizes": sizes, "epochs": epochs, "c": c, "seed": draw.size(0, 999), "steps": steps}

    yield Case("forward", "three tasks", {}, options(3, 5))
    yield Case("forward", "two tasks", {}, options(2, 10, 0.5))
    yield Case("edge", "one epoch: by size", {}, options(2, 1))
    yield Case("edge", "one task", {}, options(1, 3, steps=20))
    yield Case("edge", "evenly at last", {}, options(3, 4, 1.0))


def importance(draw):
    def given(batch, tokens, batches=1):
        return {"mask": draw.mask(batch, tokens)} | {
            f"ids{n}": draw.ids(batch, tokens) for n in range(batches)}

    def options(kind="heads", by="global", pruned=None, **more):
        return {"seed": draw.seed(), "kind": kind, "by": by, "pruned": pruned or {}, **more}

    yield Case("forward", "heads", given(4, 6), options())
    yield Case("forward", "three batches", given(3, 5, 3), options(by="layer", batches=3))
    yield Case("forward", "neurons", given(3, 5), options("neurons"))
    yield Case("edge", "one sequence of one token", given(1, 1), options())
    yield Case("edge", "pairs in two sequences", given(4, 5), options(segments=2))
    yield Case("edge", "removed heads", given(3, 5),
               options(by="layer", pruned={"0": [1]}))
    yield Case("edge", "layers", given(3, 5), options("layers", "layer"))


def head_removal(draw):
    def case(kind, title, *removals):
        return Case(kind, title, {"mask": draw.mask(3, 6), "input_ids": draw.ids(3, 6)},
                    {"seed": draw.seed(), "removals": list(removals)})

    yield case("forward", "one head", {"0": [draw.size(0, 2)]})
    yield case("forward", "heads of both layers", {"0": [0], "1": [1, 2]})
    yield case("edge", "one after the other", {"0": [0]}, {"0": [1], "1": [2]})
    yield case("edge", "all heads of a layer", {"1": [0, 1, 2]})
    yield case("edge", "named twice, in falling order", {"0": [2, 0, 2]})


CASES = {"attention": attention, "add-and-norm": add_and_norm, "ffn": ffn,
         "embeddings": embeddings, "adamw": adamw, "masking": masking, "lora": lora,
         "low-rank": low_rank, "pcgrad": pcgrad, "annealing": annealing,
         "importance": importance, "head-removal": head_removal}


def make_cases(exercise, seed):
    """→ [Case], drawn from (seed, exercise)"""
    return list(CASES[exercise](Draw(f"{seed} {exercise}")))


def reference(exercise, case):
    """→ what the project's own functions give for a case."""
    return run_case(exercise, case.tensors, case.options, case.kind == "gradient")
