"""Ctrl-C while a program imports its modules, which takes a second: it ends without a traceback.

Once a program runs, `utils.program.run_program` answers.
"""

from __future__ import annotations

import sys
from types import TracebackType


def end_quietly() -> None:
    """From now on an interrupt that nothing catches ends the process without a word."""
    report = sys.excepthook

    def report_others(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            report(kind, error, traceback)

    sys.excepthook = report_others
