"""The command line: errors as one sentence, shared flags of sub-commands, a clean stop."""

import argparse
import inspect
import shlex
import signal
import sys
import warnings
from contextlib import suppress

import torch

from bert.errors import (
    UserError,
    check_known,
    did_you_mean,
    is_out_of_memory,
    one_line,
    plain_number,
)
from bert.terminal import safe_streams
from common.flags import LARGEST


def whole_number(text):
    """"12" → 12, but no number that only a mistake makes."""
    if abs(number := plain_number(text, int)) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text:.40} is beyond ±{LARGEST:,}; write less")
    return number


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one sentence, with the nearest flag there is."""

    def __init__(self, **options):
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**options)
        self.register("type", int, whole_number)             # of every type=int
        self.register("type", float, plain_number)

    def error(self, message):
        raise UserError(f"{message}; see --help")

    def parse_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word != word.encode(errors="replace").decode():
                raise UserError(f"{word!r} is not UTF-8; rename the file, or mend the text")
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = did_you_mean(unknown[0].split("=")[0], self._option_string_actions)
            raise UserError(f"there is no flag or argument {unknown[0]!r}{near}; see --help")
        return found


RUN_FLAGS = {                                                # of commands that work on a saved run
    "run": dict(metavar="RUN", help="folder of a saved run"),
    "--data": dict(metavar="FOLDER", help="folder with the data files (default: the run's own)"),
    "--limit": dict(type=int, metavar="N", help="only the first N rows of each file (0: all)"),
    "--device": dict(default="auto", choices=("auto", "cuda", "cpu")),
    "--precision": dict(choices=("auto", "fp32", "bf16"), help="default: the run's"),
    "--overwrite": dict(action="store_true", help="replace the run that is in --out"),
}


def add_run_flags(parser, *names):
    for name in names:
        parser.add_argument(name, **RUN_FLAGS[name])


def run_command(package, doc, commands, arguments=None):
    """Run `python -m package COMMAND …`. commands: {name: (function, add_flags)}; add_flags(parser)
    declares the flags, the function takes what was parsed, and its docstring is the help."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        return print(doc)
    check_known(name, commands, "command")
    function, add_flags = commands[name]
    parser = Parser(prog=f"python -m {package} {name}", description=inspect.getdoc(function))
    add_flags(parser)
    return function(parser.parse_args(rest))


def quoted(path):
    """A path as a shell reads it: in quotes where it has blanks."""
    return shlex.quote(str(path))


class UserStop(Exception):
    """The user asked to stop and all is saved: the message says how to go on."""


def run_script(main):
    """Call main(); a user's mistake ends in one sentence and exit code 2."""
    warnings.formatwarning = lambda message, *rest: f"note: {one_line(message)}\n"
    try:
        with safe_streams():
            code = main()
        sys.exit(code)
    except UserError as error:
        code, text = 2, f"error: {error}"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        which, advice = (("GPU", ", or --device cpu") if isinstance(error, torch.OutOfMemoryError)
                         else ("machine", ", take a smaller model, or end other programs"))
        code, text = 2, f"error: the {which}'s memory is full; lower --batch-size{advice}"
    except (UserStop, KeyboardInterrupt) as stop:
        code, text = 130, str(stop) or "stopped"
    except UnicodeEncodeError as error:
        code, text = 2, (f"error: {error.object!r:.200} cannot be written as {error.encoding}; "
                         f"rename what is called so")
    except OSError as error:
        place = error.filename or "a file"
        code, text = 2, f"error: {place} cannot be read or written: {error.strerror or error}"
    with suppress(UserError), safe_streams():
        print(one_line(text), file=sys.stderr)
    sys.exit(code)


class StopSignal:
    """Within this context Ctrl-C (or a cluster's SIGTERM) only asks to stop: `.asked` becomes true,
    and the loop saves its state after the step. A second Ctrl-C stops at once."""

    asked = False

    def __enter__(self):
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr)
