"""How every program here ends: its exit status, and one line for an expected failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from utils.errors import UserError

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130
READER_LEFT_STATUS = 1


def run_program(run: Callable[[], None]) -> int:
    """Runs a program's work and turns what it raises into an exit status.

    Args:
        run: the work. A :class:`UserError` becomes the line ``error: <message>`` on stderr; other
            exceptions are defects and pass through.

    Returns:
        0, 2 for wrong input, 130 when interrupted, 1 when the reader of the output has left.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter must not end the program.
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        run()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # Keep Python from reporting that again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT_STATUS
    return 0
