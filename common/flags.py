"""Settings of a script, once: the fields of a dataclass are the defaults, the flags and the help.

    @dataclass
    class Settings:
        lr: float = setting(1e-3, "highest learning rate", min=0)

        def __post_init__(self):
            check(self)
"""

import argparse
import math
import shlex
from dataclasses import field, fields, replace
from pathlib import Path

from bert.errors import UserError


def setting(default, help, choices=None, min=None, max=math.inf, group="", **metadata):
    """A field. min ≤ value < max. `group` is the heading in --help; `flag` in the metadata
    overrides the flag's name, and other metadata is the script's own."""
    limits = {"help": help, "choices": choices, "min": min, "max": max, "group": group}
    return field(default=default, metadata=limits | metadata)


def flag_of(f):
    """The flag of a field: "--batch-size" of batch_size."""
    return f.metadata.get("flag") or "--" + f.name.replace("_", "-")


def check(settings):
    """UserError if a value has another type, is outside its limits, or is not among its choices."""
    for f in fields(settings):
        flag, value, limits = flag_of(f), getattr(settings, f.name), f.metadata
        types = (int, float) if f.type is float else f.type
        if not isinstance(value, types) or (isinstance(value, bool) and f.type is not bool):
            raise UserError(f"{flag} is {value!r}; it must be of type {f.type.__name__}")
        if limits["min"] is not None and not limits["min"] <= value < limits["max"]:
            below = f" and below {limits['max']:g}" if limits["max"] < math.inf else ""
            raise UserError(f"{flag} is {value}; it must be {limits['min']} or more{below}")
        if limits["choices"] and value not in limits["choices"]:
            raise UserError(f"{flag} is {value!r}; it must be one of "
                            f"{', '.join(limits['choices'])}")


def add_flags(parser, settings_class):
    """Add one flag for each field, below the heading of its group. The parsed namespace holds only
    flags that were given."""
    groups = {"": parser}
    for f in fields(settings_class):
        options = {"dest": f.name, "default": argparse.SUPPRESS, "help": f.metadata["help"]}
        if f.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            choices = f.metadata["choices"]
            options |= {"type": f.type, "choices": choices,
                        "metavar": None if choices else f.type.__name__.upper()}
            if f.default not in ("", 0):
                default = f"{f.default:g}" if f.type is float else f.default
                options["help"] += f" (default: {default})"
        group = f.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(flag_of(f), **options)


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
    """"0.9,0.5" → [0.9, 0.5]. UserError unless valid(number) holds for all; `hint` says what to
    write."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(valid, numbers)):
        raise UserError(f"{flag} {text} is not understood; write {hint}")
    return numbers


def with_absolute_paths(settings, *names):
    """The same settings with these paths absolute, so that a run opens from any working directory.
    What is no path here (a name on the hub) stays as it is."""
    paths = {name: Path(getattr(settings, name)).expanduser() for name in names
             if getattr(settings, name) not in ("", "tiny")}   # tiny comes with the code
    return replace(settings, **{n: str(p.resolve()) for n, p in paths.items() if p.exists()})
