"""Seeded mutations of files and values, and the one rule that all readers and commands keep: a
result, or one sentence, within seconds."""

import copy
import json
import signal
import warnings
from contextlib import contextmanager

from bert import UserError

SECONDS = 10
VALUES = (None, True, False, 0, -1, 1, 3, 2 ** 31, 2 ** 70, 1.5, -0.5, 1e300, float("nan"),
          float("inf"), "", "x", "0", "sst", "../x", "/etc", "a.b", "é→", "\ud800", "\0",
          "a" * 70000, "(a+)+$", [], [[]], [None], ["x", 1], {}, {"": None}, {"x": {"y": []}})
BYTES = (b"", b"\0", b"\xff", b"\n", b"\r", b"\t", b'"', b"{", b"[", b"-", b"9" * 400, b"\xf0\x9f",
         b"\xe2\x80\xa8", b"[" * 100000, b'""', b"A" * 200000)
CELLS = ("", " ", '"', '"a', 'a"b', '""', "0_1", "٣", "1e0", "nan", "inf", "-0", "5.", "9", "5",
         "x" * 200000, "a\rb", "\x85", "\u2028", "\0", "é", "1", "0.5", "index", "id", "sentence")


@contextmanager
def time_limit():
    """Raise TimeoutError after SECONDS (of work that Python can interrupt)."""
    def late(*_):
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(function, *arguments):
    """Call it → the sentence of its UserError, or "" where it worked. All else is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with time_limit():
                function(*arguments)
        except UserError as error:
            sentence = str(error)
            assert sentence.isprintable() and 10 < len(sentence) < 2500, sentence
            return sentence
    return ""


def mutate_bytes(rng, content):
    """Change a file's bytes at one to three places, or cut it short."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.choice((0, 1, 1, 2, 8, 100, 10 ** 9)))
        kind = rng.randrange(4)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at:end] = rng.choice(BYTES)
        elif kind == 2:
            content[at:at] = content[at:end][:1000]
        else:
            content[at:end] = bytes(rng.randrange(256) for _ in range(rng.randint(0, 8)))
    return bytes(content)


def places(value, path=()):
    """→ the paths of all parts of a JSON value."""
    items = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, (list, tuple)) else ())
    return [path] * bool(path) + [p for key, item in items for p in places(item, (*path, key))]


def mutate_value(rng, value, values=VALUES):
    """→ a copy of a JSON value (or of a state) with one or two parts replaced, removed, added,
    swapped or of another type."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        found = places(value)
        if not found:
            return rng.choice(values)
        *way, key = rng.choice(found)
        parent = value
        for step in way:
            parent = parent[step]
        if isinstance(parent, tuple):
            continue
        kind, old = rng.randrange(6), parent[key]
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(("x", "", "../y", "999", "sst", key if isinstance(key, str) else "z"))
                   ] = copy.deepcopy(old)
        elif kind == 2 and isinstance(old, (int, float, str)):
            parent[key] = str(old) if not isinstance(old, str) else len(old)
        elif kind == 3:
            parent[key] = [old]
        else:
            parent[key] = rng.choice(values)
    return value


def mutate_json(rng, content):
    """→ the bytes of a JSON file (or of one with a value a line) after a mutation."""
    if rng.randrange(4) == 0:
        return mutate_bytes(rng, content)
    lines = content.decode().splitlines()
    try:
        values, join = [json.loads(content)], "\n"
    except ValueError:
        values, join = list(map(json.loads, lines)), "\n"
    number = rng.randrange(len(values))
    values[number] = mutate_value(rng, values[number])
    text = join.join(map(json.dumps, values)) + "\n"
    if rng.randrange(10) == 0:
        text = text.replace("null", "[" * 30000 + "]" * 30000, 1)
    return text.encode()


def mutate_table(rng, content):
    """→ the bytes of a file of tab-separated rows after a mutation of cells, rows or columns."""
    if rng.randrange(4) == 0:
        return mutate_bytes(rng, content)
    rows = [line.split("\t") for line in content.decode().split("\n")]
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows[:1] + rows)
        at, kind = rng.randrange(len(row)), rng.randrange(6)
        if kind == 0:
            row.insert(at, rng.choice(CELLS))
        elif kind == 1 and len(row) > 1:
            del row[at]
        elif kind == 2:
            row[at] = rng.choice((" {} ", '"{}"', "{}\r", '"{}', "{}\u00a0")).format(row[at])
        elif kind == 3:
            rows.insert(rng.randrange(len(rows)), list(row))
        else:
            row[at] = rng.choice(CELLS)
    text = "\n".join("\t".join(row) for row in rows)
    return text.replace("\n", rng.choice(("\n",) * 6 + ("\r", "\r\n"))).encode()
