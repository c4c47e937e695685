"""What programs load together, and tables of which only rows are used."""

from __future__ import annotations

import popxl
import pytest
from popxl import ops
from popxl_torch.passes.find_slabs import LoadedTogether, find_slabs, find_stored
from popxl_torch.passes.pipeline import to_functional

from runtime.tests.popxl_torch.programs import build


def _buffer(entries: int = 1) -> popxl.RemoteBuffer:
    return popxl.remote_buffer((4, 4), popxl.float32, entries)


def _groups(table_is_used: bool = False) -> list[LoadedTogether]:
    """Rows of a table; pairs in a loop, and one of each pair again; a buffer that is stored to."""

    def body(ir: popxl.Ir) -> None:
        first, second, table, kept = _buffer(3), _buffer(3), _buffer(), _buffer()

        def layer(h: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            a, b = ops.remote_load(first, n), ops.remote_load(second, n)
            return a @ (b @ h), n + 1

        ids = ops.host_load(popxl.h2d_stream((4,), popxl.int32))
        with popxl.name_scope("table"):
            loaded = ops.remote_load(table, 0)
            h = ops.gather(loaded, ids, axis=0)
            if table_is_used:
                h = h @ loaded
        with popxl.name_scope("layers"):
            n = popxl.constant(0, popxl.int32)
            h, _ = ops.repeat(ir.create_graph(layer, h, n), 3, h, n)
        with popxl.name_scope("again"):
            h = ops.remote_load(second, 2) @ h
        ops.remote_store(kept, 0, h)
        ops.host_store(popxl.d2h_stream(h.shape, h.dtype), ops.remote_load(kept, 0))

    return find_slabs(to_functional(build(body)))


def _shown(groups: list[LoadedTogether]) -> list[tuple[str, int, int, bool]]:
    return [(g.phase, len(g.buffers), g.places, g.gathered) for g in groups]


def test_loads_that_follow_each_other_with_one_offset_are_together():
    assert _shown(_groups()) == [("table", 1, 1, True), ("layers", 2, 1, False)]


def test_a_table_that_is_used_whole_is_loaded():
    assert _shown(_groups(table_is_used=True)) == [("table", 1, 1, False), ("layers", 2, 1, False)]


def test_stores_of_one_block_with_one_offset_are_together():
    def body(ir: popxl.Ir) -> None:
        keys, values, both, other = _buffer(3), _buffer(3), _buffer(3), _buffer(2)

        def layer(h: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            for buffer in (keys, values):
                whole = ops.remote_load(buffer, n)
                ops.remote_store(buffer, n, whole + h)
            return h, n + 1

        h = ops.host_load(popxl.h2d_stream((4, 4), popxl.float32))
        with popxl.name_scope("a/layers"):
            n = popxl.constant(0, popxl.int32)
            ops.repeat(ir.create_graph(layer, h, n), 3, h, n)
        with popxl.name_scope("end"):
            ops.remote_store(other, 1, h)
            ops.remote_store(both, n, h)
            ops.remote_store(values, n, h)

    groups = find_stored(to_functional(build(body)))
    assert [(g.phase, len(g.buffers), g.places) for g in groups] == [
        ("layers", 3, 1),
        ("end", 1, 1),
    ]


@pytest.mark.parametrize(("loaded_inside", "gathered"), [(True, True), (False, False)])
def test_rows_count_where_the_table_is_loaded(loaded_inside: bool, gathered: bool):
    def body(ir: popxl.Ir) -> None:
        table = _buffer(1)

        def pick(ids: popxl.Tensor, *given: popxl.Tensor) -> tuple[popxl.Tensor, ...]:
            rows = given[0] if given else ops.remote_load(table, 0)
            return ops.cast(ops.gather(rows, ids, axis=0)[0], popxl.int32), *given

        ids = ops.host_load(popxl.h2d_stream((4,), popxl.int32))
        given = () if loaded_inside else (ops.remote_load(table, 0),)
        ids, *_ = ops.repeat(ir.create_graph(pick, ids, *given), 3, ids, *given)
        ops.host_store(popxl.d2h_stream(ids.shape, ids.dtype), ids)

    (group,) = find_slabs(to_functional(build(body)))
    assert group.gathered is gathered
