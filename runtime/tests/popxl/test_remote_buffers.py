"""Remote buffers: attributes, loads and stores, what they keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops

from runtime.tests.popxl.programs import run


def test_attributes(main: popxl.Graph):
    first = popxl.remote_buffer((2, 3), popxl.float16)
    second = popxl.RemoteBuffer((4,), popxl.int32, 5)
    assert (first.remote_buffer_id, second.remote_buffer_id) == (1, 2)
    assert (first.tensor_shape, first.tensor_dtype, first.entries) == ((2, 3), popxl.float16, 1)
    assert (second.entries, second.meta_shape) == (5, ())
    assert first != second
    assert first == first
    assert len({first, second, first}) == 2


def test_ids_start_anew_in_every_ir(main: popxl.Graph):
    popxl.remote_buffer((), popxl.int32)
    assert popxl.remote_buffer((), popxl.int32).remote_buffer_id == 2


def test_needs_an_active_graph():
    with pytest.raises(RuntimeError):
        popxl.remote_buffer((), popxl.int32)


@pytest.mark.parametrize(("name", "value"), [("tensor_shape", (1,)), ("tensor_dtype", popxl.bool)])
def test_read_only_attributes(main: popxl.Graph, name: str, value: Any):
    with pytest.raises(AttributeError):
        setattr(popxl.remote_buffer((), popxl.int32), name, value)


def test_settable_attributes(main: popxl.Graph):
    buffer = popxl.remote_buffer((3,), popxl.int32)
    buffer.entries = 4
    buffer.meta_shape = (2, 3)
    assert (buffer.entries, buffer.meta_shape) == (4, (2, 3))
    buffer.set_remote_buffer_info(popxl.float32, (5,), 6)
    found = (buffer.tensor_dtype, buffer.tensor_shape, buffer.entries)
    assert found == (popxl.float32, (5,), 6)


@pytest.mark.parametrize("entries", [0, -1])
def test_number_of_entries(main: popxl.Graph, entries: int):
    message = "Entries must be a non-zero, positive integer"
    with pytest.raises(ValueError, match=message):
        popxl.remote_buffer((), popxl.int32, entries)
    buffer = popxl.remote_buffer((), popxl.int32)
    with pytest.raises(ValueError, match=message):
        buffer.entries = entries


def test_validation(main: popxl.Graph):
    buffer = popxl.remote_buffer((2,), popxl.float32)
    buffer.meta_shape = (4,)
    buffer.validate_tensor_matches_buffer(popxl.variable([1.0, 2.0]))
    buffer.validate_tensor_matches_buffer(popxl.variable([1.0] * 4), num_shards=2)
    for tensor, shards in [([1.0], 1), ([1, 2], 1), ([1.0, 2.0], 2)]:
        with pytest.raises(ValueError, match="does not match buffer"):
            buffer.validate_tensor_matches_buffer(popxl.variable(tensor), shards)


def test_names_and_specs(main: popxl.Graph):
    buffer = popxl.remote_buffer((2,), popxl.float32, 2)
    buffer.meta_shape = (4,)
    offset = popxl.constant(1, name="where")
    plain, named = ops.remote_load(buffer, offset), ops.remote_load(buffer, 0, name="mine")
    assert plain.name == "id_1_offset_where_remote_loaded"
    assert named.name == "mine_remote_loaded"
    assert (plain.shape, plain.dtype, plain.meta_shape) == ((2,), popxl.float32, (4,))
    names = [t.name for t in main.tensors]
    assert "mine_remote_load" in names
    constant = main.get_tensor("offset")
    assert (constant.dtype, constant.shape) == (popxl.uint32, ())


def test_load_in_place_takes_the_meta_shape(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    buffer = popxl.remote_buffer((2,), popxl.float32)
    popxl.remote_variable([5.0, 6.0], buffer)
    buffer.meta_shape = (4,)
    t = popxl.variable([1.0, 2.0])
    alias = ops.remote_load_(buffer, 0, t)
    assert t.meta_shape == alias.meta_shape == (4,)
    for found in run(make_session, ir, t, alias):
        np.testing.assert_array_equal(found, [5.0, 6.0])


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1, 2]])
def test_mismatches(main: popxl.Graph, values: Any):
    buffer, t = popxl.remote_buffer((2,), popxl.float32), popxl.variable(values)
    with pytest.raises(ValueError, match="does not match buffer"):
        ops.remote_store(buffer, 0, t)
    with pytest.raises(ValueError, match="does not match buffer"):
        ops.remote_load_(buffer, 0, t)


@pytest.mark.parametrize("offset", [np.int32(0), 0.0, "0", None])
def test_offsets_of_other_types(main: popxl.Graph, offset: Any):
    buffer = popxl.remote_buffer((), popxl.float32)
    with pytest.raises(TypeError):
        ops.remote_load(buffer, offset)


def test_offsets_of_another_graph(ir: popxl.Ir, main: popxl.Graph):
    buffer, offset = popxl.remote_buffer((), popxl.float32), popxl.constant(0)
    with ir.create_empty_graph(), pytest.raises(ValueError, match="not in the current Graph"):
        ops.remote_load(buffer, offset)


@pytest.mark.parametrize("dtype", [popxl.int32, popxl.uint32, popxl.int16, popxl.uint8])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_offset_tensors(
    ir: popxl.Ir, main: popxl.Graph, make_session: Any, dtype: popxl.dtype, shape: Any
):
    buffer = popxl.remote_buffer((), popxl.float32, 3)
    for entry in range(3):
        popxl.remote_variable(float(entry), buffer, entry)
    offset = popxl.constant(np.full(shape, 2), dtype)
    (found,) = run(make_session, ir, ops.remote_load(buffer, offset))
    assert found == 2.0


@pytest.mark.parametrize("entry", [3, -1])
def test_an_entry_that_is_not_there(ir: popxl.Ir, main: popxl.Graph, make_session: Any, entry: int):
    buffer = popxl.remote_buffer((), popxl.float32, 3)
    loaded = ops.remote_load(buffer, popxl.constant(entry, popxl.int32))
    ops.host_store(popxl.d2h_stream((), popxl.float32), loaded)
    with make_session(ir) as session, pytest.raises(popart.popart_runtime_error, match="3 entries"):
        session.run()


def test_a_load_is_a_copy(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    buffer = popxl.remote_buffer((2,), popxl.float32)
    kept = popxl.remote_variable([1.0, 2.0], buffer)
    first = ops.remote_load(buffer, 0)
    first += 10.0
    again = ops.remote_load(buffer, 0)
    found = run(make_session, ir, first, again)
    np.testing.assert_array_equal(found[0], [11.0, 12.0])
    np.testing.assert_array_equal(found[1], [1.0, 2.0])
    np.testing.assert_array_equal(kept._value.data.host, [1.0, 2.0])


def test_a_stored_value_is_a_copy(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    buffer = popxl.remote_buffer((2,), popxl.float32)
    x = popxl.variable([1.0, 2.0])
    ops.remote_store(buffer, 0, x)
    x += 10.0
    (found,) = run(make_session, ir, ops.remote_load(buffer, 0))
    np.testing.assert_array_equal(found, [1.0, 2.0])


@pytest.mark.parametrize("replicas", [1, 2])
def test_entries_that_no_variable_covers_persist(make_session: Any, replicas: int):
    """From run to run and from context to context; at first they are zero."""
    ir = popxl.Ir(replicas)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        covered = popxl.remote_variable([1.0, 1.0], buffer, 1)
        steps = popxl.variable(
            np.arange(1, replicas + 1, dtype="float32") if replicas > 1 else 1.0,
            replica_grouping=ir.replica_grouping(group_size=1),
        )
        for entry in range(2):
            ops.remote_store(buffer, entry, ops.remote_load(buffer, entry) + steps)
        ys = popxl.d2h_stream((2,), popxl.float32)
        ops.host_store(ys, ops.remote_load(buffer, 0))
    wanted = np.outer(np.arange(1, replicas + 1), [1.0, 1.0])
    wanted = wanted if replicas > 1 else wanted[0]
    session = make_session(ir, weights_to_host_on_exit=False)
    for context in range(2):
        with session:
            for step in (1, 2):
                found = session.run()[ys]
                np.testing.assert_array_equal(found, wanted * (2 * context + step))
    with session:
        session.write_variable_data(covered, np.zeros(2, "float32"))
        session.weights_to_host()
        np.testing.assert_array_equal(session.run()[ys], wanted * 5)
        np.testing.assert_array_equal(session.get_tensor_data(covered), [1.0, 1.0])


@pytest.mark.parametrize("replicas", [2, 4])
def test_each_replica_has_its_own_offset(make_session: Any, replicas: int):
    ir = popxl.Ir(replicas)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((), popxl.float32, replicas)
        for entry in range(replicas):
            popxl.remote_variable(float(entry + 10), buffer, entry)
        ids = popxl.variable(
            np.arange(replicas)[::-1], replica_grouping=ir.replica_grouping(group_size=1)
        )
        ys, after = (popxl.d2h_stream((), popxl.float32) for _ in range(2))
        loaded = ops.remote_load(buffer, ids)
        ops.host_store(ys, loaded)
        ops.remote_store(buffer, ids, loaded * 2.0)
        ops.host_store(after, ops.remote_load(buffer, 0))
    with make_session(ir) as session:
        outputs = session.run()
    np.testing.assert_array_equal(outputs[ys], np.arange(replicas)[::-1] + 10)
    # Only the last replica stored to its own copy of entry 0.
    np.testing.assert_array_equal(outputs[after], [10.0] * (replicas - 1) + [20.0])


def test_several_variables_in_one_buffer(ir: popxl.Ir, main: popxl.Graph, make_session: Any):
    buffer = popxl.remote_buffer((2,), popxl.float32, 3)
    kept = [popxl.remote_variable([float(i)] * 2, buffer, i) for i in range(3)]
    ops.remote_store(buffer, 1, ops.remote_load(buffer, 2) * 10.0)
    with make_session(ir) as session:
        session.run()
    found = [session.get_tensor_data(v)[0] for v in kept]
    assert found == [0.0, 20.0, 2.0]
