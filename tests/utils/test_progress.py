"""Progress is shown on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from utils.progress import byte_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_bar_on_a_terminal_only(stream, enabled, monkeypatch):
    stream.truncate(0)
    monkeypatch.setattr(sys, "stderr", stream)
    with byte_progress(2048, enabled, "reading") as advance:
        advance(1024)
        advance(1024)
    shown = "reading: 100%" in stream.getvalue()
    assert shown == (enabled and stream.isatty())
    assert shown or stream.getvalue() == ""
