"""The exception that scripts turn into a sentence and exit code 2, and the checks of a name and a
number."""

import difflib
import re

LONGEST_WORD, LONGEST_MESSAGE = 300, 1500                    # in characters


class UserError(ValueError):
    """A mistake of the user: the message says what came, why it cannot work, and what to do. What a
    file or a flag holds may be quoted whole: the message is always one line, and not a long one."""

    def __init__(self, message):
        super().__init__(one_line(message))


def one_line(message):
    """A message with control characters spelled out, and long words, and itself, cut in the
    middle."""
    def cut(text, length):
        return text if len(text) <= length else f"{text[:length // 2]} … {text[-length // 2:]}"

    words = re.sub(r"\S+", lambda word: cut(word[0], LONGEST_WORD), str(message))
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut(words, LONGEST_MESSAGE))


def is_out_of_memory(error):
    """Whether an exception says that the machine has too little memory for what was asked."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "not enough memory", "bad_alloc",
                                        "out of memory", "calculation overflowed",
                                        "multiplication overflow")))


def did_you_mean(word, known):
    """" (did you mean lora?)", or "" if no known word is near."""
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def some(names, count=5):
    """["a", "b", …] → "a, b, c, d, e and 27 more"."""
    text = ", ".join(map(str, names[:count]))
    return f"{text} and {len(names) - count:,} more" if len(names) > count else text


def check_known(name, known, what, where=""):
    """Raise UserError if `name` is not among `known`: "--tasks: there is no task 'st' (did you mean
    sst?); there are sst, para". `where` begins the sentence."""
    if name not in known:
        names = ", ".join(map(str, known)) or "none"
        raise UserError(f"{where}{': ' if where else ''}there is no {what} {name!r}"
                        f"{did_you_mean(name, known)}; there are {names}")


def plain_number(text, kind=float):
    """A number in ASCII digits. ValueError of 1_000 and ٣, which Python's own float takes."""
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is no plain number")
    return kind(text)
