"""Windows of remote entries written in place, where nobody can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.passes.mark_uniform import Varying
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.passes.ssa import walk

from runtime.tests.popxl_torch.programs import build, kinds_of

LAYERS, ROWS, WIDTH = 3, 6, 4
TWISTS = ["used before", "another offset", "loaded again", "a view leaves"]


def _cache_program(ir: popxl.Ir, replicas: int, twist: str = "") -> tuple:
    """Each run writes one row of each layer's entry and sums up the entries."""
    buffer = popxl.remote_buffer((ROWS, WIDTH), popxl.float32, entries=LAYERS)
    grouping = ir.replica_grouping(group_size=1)
    host = np.zeros((replicas, ROWS, WIDTH) if replicas > 1 else (ROWS, WIDTH), "float32")
    kept = popxl.remote_variable(host, buffer, LAYERS - 1, replica_grouping=grouping)
    rows = popxl.h2d_stream((1, WIDTH), popxl.float32)
    slots = popxl.h2d_stream((1,), popxl.int32)
    sums = popxl.d2h_stream((WIDTH,), popxl.float32)

    def layer(
        total: popxl.Tensor, n: popxl.Tensor, row: popxl.Tensor, slot: popxl.Tensor
    ) -> tuple[popxl.Tensor, ...]:
        cache = ops.remote_load(buffer, n)
        before = cache * 1.0 if twist == "used before" else None
        ops.dynamic_update_(cache, slot, row + total, [0], [1], True)
        ops.remote_store(buffer, n + 0 if twist == "another offset" else n, cache)
        if twist == "loaded again":
            cache = ops.remote_load(buffer, n)
        if twist == "a view leaves":
            return ops.reshape(cache[0:1], (WIDTH,)), n
        total = ops.sum(cache, axis=0)
        return (total if before is None else total + ops.sum(before, axis=0)), n + 1

    row, slot = ops.host_load(rows), ops.host_load(slots)
    start = popxl.constant(np.zeros(WIDTH), popxl.float32)
    n = popxl.constant(0, popxl.int32)
    graph = ir.create_graph(layer, start, n, row, slot)
    total, _ = ops.repeat(graph, LAYERS, start, n, row, slot)
    ops.host_store(sums, total)
    return kept, rows, slots, sums


def _kinds(twist: str, varying: bool = False) -> list[str]:
    program = build(lambda ir: _cache_program(ir, 2, twist) and None, replicas=2)
    streams = {s for s in program.streams if s.to_device and s.spec.dtype == "float32"}
    sources = Varying(streams=streams if varying else set())
    functional, _ = specialise(to_functional(program), sources)
    return kinds_of(functional.main)


@pytest.mark.parametrize("varying", [False, True])
def test_load_update_store_becomes_one_write(varying: bool) -> None:
    kinds = _kinds("", varying)
    assert "RemoteUpdate" in kinds
    assert not {"RemoteLoad", "RemoteStore", "DynamicUpdate"} & set(kinds)


@pytest.mark.parametrize(
    "twist", ["used before", "another offset", "loaded again", "a view leaves"]
)
def test_whatever_could_tell_prevents_it(twist: str) -> None:
    assert "RemoteUpdate" not in _kinds(twist)


