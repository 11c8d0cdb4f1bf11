"""Standard output and error that never fail, so that printing cannot end a run half-way."""

import os
import sys
from contextlib import contextmanager, suppress

from bert.errors import UserError


class Stream:
    """A text stream around another one. Characters that its encoding lacks are spelled out (→ as
    \\u2192); after an error, as of a pipe whose reader is gone, text is dropped: `lost` is then the
    error."""

    def __init__(self, stream):
        self.stream, self.lost = stream, None

    def write(self, text):
        try:
            text.encode(encoding := self.stream.encoding or "utf-8", self.stream.errors or "strict")
        except UnicodeEncodeError:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        return self._try(self.stream.write, text)

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, function, *arguments):
        try:
            return function(*arguments)
        except OSError as error:
            self.lost = error
            with suppress(OSError):                          # what is buffered still has to go
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.stream.fileno())
                os.close(null)

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextmanager
def safe_streams():
    """Within this context sys.stdout and sys.stderr are Streams, also where they were closed (>&-).
    At the end UserError if output was lost, unless its reader had enough (… | head)."""
    for number in range(3):                                  # or the next file that is opened gets
        try:                                                 # the number, and what libraries print
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Stream(stream or open(os.devnull, "w", encoding="utf-8"))
                              for stream in before)
    out = sys.stdout
    try:
        yield
        out.flush()
        if out.lost and not isinstance(out.lost, BrokenPipeError):
            raise UserError(f"the output cannot be written: {out.lost.strerror}")
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
