"""Hints about exchanges: they are accepted, change no result, and check what PopXL checks."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popxl import ops
from popxl.transforms import io_tile_exchange, merge_exchange

from runtime.tests.popxl.ops.op_testing import main_graph


@pytest.mark.parametrize("exchange", [merge_exchange, io_tile_exchange])
def test_results_are_those_without_it(rng: Generator, exchange: object):
    x, y = (rng.normal(size=3).astype(np.float32) for _ in "ab")
    with main_graph() as graph:
        streams = [popxl.h2d_stream((3,), popxl.float32) for _ in "ab"]
        out = popxl.d2h_stream((3,), popxl.float32)
        with exchange():
            a, b = (ops.host_load(stream) for stream in streams)
        ops.host_store(out, a + b)
    with popxl.Session(graph.ir, "ipu_hw") as session:
        found = session.run(dict(zip(streams, (x, y), strict=True)))[out]
    np.testing.assert_array_equal(found, x + y)


def test_transfers_inside_are_on_io_tiles():
    with main_graph():
        stream = popxl.h2d_stream((3,), popxl.float32)
        with io_tile_exchange():
            inside = ops.host_load(stream)
        assert (inside.tile_set, ops.host_load(stream).tile_set) == ("io", "compute")


def exchange_a_load_and_its_store(verify: bool) -> None:
    into = popxl.h2d_stream((3,), popxl.float32)
    out = popxl.d2h_stream((3,), popxl.float32)
    with io_tile_exchange(verify):
        ops.host_store(out, ops.host_load(into))


def test_a_store_of_what_a_load_brought_cannot_be_merged():
    with main_graph():
        with pytest.raises(RuntimeError, match="More than one Op remained"):
            exchange_a_load_and_its_store(True)
        exchange_a_load_and_its_store(False)


def test_the_check_ends_with_the_block():
    with main_graph() as graph:
        stream = popxl.h2d_stream((3,), popxl.float32)
        with io_tile_exchange():
            ops.host_load(stream)
        context = popxl.context.get_current_context()
        assert context._hooks == {}
        assert context.graph is graph
