"""Compare what an exercise's functions gave with what they must give, as a sentence or None.

The results of masking and annealing are random: their rules are checked, not their numbers.
"""

import math

import torch

from course.drivers import VOCABULARY

SIGMAS = 5.5                               # a right answer fails one check in some ten million


def judge(exercise, tensors, options, expected, found):
    """→ None if `found` is right, or a sentence on the first difference"""
    rules = RULES.get(exercise)
    for name, value in expected.items():
        random = name.split()[0] in ("choose", "chosen", "masked", "draws")
        problem = compare(value, found.get(name), shape_only=random)
        if problem:
            return f"{name}: {problem}"
    extra = [f"{name[:80]!r}: there must be none" for name in found if name not in expected]
    if extra or not rules:
        return extra[0] if extra else None
    return next(rules(tensors, options, expected, found), None)


def compare(value, other, shape_only=False):
    """→ None if both are equal up to rounding, or a sentence"""
    if not isinstance(value, torch.Tensor):
        return None if value == other else f"{str(other)[:80]} instead of {str(value)[:80]}"
    if not isinstance(other, torch.Tensor):
        return "is missing (is the result detached from its inputs?)"
    if value.shape != other.shape:
        return f"the shape is {list(other.shape)} instead of {list(value.shape)}"
    if value.dtype != other.dtype:
        return f"{other.dtype} instead of {value.dtype}"
    close = 1e-8 if value.dtype == torch.float64 else 1e-4
    value, other = value.double(), other.double()
    scale = value.nan_to_num().abs().max().item() if value.numel() else 0.0
    wrong = ~torch.isclose(other, value, close, close * max(scale, 1e-6), equal_nan=True)
    if shape_only or not wrong.any():
        return None
    gap = (value - other).abs().nan_to_num(math.inf)[wrong].max().item()
    return (f"of the shape {list(value.shape)}, {int(wrong.sum())} numbers are wrong, the largest "
            f"difference is {gap:.3g}")


def masking_rules(tensors, options, expected, found):
    """Yield a sentence for each broken rule."""
    ids, mask_id = tensors["ids"], VOCABULARY.index("[MASK]")
    special, words = torch.tensor([token[0] == "[" for token in VOCABULARY]), []
    for n, number in enumerate(ids.tolist()):
        if not (options["whole_word"] and VOCABULARY[number][0] == "#"):
            words.append([])
        words[-1].append(n)
    count, spare = int(expected["choose"].sum()), max(map(len, words)) - 1
    for chosen in (found["chosen 0"], found["chosen 1"], found["choose"]):
        flags = chosen.tolist()
        if (chosen & special[ids]).any():
            yield "a special token is chosen"
        if any(len({flags[n] for n in word}) > 1 for word in words):
            yield "only a part of a word is chosen"
        if abs(sum(flags) - count) > spare:                  # whole words may be a little more
            yield f"{sum(flags)} tokens are chosen instead of {count}"
    for what in ("chosen", "masked ids"):
        if not torch.equal(found[f"{what} 0"], found[f"{what} 2"]):
            yield "the same generator gives another result: draw from `generator` only"
    if len(ids) > 100 and torch.equal(found["chosen 0"], found["chosen 1"]):
        yield "two calls choose the same tokens: draw from `generator`"
    chosen = torch.cat([found["chosen 0"], found["chosen 1"]])
    masked, ids = torch.cat([found["masked ids 0"], found["masked ids 1"]]), ids.repeat(2)
    random = chosen & (masked != ids) & (masked != mask_id)
    if (masked != ids)[~chosen].any():
        yield "a token that is not chosen is changed"
    if special[masked[random]].any():
        yield "a random replacement is a special token"
    total, kinds = int(chosen.sum()), int((~special).sum())
    first = int(chosen[:len(chosen) // 4].sum() + found["chosen 1"][:len(chosen) // 4].sum())
    for what, number, share in (
            ("become [MASK]", int((chosen & (masked == mask_id)).sum()), 0.8),
            ("stay", int((chosen & (masked == ids)).sum()), 0.1 + 0.1 / kinds),
            ("are in the first half", first if total > 100 else total / 2, 0.5)):
        if abs(number - total * share) > SIGMAS * math.sqrt(total * share * (1 - share)) + 1e-9:
            yield f"{number / total:.1%} of the chosen tokens {what} instead of {share:.1%}"
    if total > 1000 and len(masked[random].unique()) < kinds / 2:
        yield "random replacements are only few of the ordinary tokens"


def annealing_rules(tensors, options, expected, found):
    """Yield a sentence for each broken rule."""
    draws, right = found["draws"].flatten(), expected["draws"].flatten()[:-20]
    if not torch.equal(draws[:20], draws[-20:]):
        yield "the same seed and step draw another task"
    for task in range(len(options["sizes"])):
        count, other = (int((some == task).sum()) for some in (draws[:-20], right))
        share = (count + other) / 2 / len(right)
        if abs(count - other) > SIGMAS * math.sqrt(2 * len(right) * share * (1 - share)) + 1e-9:
            yield (f"task {task} of the sizes {options['sizes']} is drawn in {count} of "
                   f"{len(right)} steps instead of about {other}")


RULES = {"masking": masking_rules, "annealing": annealing_rules}
