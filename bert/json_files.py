"""JSON files, read and checked: every file is bounded in size and depth, and its fields are
compared with a description, such as

    {"version": int, "seed?": int, "edits": list[dict], "best_step": dict[str, int | None]}

The types are Python's own. A field with "?" may be absent, and fields that are not named may be
there. float takes whole numbers too and must be finite, dict[int, …] has numbers as text for keys,
range(5) and {"a", "b"} name the values themselves, NUMBER is any number, NaN too."""

import json
import re
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin

from bert.errors import UserError
from bert.files import read_utf8

MAX_BYTES, MAX_DEPTH = 2 ** 26, 50                           # of one file; of objects and lists
NUMBER = complex                                             # stands for any number, NaN too
KINDS = {                                                    # kind → its name, test of a value
    int: ("a whole number", lambda v: type(v) is int and abs(v) < 2 ** 63),
    float: ("a finite number", lambda v: type(v) in (int, float) and abs(v) < 1e300),
    NUMBER: ("a number", lambda v: type(v) in (int, float)),
    str: ("a text", lambda v: isinstance(v, str) and v.encode(errors="replace").decode() == v),
    bool: ("true or false", lambda v: isinstance(v, bool)),
    dict: ("an object {…}", lambda v: isinstance(v, dict)),
    list: ("a list […]", lambda v: isinstance(v, (list, tuple))),        # torch's files have tuples
    NoneType: ("null", lambda v: v is None),
}


def read_json(path, kind=dict):
    """→ the content of a JSON file, which must be of this kind."""
    return parse_json(read_utf8(path, MAX_BYTES), path, kind)


def read_results(path, fingerprint, row):
    """→ {name: row} of results that were kept in {"fingerprint", "rows"}; {} where there are none,
    or where they are of another model or data, whose fingerprint differs."""
    found = read_json(path, {"fingerprint": str, "rows": dict}) if Path(path).is_file() else {}
    if found.get("fingerprint") != fingerprint:
        return {}
    check_type(found["rows"], dict[str, row], path, "rows")
    return found["rows"]


def read_json_lines(path, kind):
    """→ the content of each line of a file. A last line that was cut short by a kill is left out;
    UserError names another line that is not of this kind."""
    *lines, last = read_utf8(path, MAX_BYTES).split("\n")
    with suppress(ValueError, RecursionError):                               # "", or cut short
        lines += [last] * bool(json.loads(last))
    return [parse_json(text, f"{path} line {number}", kind)
            for number, text in enumerate(lines, start=1)]


def parse_json(text, path, kind):
    """→ the content of a JSON text of the file `path`, which must be of this kind."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep(path) from None
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for parent in level if isinstance(parent, (dict, list))
                 for part in (parent.values() if isinstance(parent, dict) else parent)]
    if level:
        raise too_deep(path)
    check_type(value, kind, path)
    return value


def too_deep(path):
    return UserError(f"{path} nests objects and lists more than {MAX_DEPTH} deep, which no file of "
                     f"this kind does; restore it")


def check_type(value, kind, path, field=""):
    """UserError that names file, field and value, unless `value` is of this kind in all parts."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    own = next((kind for kind in kinds if describe(kind)[1](value)), None)
    if own is None:
        is_ = f"{field} is {value!r:.60}" if field else f"it holds a {type(value).__name__}"
        must = " or ".join(describe(kind)[0] for kind in kinds)
        raise UserError(f"{path}: {is_}; it must be {must}")
    dot = f"{field}." if field else ""
    if isinstance(own, dict):                                # {"field": kind}
        for name, of in own.items():
            plain = name.removesuffix("?")
            if plain in value:
                check_type(value[plain], of, path, dot + plain)
            elif plain == name:
                raise UserError(f"{path} lacks {dot}{name}")
    elif get_origin(own) is dict:
        key_kind, of = get_args(own)
        for key, item in value.items():
            check_type(key, str, path, f"a key of {field}")
            if key_kind is int and not re.fullmatch("[0-9]{1,9}", key):
                raise UserError(f"{path}: {field} has the key {key!r}; it must be a whole number")
            check_type(item, of, path, dot + key)
    elif get_origin(own) in (list, tuple):
        of = get_args(own) if get_origin(own) is tuple else get_args(own) * len(value)
        for number, item in enumerate(value):
            check_type(item, of[number], path, f"{field}[{number}]")


def describe(kind):
    """→ the name of a kind, and a function that tells whether a value is one, whatever its parts
    are."""
    if isinstance(kind, range):
        return (f"a whole number from {kind[0]:,} to {kind[-1]:,}",
                lambda v: type(v) is int and v in kind)
    if isinstance(kind, set):
        return f"one of {', '.join(sorted(kind))}", lambda v: isinstance(v, str) and v in kind
    if get_origin(kind) is tuple:
        count = len(get_args(kind))
        return f"a list of {count}", lambda v: isinstance(v, (list, tuple)) and len(v) == count
    plain = dict if isinstance(kind, dict) else get_origin(kind) or kind
    return KINDS.get(plain) or (f"a {plain.__name__}", lambda v: isinstance(v, plain))
