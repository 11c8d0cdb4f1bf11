"""Fresh inputs for each exercise from cases.json, and what the project's own functions give.

    {exercise: [[kind, title, {tensor: "40*normal b t d + ones b t d"}, {option: value}], …]}

"public edge" in place of "edge" puts a case into the handout too, with numbers of its own.
A tensor is a sum of terms; @name is another tensor of the case. b, t and d are drawn for each case,
and so are options "2..20" and "orders 3" (for each of 3 tasks an order of the others).
"""

import json
import random
import re
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import torch

from course.drivers import VOCABULARY, run_case


class Case(NamedTuple):
    kind: str                  # forward, gradient (float64, gradients of the inputs too), edge
    title: str
    tensors: dict
    options: dict
    public: bool = False       # goes along with the handout (with other numbers)


def length_mask(draw, batch, tokens):
    """[batch, tokens] of sequences of random lengths, the first one whole"""
    lengths = [tokens, *(draw.randint(1, tokens) for _ in range(batch - 1))]
    return torch.arange(tokens) < torch.tensor(lengths)[:, None]


def sentences(draw, count):
    """Words of one to three pieces, six in each of `count` sentences with special tokens"""
    words = [[draw.choice("abcdefghijklmnopqrstuvwxyz"), *["##b", "##c"][:draw.randint(0, 2)]]
             for _ in range(6 * count)]
    ends = (["[CLS]"] * (n % 6 == 0) + word + ["[SEP]"] * (n % 6 == 5)
            for n, word in enumerate(words))
    return [token for tokens in ends for token in tokens]


def make_term(text, draw, sizes, made, dtype):
    """"40*normal b t" → the tensor"""
    factor, _, rest = text.rpartition("*")
    word, *numbers = rest.split()
    if word[0] == "@":
        value = made[word[1:]]
    elif word in ("tokens", "sentences"):
        tokens = numbers if word == "tokens" else sentences(draw, int(numbers[0]))
        value = torch.tensor([VOCABULARY.index(token) for token in tokens])
    elif word == "values":
        value = torch.tensor([list(map(float, numbers))], dtype=dtype)
    else:
        shape = [sizes[n] if n in sizes else int(n) for n in numbers]
        generator = torch.Generator().manual_seed(draw.getrandbits(40))
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        value = {"normal": lambda: normal.to(dtype), "square": lambda: normal.square().to(dtype),
                 "double": lambda: normal, "share": lambda: normal.sigmoid().to(dtype),
                 "ones": lambda: torch.ones(shape, dtype=dtype),
                 "ids": lambda: torch.randint(50, shape, generator=generator),
                 "types": lambda: torch.randint(2, shape, generator=generator),
                 "mask": lambda: length_mask(draw, *shape).long(),
                 "keys": lambda: length_mask(draw, *shape)[:, None, None],
                 "no_key": lambda: length_mask(draw, *shape)[:, None, None] & torch.arange(
                     shape[0]).bool()[:, None, None, None],  # none in the first sequence
                 "one_key": lambda: torch.eye(shape[1]).bool()[torch.randint(
                     shape[1], shape[:1], generator=generator)][:, None, None]}[word]()
    return float(factor) * value if factor else value


def make_option(value, draw):
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        made = {key: make_option(item, draw) for key, item in items}
        return made if isinstance(value, dict) else list(made.values())
    if found := re.fullmatch(r"(\d+)\.\.(\d+)", str(value)):
        return draw.randint(*map(int, found.groups()))
    if found := re.fullmatch(r"orders (\d+)", str(value)):
        tasks = range(int(found[1]))
        return [draw.sample([j for j in tasks if j != i], len(tasks) - 1) for i in tasks]
    return value


def make_cases(exercise, seed):
    """→ [Case], drawn from (seed, exercise)"""
    draw, cases = random.Random(f"{seed} {exercise}"), []
    table = json.loads(Path(__file__).with_name("cases.json").read_text(encoding="utf-8"))
    for kind, title, specs, *options in table[exercise]:
        sizes = {"b": draw.randint(2, 4), "t": draw.randint(5, 9), "d": draw.randint(4, 8)}
        public, kind = kind.startswith("public") or kind == "forward", kind.split()[-1]
        dtype, tensors = torch.float64 if kind == "gradient" else torch.float32, {}
        for name, spec in specs.items():
            tensors[name] = reduce(add, (make_term(term, draw, sizes, tensors, dtype)
                                         for term in spec.split(" + ")))
        cases.append(Case(kind, title, tensors, make_option(*options or [{}], draw), public))
    return cases


def reference(exercise, case):
    """→ what the project's own functions give for a case"""
    return run_case(exercise, case.tensors, case.options, case.kind == "gradient")
