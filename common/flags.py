"""Settings of a script, once: the fields of a dataclass are the defaults, the flags and the help,
as in `lr: float = setting(1e-3, "highest learning rate")`."""

import argparse
import math
import shlex
from dataclasses import field, fields, replace
from pathlib import Path

from bert.errors import UserError, plain_number

LARGEST = 2 ** 32                                            # whole number that a flag may have


def setting(default, help, choices=None, min=0, max=math.inf, group="", flag=None):
    """A field. Of a number, min ≤ value < max, and a whole one is at most LARGEST. `group`: its
    heading in --help; `flag`: its name."""
    return field(default=default, metadata=dict(help=help, choices=choices, min=min, max=max,
                                                group=group, flag=flag))


def flag_of(f):
    """The flag of a field: "--batch-size" of batch_size."""
    return f.metadata["flag"] or "--" + f.name.replace("_", "-")


def check(settings):
    """UserError if a value has another type, is outside its limits, or is not among its choices."""
    for f in fields(settings):
        value, limits, must = getattr(settings, f.name), f.metadata, None
        types = (int, float) if f.type is float else f.type
        if not isinstance(value, types) or (isinstance(value, bool) and f.type is not bool):
            must = f"of type {f.type.__name__}"
        elif f.type in (int, float) and not limits["min"] <= value < limits["max"]:
            below = f" and below {limits['max']:g}" if limits["max"] < math.inf else ""
            must = f"{limits['min']} or more{below}"
        elif f.type is int and value > LARGEST:
            must = f"at most {LARGEST:,}"
        elif limits["choices"] and value not in limits["choices"]:
            must = f"one of {', '.join(limits['choices'])}"
        if must:
            raise UserError(f"{flag_of(f)} is {value!r:.60}; it must be {must}")


def add_flags(parser, settings_class):
    """Add a flag for each field. The parsed namespace holds only flags that were given."""
    groups = {"": parser}
    for f in fields(settings_class):
        choices, shown = f.metadata["choices"], f.metadata["help"]
        if f.type is bool:
            options = {"action": argparse.BooleanOptionalAction}
        else:
            options = {"type": f.type, "choices": choices,
                       "metavar": None if choices else f.type.__name__.upper()}
            if f.default not in ("", 0):
                default = f"{f.default:g}" if f.type is float else f.default
                shown += f" (default: {default})"
        group = f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(flag_of(f), dest=f.name, default=argparse.SUPPRESS, help=shown,
                                   **options)


def command(settings):
    """The flags, without defaults, that make these settings."""
    words = []
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value != f.default and f.type is bool:
            words.append(flag_of(f) if value else flag_of(f).replace("--", "--no-", 1))
        elif value != f.default:
            words += [flag_of(f), str(value)]
    return shlex.join(words)


def parse_numbers(flag, text, valid, hint):
    """"0.9,0.5" → [0.9, 0.5]. UserError unless valid(number) for all; `hint`: what to write."""
    try:
        numbers = [plain_number(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(valid, numbers)):
        raise UserError(f"{flag} {text} is not understood; write {hint}")
    return numbers


def with_absolute_paths(settings, *names):
    """The same settings with these paths absolute; what is no path (a name on the hub) stays."""
    paths = {name: Path(getattr(settings, name)).expanduser() for name in names
             if getattr(settings, name) not in ("", "tiny")}   # tiny comes with the code
    return replace(settings, **{n: str(p.resolve()) for n, p in paths.items() if p.exists()})
