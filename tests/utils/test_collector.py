"""The collector of cycles rests for a while, and only then."""

from __future__ import annotations

import gc

import pytest

from utils.collector import paused_collector


@pytest.fixture
def collecting():
    before = gc.isenabled()
    yield
    (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_rests_and_is_as_before(before: bool, collecting: None):
    (gc.enable if before else gc.disable)()
    with paused_collector():
        assert not gc.isenabled()
    assert gc.isenabled() is before
    with pytest.raises(ValueError, match="inside"):
        _fail_within()
    assert gc.isenabled() is before


def _fail_within():
    with paused_collector():
        raise ValueError("inside")
