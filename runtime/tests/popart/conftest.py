"""Fixtures of the stand-ins' tests."""

from __future__ import annotations

from collections.abc import Iterator

import popxl
import pytest


@pytest.fixture
def main() -> Iterator[popxl.Graph]:
    """The main graph of two replicas, entered."""
    with popxl.Ir(2).main_graph as graph, popxl.in_sequence():
        yield graph
