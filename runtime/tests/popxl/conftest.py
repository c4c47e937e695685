"""Fixtures of the front end's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import popxl
import pytest
from popxl.context import get_current_context

MakeSession = Callable[..., popxl.Session]


@pytest.fixture(params=["plan", "interpreter"])
def make_session(request: pytest.FixtureRequest) -> MakeSession:
    """``popxl.Session`` on each executor in turn: they are each other's oracle."""

    def make(ir: popxl.Ir, device_desc: Any = "ipu_hw", **options: Any) -> popxl.Session:
        ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.executor"] = request.param
        return popxl.Session(ir, device_desc, **options)

    return make


@pytest.fixture
def ir() -> popxl.Ir:
    """A new Ir of one replica."""
    return popxl.Ir()


@pytest.fixture
def main(ir: popxl.Ir) -> Iterator[popxl.Graph]:
    """The main graph of ``ir``, entered."""
    with ir.main_graph as graph, popxl.in_sequence():
        yield graph


@pytest.fixture
def clean_context() -> Iterator[Any]:
    """The context, emptied afterwards: for tests that leave something in it."""
    yield get_current_context()
    get_current_context()._reset()
