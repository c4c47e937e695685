"""Hints about exchanges: they are accepted, change no result, and check what PopXL checks."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from numpy.random import Generator
from popart._internal import ir as _ir
from popxl import ops
from popxl.transforms import io_tile_exchange, merge_exchange
from popxl_addons.transforms.repeat_graph import repeat_graph

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


def listing(graph: popxl.Graph) -> list[str]:
    return [op.opType() for op in graph._pb_graph.getOps() if op.opType() != "Init"]


def test_independent_transfers_are_listed_as_one_op():
    with main_graph() as graph:
        buffer = popxl.remote_buffer((3,), popxl.float32, entries=2)
        stream = popxl.h2d_stream((3,), popxl.float32)
        with merge_exchange():
            a = ops.remote_load(buffer, 0)
            b = ops.host_load(stream)
        ops.host_store(popxl.d2h_stream((3,), popxl.float32), a + b)
        assert listing(graph) == ["MultiExchange", "Add", "HostStore"]
        (merged,) = (op for op in graph._pb_graph.getOps() if op.opType() == "MultiExchange")
        assert isinstance(merged, _ir.op.exchange.MultiExchangeOp)
        assert [t.id for t in merged.getOutputTensors()] == [a.id, b.id]
        run = [op.opType() for op in graph._pb_graph.getOpSchedule() if op.opType() != "Init"]
        assert run == ["RemoteLoad", "HostLoad", "Add", "HostStore"]
        assert graph._pb_graph.getOp(merged.id) == merged
        assert not any(map(merged.modifiesIndex, range(4)))
        graph._pb_graph.eraseOp(merged.id)
        assert listing(graph) == ["Add", "HostStore"]


def test_stores_of_what_loads_brought_come_together_after_the_loads():
    with main_graph() as graph:
        buffer = popxl.remote_buffer((3,), popxl.float32, entries=4)
        with merge_exchange():
            for t in [ops.remote_load(buffer, i) for i in range(2)]:
                ops.remote_store(buffer, 2, t * 2.0)
            ops.remote_load(buffer, ops.cast(t, popxl.int32)[:1])
        kinds = listing(graph)
        assert kinds.count("MultiExchange") == 2
        assert not {"RemoteLoad", "RemoteStore"} & set(kinds)


def test_a_transfer_alone_stays_itself():
    with main_graph() as graph:
        with merge_exchange():
            t = ops.host_load(popxl.h2d_stream((3,), popxl.float32))
        with io_tile_exchange():
            ops.host_store(popxl.d2h_stream((3,), popxl.float32), t)
        assert listing(graph) == ["HostLoad", "HostStore"]


def test_loads_into_a_tensor_write_it_merged_too():
    with main_graph() as graph:
        buffer = popxl.remote_buffer((3,), popxl.float32, entries=2)
        a, b = (ops.init((3,), popxl.float32) for _ in "ab")
        with io_tile_exchange():
            ops.remote_load_(buffer, 0, a)
            ops.remote_load_(buffer, 1, b)
        (merged,) = (op for op in graph._pb_graph.getOps() if op.opType() == "MultiExchange")
        assert [merged.modifiesIndex(i) for i in range(4)] == [True, False, True, False]


def test_a_graph_with_merged_transfers_can_be_moved(rng: Generator):
    x = rng.normal(size=(3, 2, 4)).astype(np.float32)
    ir = popxl.Ir()
    ir.num_host_transfers = 3
    with ir.main_graph, popxl.in_sequence():
        streams = [popxl.h2d_stream((4,), popxl.float32) for _ in "ab"]
        with merge_exchange():
            a, b = (ops.host_load(stream) for stream in streams)
        out = popxl.d2h_stream((4,), popxl.float32)
        ops.host_store(out, a - b)
    repeat_graph(ir.main_graph, 3)
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({streams[0]: x[:, 0], streams[1]: x[:, 1]})[out]
    np.testing.assert_array_equal(found, x[:, 0] - x[:, 1])
