"""Ctrl-C while a program imports its modules, which takes a second: it ends without a traceback.

Programs import this module before all others; once they run, `utils.program.run_program` answers.
"""

from __future__ import annotations

import sys
from types import TracebackType

_report = sys.excepthook


def _report_others(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _report(kind, error, traceback)


sys.excepthook = _report_others
