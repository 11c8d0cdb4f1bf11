"""JSON files, read and checked: every file is bounded in size and depth, and its fields are
compared with a description, such as

    {"version": int, "seed?": int, "edits": list[dict], "best_step": dict[str, int | None]}

The types are Python's own. A field with "?" may be absent, and fields that are not named may be
there. float takes whole numbers too and must be finite, dict[int, …] has numbers as text for keys,
range(5) and {"a", "b"} name the values themselves, NUMBER is any number, NaN too."""

import json
from contextlib import suppress
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin

from bert.errors import UserError
from bert.files import read_utf8

MAX_BYTES, MAX_DEPTH = 2 ** 26, 50                           # of one file; of objects and lists
NUMBER = Real
NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false",
         dict: "an object {…}", list: "a list […]", tuple: "a list […]", NUMBER: "a number",
         NoneType: "null"}


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
    own = next((kind for kind in kinds if is_a(value, kind)), None)
    if own is None:
        is_ = f"{field} is {value!r:.60}" if field else f"it holds a {type(value).__name__}"
        raise UserError(f"{path}: {is_}; it must be {' or '.join(map(describe, kinds))}")
    part = f"{field}." if field else ""
    if isinstance(own, dict):                                # {"field": kind}
        for name in own:
            plain = name.removesuffix("?")
            if plain in value:
                check_type(value[plain], own[name], path, part + plain)
            elif plain == name:
                raise UserError(f"{path} lacks {part}{name}, {describe(own[name])}")
    elif get_origin(own) is dict:
        key_kind, value_kind = get_args(own)
        for key, item in value.items():
            if key_kind is int and not (key.isascii() and key.isdigit() and len(key) < 10):
                raise UserError(f"{path}: {field} has the key {key!r}; it must be a whole number")
            check_type(key, str, path, f"a key of {field}")
            check_type(item, value_kind, path, f"{part}{key}")
    elif get_origin(own) is list:
        for number, item in enumerate(value):
            check_type(item, get_args(own)[0], path, f"{field}[{number}]")
    elif get_origin(own) is tuple:
        for number, (item, of) in enumerate(zip(value, get_args(own))):
            check_type(item, of, path, f"{field}[{number}]")


def is_a(value, kind):
    """Whether a value is of this kind, whatever its parts are."""
    plain = get_origin(kind) or kind
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if isinstance(kind, set):
        return isinstance(value, str) and value in kind
    if isinstance(kind, dict):
        return isinstance(value, dict)
    if plain is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(get_args(kind))
    if plain is list:
        return isinstance(value, (list, tuple))              # tuples: in files of torch
    if plain is int:
        return type(value) is int and abs(value) < 2 ** 63
    if plain is float:
        return type(value) in (int, float) and abs(value) < 1e300
    if plain is str:
        return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value
    return isinstance(value, plain) and (plain is not NUMBER or type(value) is not bool)


def describe(kind):
    if isinstance(kind, range):
        return f"a whole number from {kind[0]:,} to {kind[-1]:,}"
    if isinstance(kind, set):
        return f"one of {', '.join(sorted(kind))}"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))}"
    kind = dict if isinstance(kind, dict) else get_origin(kind) or kind
    return NAMES.get(kind, f"a {kind.__name__}")
