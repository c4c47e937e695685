"""What all tests of the runtime share."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from popxl.context import get_current_context


@pytest.fixture(autouse=True)
def fresh_context() -> Iterator[None]:
    """Empties popxl's context after each test: blocks that raise leave something in it."""
    yield
    get_current_context()._reset()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: other numbers in every test, the same each run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
