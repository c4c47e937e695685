"""How programs here begin and end: their options; exit status, one line for an expected failure."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from config.parsing import nearest
from utils.errors import UserError

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130
READER_LEFT_STATUS = 1

_log = logging.getLogger(__name__)


class ProgramParser(argparse.ArgumentParser):
    """argparse's parser where wrong input is a :class:`UserError`, not a usage text.

    Texts of the help keep their lines, and options must be written in full.
    """

    def __init__(self, **texts: Any) -> None:
        """``texts``: argparse's ``description``, ``epilog``, ``prog``."""
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=layout, allow_abbrev=False, **texts)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's; an unknown option is answered with the nearest known one."""
        options, extras = self.parse_known_args(args, namespace)
        if not extras:
            return options
        if not extras[0].startswith("-"):
            raise UserError(f"unexpected argument '{extras[0]}' (--help explains)")
        name = extras[0].split("=", 1)[0]
        raise UserError(
            f"unknown option {name}{nearest(name, self._option_string_actions)} (--help lists all)"
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message} (--help explains)")


def run_program(run: Callable[[], None]) -> int:
    """Runs a program's work and turns what it raises into an exit status.

    Args:
        run: the work. A :class:`UserError` becomes the line ``error: <message>`` on stderr, and so
            does what the system refuses (a file without permission, a full disk); other exceptions
            are defects and pass through.

    Returns:
        0, 2 for wrong input, 130 when interrupted, 1 when the reader of the output has left.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter must not end the program.
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        run()
        if sys.stdout is not None:  # None where it was closed
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        _discard_output()
        return READER_LEFT_STATUS
    except OSError as error:
        _log.debug("the system refused", exc_info=True)
        print(f"error: {_refusal(error)}", file=sys.stderr)
        _discard_output()
        return USER_ERROR_STATUS
    return 0


def _refusal(error: OSError) -> UserError:
    """What the system refused, on one line."""
    reason = (error.strerror or str(error)).lower()
    # What is written to stdout has no name.
    return UserError(f"{error.filename or 'cannot read or write'}: {reason}")


def _discard_output() -> None:
    """Keeps Python from reporting again, when it flushes at exit, that nobody takes the output."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