@pytest.mark.parametrize(
    "twist", ["", "used before", "another offset", "loaded again", "a view leaves"]
)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("uniform", [False, True])
def test_numbers_are_those_of_copies(
    twist: str, replicas: int, uniform: bool, rng: np.random.Generator
) -> None:
    data = rng.normal(size=(4, replicas, 1, WIDTH)).astype("float32")
    if uniform:
        data[:] = data[:, :1]
    results = {}
    for executor in ("plan", "interpreter"):
        ir = popxl.Ir(replication=replicas)
        ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.executor"] = executor
        with ir.main_graph, popxl.in_sequence():
            kept, rows, slots, sums = _cache_program(ir, replicas, twist)
        found = []
        with popxl.Session(ir, "ipu_hw") as session:
            for step, row in enumerate(data):
                slot = np.full((replicas, 1) if replicas > 1 else (1,), step, "int32")
                row = row if replicas > 1 else row[0]
                found.append(session.run({rows: row, slots: slot})[sums])
                found.append(np.array(session.get_tensor_data(kept)))
        results[executor] = found
    for got, wanted in zip(results["plan"], results["interpreter"], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_only_the_window_is_copied(rng: np.random.Generator, tmp_path: Path) -> None:
    ir = popxl.Ir()
    options = ir._pb_ir.getSessionOptions().engineOptions
    options["popxl_torch.trace"] = str(tmp_path / "trace.json")
    with ir.main_graph, popxl.in_sequence():
        _, rows, slots, _ = _cache_program(ir, 1)
    with popxl.Session(ir, "ipu_hw") as session:
        row = rng.normal(size=(1, WIDTH)).astype("float32")
        inputs = {rows: row, slots: np.zeros(1, "int32")}
        session.run(inputs)
        remote = session._engine.memory.remote
        before = {key: tensor.data_ptr() for key, tensor in remote.entries.items()}
        session.run(inputs)
        assert before == {key: tensor.data_ptr() for key, tensor in remote.entries.items()}
        (region,) = session._engine.trace.as_dict()["regions"]
    assert region["loaded_bytes"] > 0
    assert region["copied_bytes"] == 0


def _table_program(ir: popxl.Ir, store_first: bool, in_loop: bool) -> tuple:
    """Rows of a table are summed up where a number says so, else the table is replaced; between
    two runs the first may have to see what the other one did."""
    table = popxl.remote_buffer((ROWS, WIDTH), popxl.float32, entries=1)
    choice = popxl.h2d_stream((), popxl.bool)
    rows, sums = (
        popxl.h2d_stream((ROWS, WIDTH), popxl.float32),
        popxl.d2h_stream((ROWS, WIDTH), popxl.float32),
    )

    def replace(x: popxl.Tensor) -> popxl.Tensor:
        ops.remote_store(table, 0, x)
        return x

    def add(x: popxl.Tensor) -> popxl.Tensor:
        loaded = ops.remote_load(table, 0)
        if in_loop:  # behind the load, but before that of the next turn
            ops.remote_store(table, 0, loaded * 2.0)
        return x + loaded

    def add_some(x: popxl.Tensor) -> tuple[popxl.Tensor, ...]:
        return ops.repeat(ir.create_graph(add, x), 2, x)

    x = ops.host_load(rows)
    graphs = [ir.create_graph(build, x) for build in (add_some, replace)]
    loaded = None
    if store_first:
        loaded = ops.remote_load(table, 0)
        ops.remote_store(table, 0, x)
    (y,) = ops.conditional(ops.host_load(choice), *graphs, [x], [x])
    ops.host_store(sums, y if loaded is None else y + loaded)
    return choice, rows, sums


@pytest.mark.parametrize(
    ("store_first", "in_loop", "views"), [(False, False, 1), (True, False, 0), (False, True, 0)]
)
def test_loads_are_views_where_their_run_does_not_store(
    store_first: bool, in_loop: bool, views: int, rng: np.random.Generator
) -> None:
    program = build(lambda ir: _table_program(ir, store_first, in_loop) and None)
    functional, _ = specialise(to_functional(program), Varying())
    loads = [node for node in walk(functional.main) if node.kind == "RemoteLoad"]
    assert [bool(node.attrs.get("view")) for node in loads].count(True) == views
    data = rng.normal(size=(6, ROWS, WIDTH)).astype("float32")
    found = {}
    for executor in ("interpreter", "plan"):
        ir = popxl.Ir()
        ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.executor"] = executor
        with ir.main_graph, popxl.in_sequence():
            choice, rows, sums = _table_program(ir, store_first, in_loop)
        with popxl.Session(ir, "ipu_hw") as session:
            runs = [
                session.run({choice: np.array(n % 3 > 0), rows: x})[sums]
                for n, x in enumerate(data)
            ]
        found[executor] = np.stack(runs)
    np.testing.assert_array_equal(found["plan"], found["interpreter"])


@pytest.mark.parametrize(
    ("uses", "reads"),
    [
        ((), ((0, 0), (0, 0))),
        (((0, 2), (1, 3)), ((0, 3), (0, WIDTH))),
        (((4, 6),), ((4, 6), (0, WIDTH))),
        (((5, 2, -1), (0, 1)), ((0, 6), (0, WIDTH))),
        (((2, 2),), None),
        (("whole", (0, 1)), None),
    ],
)
def test_what_is_read_of_an_entry_is_known(uses: tuple, reads: object) -> None:
    """Rows of slices, or the whole entry; an update's result as well as a load's."""

    def program(ir: popxl.Ir) -> None:
        kept, loaded = (popxl.remote_buffer((ROWS, WIDTH), popxl.float32, 2) for _ in range(2))
        entry = popxl.constant(1, popxl.int32)
        row = ops.host_load(popxl.h2d_stream((1, WIDTH), popxl.float32))
        place = ops.host_load(popxl.h2d_stream((1,), popxl.int32))
        cache = ops.remote_load(kept, entry)
        ops.dynamic_update_(cache, place, row, [0], [1], True)
        ops.remote_store(kept, entry, cache)
        for t in (cache, ops.remote_load(loaded, entry)) if uses else ():
            for use in uses:
                part = t * 2.0 if use == "whole" else ops.slice(t, *use, axis=0)
                ops.host_store(popxl.d2h_stream(part.shape, part.dtype), part)

    functional, _ = specialise(to_functional(build(program)), Varying())
    found = [n for n in walk(functional.main) if n.kind in ("RemoteUpdate", "RemoteLoad")]
    assert len(found) == (2 if uses else 1)
    assert [node.attrs.get("reads") for node in found] == [reads] * len(found)
