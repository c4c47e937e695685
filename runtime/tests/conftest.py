"""What all tests of the runtime share."""

from __future__ import annotations

import zlib

import numpy as np
import pytest


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: other numbers in every test, the same each run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
