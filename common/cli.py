"""What the scripts share at the command line: mistakes are sentences, a stop is clean."""

import argparse
import difflib
import signal
import sys
import warnings
from functools import partial

import torch

from bert.errors import UserError


def did_you_mean(word, known):
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one sentence, with the nearest flag there is."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         **options)

    def error(self, message):
        raise UserError(f"{message}; see --help")

    def parse_args(self, args=None, namespace=None):
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = did_you_mean(unknown[0].split("=")[0], self._option_string_actions)
            raise UserError(f"there is no flag or argument {unknown[0]!r}{near}; see --help")
        return found


class UserStop(Exception):
    """The user asked to stop and all is saved: the message says how to go on."""


def run_script(main):
    """Call main(); a user's mistake ends in one sentence and exit code 2."""
    warnings.formatwarning = lambda message, *rest: f"note: {message}\n"
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(_say(f"error: {error}", 2))
    except torch.OutOfMemoryError:
        sys.exit(_say("error: the GPU's memory is full; lower --batch-size, or --device cpu", 2))
    except UserStop as stop:
        sys.exit(_say(str(stop), 130))
    except KeyboardInterrupt:
        sys.exit(_say("stopped", 130))
    except BrokenPipeError:                                  # as in: evaluate.py … | head
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        place = error.filename or "a file"
        sys.exit(_say(f"error: {place} cannot be read or written: {error.strerror or error}", 2))


def _say(text, code):
    print(text, file=sys.stderr)
    return code


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
        print("\nstopping after this step; once more stops at once", file=sys.stderr)


def pick_device(name, precision="fp32"):
    """--device and --precision → torch.device, and a function that makes the autocast context."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return device, partial(torch.autocast, device.type, torch.bfloat16, precision == "bf16")
