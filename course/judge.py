"""Compare what an exercise's functions gave with what they must give, as a sentence or None.

The results of masking and annealing are random: their rules are checked, not their numbers.
"""

import math

import torch

SIGMAS = 5.5                               # a right answer fails one check in some ten million


def judge(exercise, tensors, options, expected, found):
    """→ None if `found` is right, or a sentence on the first difference."""
    if exercise in RULES:
        for name, value in expected.items():
            if different_kind(value, found.get(name)):
                return f"{name}: there is none of this type and shape"
        return RULES[exercise](tensors, options, expected, found)
    for name, value in expected.items():
        problem = compare(value, found.get(name))
        if problem:
            return f"{name}: {problem}"
    extra = [name for name in found if name not in expected]
    return f"{extra[0]}: there must be none" if extra else None


def different_kind(value, other):
    return (not isinstance(other, torch.Tensor) or value.dtype != other.dtype
            or value.shape != other.shape)


def compare(value, other):
    """→ None if both are equal up to rounding, or a sentence."""
    if not isinstance(value, torch.Tensor):
        return None if value == other else f"{str(other)[:80]} instead of {str(value)[:80]}"
    if not isinstance(other, torch.Tensor):
        return "is missing (is the result detached from its inputs?)"
    if value.shape != other.shape:
        return f"the shape is {list(other.shape)} instead of {list(value.shape)}"
    if value.dtype != other.dtype:
        return f"{other.dtype} instead of {value.dtype}"
    if not value.is_floating_point():
        count = int((value != other).sum())
        return f"{count} of {value.numel()} numbers are wrong" if count else None
    close = 1e-8 if value.dtype == torch.float64 else 1e-4
    scale = value[value.isfinite()].abs().max().item() if value.isfinite().any() else 0.0
    if torch.allclose(other, value, rtol=close, atol=close * max(scale, 1e-6), equal_nan=True):
        return None
    gap = (value.double() - other.double()).abs().nan_to_num(math.inf)
    gap = gap.masked_fill(value.isnan() & other.isnan(), 0.0)
    return (f"of the shape {list(value.shape)}, {int((gap > close * max(scale, 1e-6)).sum())} "
            f"numbers are wrong, the largest difference is {gap.max().item():.3g}")


def unlikely(count, total, share):
    """Whether `count` of `total` is no plausible outcome of a probability."""
    return abs(count - total * share) > SIGMAS * math.sqrt(total * share * (1 - share)) + 1e-9


def masking_rules(tensors, options, expected, found):
    vocabulary, ids = options["vocabulary"], tensors["ids"]
    special = torch.tensor([token[0] == "[" for token in vocabulary])
    ordinary = ~special[ids]
    count = max(1, round(0.15 * int(ordinary.sum()))) if ordinary.any() else 0
    continues = torch.tensor([options["whole_word"] and token[:2] == "##" for token in vocabulary])
    word = (~continues[ids]).cumsum(0) - 1
    if not torch.equal(found["ids after the call"], ids):
        return "the given ids were changed"
    if not all(torch.equal(found[f"{what} 0"], found[f"{what} 2"])
               for what in ("chosen", "masked ids")):
        return "the same generator gives another result: draw from `generator` only"
    if len(ids) > 100 and torch.equal(found["chosen 0"], found["chosen 1"]):
        return "two calls choose the same tokens: draw from `generator`"
    for chosen, masked in ((found["chosen 0"], found["masked ids 0"]), (found["choose"], ids),
                           (found["chosen 1"], found["masked ids 1"])):
        whole = torch.zeros(len(ids)).index_add(0, word, chosen.float())
        if (chosen & special[ids]).any():
            return "a special token is chosen"
        if (whole[word][ordinary] != torch.bincount(word)[word][ordinary])[chosen[ordinary]].any():
            return "only a part of a word is chosen"
        longest = int(torch.bincount(word[ordinary]).max()) if count else 1
        if not count <= int(chosen.sum()) < count + longest:
            return f"{int(chosen.sum())} tokens are chosen instead of {count}"
        if (masked != ids)[~chosen].any():
            return "a token that is not chosen is changed"
        if special[masked[chosen & (masked != vocabulary.index("[MASK]"))]].any():
            return "a random replacement is a special token"
    return _masked_shares(options, ids, ordinary, found)


def _masked_shares(options, ids, ordinary, found):
    """80 : 10 : 10, counted over both calls, and how evenly tokens are chosen."""
    chosen = torch.cat([found["chosen 0"], found["chosen 1"]])
    masked, before = torch.cat([found["masked ids 0"], found["masked ids 1"]]), ids.repeat(2)
    total, vocabulary = int(chosen.sum()), options["vocabulary"]
    kept = sum(token[0] != "[" for token in vocabulary)
    shares = {"become [MASK]": (masked == vocabulary.index("[MASK]"), 0.8),
              "stay": (masked == before, 0.1 + 0.1 / kept)}
    for what, (where, share) in shares.items():
        count = int((where & chosen).sum())
        if unlikely(count, total, share):
            return f"{count / total:.1%} of the chosen tokens {what} instead of {share:.1%}"
    first = int(chosen.view(2, -1)[:, :len(ids) // 2].sum())
    share = ordinary[:len(ids) // 2].sum().item() / max(1, int(ordinary.sum()))
    if total > 100 and unlikely(first, total, share):
        return "tokens of one half are chosen more often than those of the other"
    replaced = chosen & (masked != before) & (masked != vocabulary.index("[MASK]"))
    if total > 1000 and len(masked[replaced].unique()) < kept / 2:
        return "random replacements are only few of the ordinary tokens"
    return None


def annealing_rules(tensors, options, expected, found):
    problem = compare(expected["exponents"], found["exponents"])
    if problem:
        return f"exponents: {problem}"
    draws = found["draws"].flatten()
    if not torch.equal(draws[:20], draws[-20:]):
        return "the same seed and step draw another task"
    weights = [size ** expected["exponents"][-1].item() for size in options["sizes"]]
    for task, weight in enumerate(weights):
        count, share = int((draws[:-20] == task).sum()), weight / sum(weights)
        if unlikely(count, len(draws) - 20, share):
            return (f"task {task} of sizes {options['sizes']} is drawn in "
                    f"{count / (len(draws) - 20):.1%} of the steps instead of {share:.1%}")
    return None


RULES = {"masking": masking_rules, "annealing": annealing_rules}
