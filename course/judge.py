"""Compare what an exercise's functions gave with what they must give, as a sentence or None.

The results of masking and annealing are random: their rules are checked, not their numbers.
"""

import math

import torch

from course.drivers import VOCABULARY

SIGMAS = 5.5                               # a right answer fails one check in some ten million
SHORT = 8                                  # a tensor or list of so many items is shown in full
AFTER = " after the call"                  # of an input's name: what the call left of it


def judge(exercise, tensors, options, expected, found):
    """→ None if `found` is right, or a sentence on the first difference"""
    changed = [name.removesuffix(AFTER) for name, value in expected.items()
               if name.endswith(AFTER) and compare(value, found.get(name))]
    problem = first_difference(exercise, tensors, options, expected, found)
    if not changed:
        return problem
    return (f"your function changed the given `{changed[0]}`: work on a copy"
            + (f". Besides, perhaps because of this: {problem}" if problem else ""))


def first_difference(exercise, tensors, options, expected, found):
    """→ None or a sentence on the results; the inputs after the call are not looked at."""
    for name, value in expected.items():
        random = name.split()[0] in ("choose", "chosen", "masked", "draws")
        problem = None if name.endswith(AFTER) else compare(value, found.get(name), random)
        if problem:
            return f"{name}: {problem}"
    extra = [f"{name[:80]!r}: there must be none" for name in found if name not in expected]
    if extra or exercise not in RULES:
        return extra[0] if extra else None
    return next(RULES[exercise](tensors, options, expected, found), None)


def compare(value, other, shape_only=False):
    """→ None if both are equal up to rounding, or a sentence"""
    if not isinstance(value, torch.Tensor):
        return None if value == other else f"{show(other)} instead of {show(value)}"
    if other is None:
        return "there is none (is the result detached from its inputs?)"
    if not isinstance(other, torch.Tensor):
        return f"{show(other)} instead of a tensor of the shape {list(value.shape)}"
    if value.shape != other.shape:
        return f"the shape is {list(other.shape)} instead of {list(value.shape)}"
    if value.dtype != other.dtype:
        return f"the dtype is {other.dtype} instead of {value.dtype}"
    close = 1e-8 if value.dtype == torch.float64 else 1e-4
    right, given = value.double(), other.double()
    scale = right.nan_to_num().abs().max().item() if value.numel() else 0.0
    wrong = ~torch.isclose(given, right, close, close * max(scale, 1e-6), equal_nan=True)
    return None if shape_only or not wrong.any() else difference(value, other, wrong)


def difference(value, other, wrong):
    """→ a sentence on the numbers of `other` that are `wrong`: short vectors whole, or the first"""
    if value.numel() <= SHORT and show(other.tolist()) != show(value.tolist()):
        return f"{show(other.tolist())} instead of {show(value.tolist())}"
    place, count = wrong.nonzero()[0].tolist(), int(wrong.sum())
    given, right = (tensor[tuple(place)].item() for tensor in (other, value))
    digits = 6 if show(given) != show(right) else 17
    return (f"at {place}: {show(given, digits)} instead of {show(right, digits)}; {count} of "
            f"{value.numel()} numbers {'is' if count == 1 else 'are'} wrong")


def show(value, digits=6):
    """→ a JSON value as text; of a long list the first items"""
    if isinstance(value, list):
        more = [f"and {len(value) - SHORT} more"] if len(value) > SHORT else []
        return f"[{', '.join([show(item, digits) for item in value[:SHORT]] + more)}]"
    return f"{value:.{digits}g}" if isinstance(value, float) else repr(value)[:200]


def words_of(ids, whole_word):
    """→ [[positions of the tokens of a word]] without special tokens. A piece (##b) that comes
    first or after a special token begins a word."""
    words, inside = [], False
    for n, token in enumerate(VOCABULARY[number] for number in ids.tolist()):
        if token[0] == "[":
            inside = False
            continue
        if not (inside and whole_word and token[0] == "#"):
            words.append([])
        words[-1].append(n)
        inside = True
    return words


def masking_rules(tensors, options, expected, found):
    """Yield a sentence for each broken rule."""
    ids, mask_id = tensors["ids"], VOCABULARY.index("[MASK]")
    special = torch.tensor([token[0] == "[" for token in VOCABULARY])
    words = words_of(ids, options["whole_word"])
    count, spare = int(expected["choose"].sum()), max(map(len, words), default=1) - 1
    for chosen in (found["chosen 0"], found["chosen 1"], found["choose"]):
        flags = chosen.tolist()
        if (chosen & special[ids]).any():
            yield "a special token is chosen"
        if any(len({flags[n] for n in word}) > 1 for word in words):
            yield "only a part of a word is chosen"
        if abs(sum(flags) - count) > spare:                  # whole words may be a little more
            yield f"the number of chosen tokens is {sum(flags)} instead of {count}"
    for what in ("chosen", "masked ids"):
        if not torch.equal(found[f"{what} 0"], found[f"{what} 2"]):
            yield "the same generator gives another result: draw from `generator` only"
    if len(ids) > 100 and torch.equal(found["chosen 0"], found["chosen 1"]):
        yield "two calls choose the same tokens: draw from `generator`"
    chosen = torch.cat([found["chosen 0"], found["chosen 1"]])
    masked, ids = torch.cat([found["masked ids 0"], found["masked ids 1"]]), ids.repeat(2)
    if ((masked < 0) | (masked >= len(special))).any():
        yield "there is an id that the vocabulary does not have"
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
