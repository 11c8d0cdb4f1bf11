"""The exception that scripts turn into a sentence and exit code 2, and the check of a name."""

import difflib


class UserError(ValueError):
    """A mistake of the user: the message says what came, why it cannot work, and what to do."""


def is_out_of_memory(error):
    """Whether an exception says that the machine has too little memory for what was asked."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "not enough memory", "bad_alloc",
                                        "out of memory", "overflow")))


def did_you_mean(word, known):
    """" (did you mean lora?)", or "" if no known word is near."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def some(names, most=5):
    """["a", "b", …] → "a, b, c, d, e and 27 more"."""
    text = ", ".join(map(str, names[:most]))
    return f"{text} and {len(names) - most:,} more" if len(names) > most else text


def check_known(name, known, what, where=""):
    """Raise UserError if `name` is not among `known`: "--tasks: there is no task 'st' (did you mean
    sst?); there are sst, para". `where` begins the sentence."""
    if name not in known:
        names = ", ".join(map(str, known)) or "none"
        raise UserError(f"{where}{': ' if where else ''}there is no {what} {name!r}"
                        f"{did_you_mean(name, known)}; there are {names}")
