"""Variables: host shapes, groupings, retrieval, memory maps, remote and sharded ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops

Rng = np.random.Generator

# replicas, stride, group size
GROUPINGS = [(1, 1, 1), (2, 1, 1), (2, 1, 2), (4, 1, 4), (4, 1, 2), (4, 2, 2), (4, 1, 1)]
IRREGULAR = [0, 1, 1, 0]


def grouping_of(ir: popxl.Ir, stride: int, size: int) -> popxl.ReplicaGrouping:
    return ir.replica_grouping(stride=stride, group_size=size)


def grouped_data(rng: Rng, groups: int, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=(groups, *shape) if groups > 1 else shape).astype("float32")


def on_replicas(data: np.ndarray, grouping: popxl.ReplicaGrouping) -> np.ndarray:
    """(replicas, ...): what each replica holds."""
    groups = data if grouping.num_groups > 1 else data[np.newaxis]
    return np.stack([groups[g] for g in grouping.assignment])


def first_members(values: np.ndarray, grouping: popxl.ReplicaGrouping) -> np.ndarray:
    """Host value made of the first replica of each group."""
    firsts = [grouping.assignment.index(g) for g in range(grouping.num_groups)]
    return values[firsts] if len(firsts) > 1 else values[0]


def replica_ids(ir: popxl.Ir) -> popxl.Tensor:
    """A float32 scalar that is each replica's number."""
    ids = np.arange(ir.replication_factor, dtype="float32")
    each = ir.replica_grouping(group_size=1)
    return popxl.variable(ids if len(ids) > 1 else ids[0], replica_grouping=each)


def store(tensor: popxl.Tensor) -> popxl.DeviceToHostStream:
    stream = popxl.d2h_stream(tensor.shape, tensor.dtype)
    ops.host_store(stream, tensor)
    return stream


class TestPlain:
    def test_attributes(self, ir: popxl.Ir, main: popxl.Graph):
        w = popxl.variable([[1.0, 2.0]], name="w")
        assert (w.shape, w.shape_on_host, w.shape_on_replica) == ((1, 2),) * 3
        assert w.retrieval_mode == "one_per_group"
        assert w.replica_grouping == ir.replica_grouping()
        assert w in main.variables

    def test_only_in_the_main_graph(self, ir: popxl.Ir):
        message = "You cannot initialise a variable tensor within a graph"
        with ir.create_empty_graph(), pytest.raises(ValueError, match=message):
            popxl.variable(1)

    def test_retrieval_modes(self, main: popxl.Graph):
        assert popxl.variable(1, retrieval_mode="all_replicas").retrieval_mode == "all_replicas"
        with pytest.raises(ValueError, match="retrieval_mode"):
            popxl.variable(1, retrieval_mode="all")  # type: ignore[arg-type]

    def test_later_changes_of_the_source_have_no_effect(
        self, ir: popxl.Ir, main: popxl.Graph, make_session: Any
    ):
        source = np.zeros(3, "float32")
        frozen_view = np.broadcast_to(source, (2, 3))
        variables = [popxl.variable(source), popxl.variable(frozen_view)]
        streams = [store(v) for v in variables]
        source[:] = 1
        with make_session(ir) as session:
            found = session.run()
        for stream in streams:
            np.testing.assert_array_equal(found[stream], np.zeros(stream.shape))

    def test_arrays_that_nobody_can_write_are_adopted(self, main: popxl.Graph):
        source = np.arange(6, dtype="float32")
        source.flags.writeable = False
        adopted = popxl.variable(source.reshape(2, 3).T)
        assert np.shares_memory(adopted._value.data.host, source)
        assert not np.shares_memory(popxl.variable(source, popxl.int32)._value.data.host, source)

    def test_no_ungrouped_leading_axis(self, main: popxl.Graph):
        assert popxl.variable(np.zeros((1, 3))).shape == (1, 3)

    @pytest.mark.parametrize("dtype", ["bool", "int32", "uint32", "float16", "float32", "float64"])
    def test_dtypes_go_to_the_device_and_back(
        self, ir: popxl.Ir, main: popxl.Graph, make_session: Any, rng: Rng, dtype: str
    ):
        data = (rng.normal(size=5) * 2).astype(dtype) if dtype != "uint32" else np.arange(5)
        data = data.astype(dtype)
        w = popxl.variable(data, popxl.dtype.from_name(dtype))
        stream = store(w)
        with make_session(ir) as session:
            found = session.run()[stream]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, data)
        np.testing.assert_array_equal(session.get_tensor_data(w), data)

    def test_float8(self, ir: popxl.Ir, main: popxl.Graph, make_session: Any, rng: Rng):
        from popxl.fp8_utils import host_pow2scale_cast_to_fp8

        data = rng.normal(size=5).astype("float32")
        w = popxl.variable(data, popxl.float8_143, log2_scale=1)
        stream = store(w)
        wanted = host_pow2scale_cast_to_fp8(data, popxl.float8_143, 1)
        session = make_session(ir)
        with session:
            np.testing.assert_array_equal(session.run()[stream], wanted)
        np.testing.assert_array_equal(session.get_tensor_data(w), wanted)


@pytest.mark.parametrize(("replicas", "stride", "size"), GROUPINGS)
class TestGroupings:
    def test_shapes(self, replicas: int, stride: int, size: int, rng: Rng):
        ir = popxl.Ir(replicas)
        grouping = grouping_of(ir, stride, size)
        with ir.main_graph:
            w = popxl.variable(
                grouped_data(rng, grouping.num_groups, (3,)), replica_grouping=grouping
            )
        assert w.shape == w.shape_on_replica == (3,)
        assert w.shape_on_host == ((grouping.num_groups, 3) if grouping.num_groups > 1 else (3,))
        assert w.replica_grouping == grouping

    def test_each_replica_gets_its_groups_slice(
        self, make_session: Any, rng: Rng, replicas: int, stride: int, size: int
    ):
        ir = popxl.Ir(replicas)
        grouping = grouping_of(ir, stride, size)
        data = grouped_data(rng, grouping.num_groups, (3,))
        with ir.main_graph:
            stream = store(popxl.variable(data, replica_grouping=grouping))
        with make_session(ir) as session:
            found = session.run()[stream]
        wanted = on_replicas(data, grouping)
        np.testing.assert_array_equal(found, wanted if replicas > 1 else wanted[0])

    @pytest.mark.parametrize("mode", ["one_per_group", "all_replicas"])
    def test_what_comes_back(
        self, make_session: Any, rng: Rng, replicas: int, stride: int, size: int, mode: Any
    ):
        """After an update that differs between all replicas."""
        ir = popxl.Ir(replicas)
        grouping = grouping_of(ir, stride, size)
        data = grouped_data(rng, grouping.num_groups, (3,))
        with ir.main_graph, popxl.in_sequence():
            w = popxl.variable(data, replica_grouping=grouping, retrieval_mode=mode)
            ops.add_(w, replica_ids(ir))
        session = make_session(ir)
        values = on_replicas(data, grouping)
        every = mode == "all_replicas" and size > 1
        before = values if every else first_members(values, grouping)
        np.testing.assert_array_equal(session.get_tensor_data(w), before)
        values = values + np.arange(replicas, dtype="float32")[:, None]
        with session:
            session.run()
            inside = session.get_tensor_data(w).copy()
        after = values if every else first_members(values, grouping)
        np.testing.assert_array_equal(inside, after)
        np.testing.assert_array_equal(session.get_tensor_data(w), after)

    def test_remote(self, make_session: Any, rng: Rng, replicas: int, stride: int, size: int):
        ir = popxl.Ir(replicas)
        grouping = grouping_of(ir, stride, size)
        data = [grouped_data(rng, grouping.num_groups, (3,)) for _ in range(2)]
        with ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((3,), popxl.float32, 2)
            kept = [
                popxl.remote_variable(d, buffer, i, replica_grouping=grouping)
                for i, d in enumerate(data)
            ]
            loaded = ops.remote_load(buffer, 1)
            stream = store(loaded)
            ops.remote_store(buffer, 0, loaded * 2.0)
        assert kept[0].shape == (3,)
        session = make_session(ir)
        with session:
            found = session.run()[stream]
        wanted = on_replicas(data[1], grouping)
        np.testing.assert_array_equal(found, wanted if replicas > 1 else wanted[0])
        np.testing.assert_array_equal(session.get_tensor_data(kept[0]), data[1] * 2)
        np.testing.assert_array_equal(session.get_tensor_data(kept[1]), data[1])


def test_default_grouping_has_no_leading_axis():
    ir = popxl.Ir(4)
    with ir.main_graph:
        assert popxl.variable(np.zeros((4, 3))).shape == (4, 3)


@pytest.mark.parametrize("data", [np.zeros((3, 3)), np.zeros(3), 1.0])
def test_a_wrong_leading_axis(data: Any):
    ir = popxl.Ir(4)
    with ir.main_graph, pytest.raises(popart.popart_exception, match="leading axis"):
        popxl.variable(data, replica_grouping=ir.replica_grouping(group_size=1))


def test_an_irregular_grouping(make_session: Any, rng: Rng):
    ir = popxl.Ir(4)
    grouping = ir.replica_grouping_from_assignments(IRREGULAR)
    data = grouped_data(rng, 2, (3,))
    with ir.main_graph, popxl.in_sequence():
        w = popxl.variable(data, replica_grouping=grouping)
        stream = store(w)
        ops.add_(w, replica_ids(ir))
    assert w.shape_on_host == (2, 3)
    session = make_session(ir)
    with session:
        np.testing.assert_array_equal(session.run()[stream], data[IRREGULAR])
    first_ids = np.array([[0], [1]], "float32")
    np.testing.assert_array_equal(session.get_tensor_data(w), data + first_ids)
    session.write_variable_data(w, data)
    with session:
        np.testing.assert_array_equal(session.run()[stream], data[IRREGULAR])


class TestMemmap:
    @pytest.fixture
    def source(self, tmp_path: Path) -> np.memmap:
        found = np.memmap(tmp_path / "map", "float32", "w+", shape=(2, 3))
        found[...] = np.arange(6).reshape(2, 3)
        found.flush()
        return found

    def test_fetching_writes_the_file(
        self,
        ir: popxl.Ir,
        main: popxl.Graph,
        make_session: Any,
        source: np.memmap,
        tmp_path: Path,
    ):
        w = popxl.variable(source)
        w += 1.0
        session = make_session(ir)
        assert session.get_tensor_data(w) is source
        with session:
            session.run()
            np.testing.assert_array_equal(source, np.arange(6).reshape(2, 3))
            assert session.get_tensor_data(w) is source
            np.testing.assert_array_equal(source, np.arange(6).reshape(2, 3) + 1)
            session.run()
        on_disk = np.fromfile(tmp_path / "map", "float32").reshape(2, 3)
        np.testing.assert_array_equal(on_disk, np.arange(6).reshape(2, 3) + 2)
        session.write_variable_data(w, np.zeros((2, 3), "float32"))
        np.testing.assert_array_equal(source, np.zeros((2, 3)))
        with session:
            session.run()
        np.testing.assert_array_equal(source, np.ones((2, 3)))

    def test_grouped(self, make_session: Any, source: np.memmap):
        ir = popxl.Ir(2)
        with ir.main_graph, popxl.in_sequence():
            w = popxl.variable(source, replica_grouping=ir.replica_grouping(group_size=1))
            ops.add_(w, replica_ids(ir))
        with make_session(ir) as session:
            session.run()
        np.testing.assert_array_equal(source, [[0, 1, 2], [4, 5, 6]])

    def test_remote(self, ir: popxl.Ir, main: popxl.Graph, make_session: Any, source: np.memmap):
        buffer = popxl.remote_buffer((2, 3), popxl.float32)
        popxl.remote_variable(source, buffer)
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) * 2.0)
        with make_session(ir) as session:
            session.run()
        np.testing.assert_array_equal(source, np.arange(6).reshape(2, 3) * 2)

    @pytest.mark.parametrize("dtype", [popxl.float16, popxl.int32])
    def test_conversion(self, main: popxl.Graph, source: np.memmap, dtype: popxl.dtype):
        with pytest.raises(ValueError, match="dtype"):
            popxl.variable(source, dtype)

    def test_read_only(
        self,
        ir: popxl.Ir,
        main: popxl.Graph,
        make_session: Any,
        source: np.memmap,
        tmp_path: Path,
    ):
        fixed = np.memmap(tmp_path / "map", "float32", "r", shape=(2, 3))
        w, other = popxl.variable(fixed), popxl.variable(1.0)
        stream = store(w + other)
        session = make_session(ir)
        assert session.weights_to_host_on_exit is False
        np.testing.assert_array_equal(session.get_tensor_data(w), source)
        with session:
            np.testing.assert_array_equal(session.run()[stream], source + 1)
            with pytest.raises(Exception, match="read-only") as caught:
                session.weights_to_host()
            assert type(caught.value) is Exception
            with pytest.raises(Exception, match="read-only"):
                session.get_tensor_data(other)
        np.testing.assert_array_equal(session.get_tensor_data(w), source)

    def test_read_only_and_unused(
        self, ir: popxl.Ir, main: popxl.Graph, make_session: Any, source: np.memmap, tmp_path: Path
    ):
        popxl.variable(np.memmap(tmp_path / "map", "float32", "r"))
        n = popxl.variable(0)
        n += 1
        session = make_session(ir)
        with session:
            session.run()
        assert session.get_tensor_data(n) == 0

    def test_irregular_grouping(
        self, make_session: Any, source: np.memmap, caplog: pytest.LogCaptureFixture
    ):
        ir = popxl.Ir(4)
        grouping = ir.replica_grouping_from_assignments(IRREGULAR)
        with ir.main_graph, caplog.at_level(logging.WARNING, "popxl"):
            w = popxl.variable(source, name="w", replica_grouping=grouping)
            w += 1.0
        assert "memmap" in caplog.text
        with make_session(ir) as session:
            session.run()
        np.testing.assert_array_equal(source, np.arange(6).reshape(2, 3))
        assert not isinstance(session.get_tensor_data(w), np.memmap)
        np.testing.assert_array_equal(session.get_tensor_data(w), source + 1)


class TestSharded:
    def test_needs_replicas(self, ir: popxl.Ir, main: popxl.Graph):
        message = "It must be greater than 1 to create a replica sharded variable"
        with pytest.raises(ValueError, match=message):
            popxl.remote_replica_sharded_variable([1.0], popxl.remote_buffer((1,), popxl.float32))
        with pytest.raises(ValueError, match=message):
            popxl.replica_sharded_variable([1.0])

    @pytest.mark.parametrize(
        ("groups", "shape", "shard_over", "length", "full"),
        [
            ((1, 4), (2, 3), None, 2, (2, 3)),
            ((1, 4), (2, 3), 2, 3, (2, 3)),
            ((1, 4), (2, 3), 1, 6, (2, 3)),
            ((1, 2), (2, 5, 3), None, 8, (5, 3)),
            ((2, 2), (2, 3), 2, 2, (3,)),
            ((1, 1), (4, 5), None, 5, (5,)),
        ],
    )
    def test_buffers(self, groups: Any, shape: Any, shard_over: Any, length: int, full: Any):
        ir = popxl.Ir(4)
        with ir.main_graph:
            buffer = popxl.replica_sharded_buffer(
                shape, popxl.float32, ir.replica_grouping(*groups), shard_over, entries=3
            )
        assert buffer.tensor_shape == (length,)
        assert buffer.meta_shape == full
        assert buffer.entries == 3

    def test_buffer_errors(self):
        ir = popxl.Ir(8)
        with ir.main_graph:
            pairs = ir.replica_grouping(group_size=2)
            with pytest.raises(ValueError, match="must be less than or equal to the replica group"):
                popxl.replica_sharded_buffer((4, 2), popxl.float32, pairs, 4)
            with pytest.raises(ValueError, match="must be divisible"):
                popxl.replica_sharded_buffer((4,), popxl.float32, shard_over=3)

    def test_buffer_for_an_irregular_grouping(self):
        ir = popxl.Ir(8)
        grouping = ir.replica_grouping_from_assignments([0, 0, 1, 1, 0, 0, 1, 1])
        with ir.main_graph:
            buffer = popxl.replica_sharded_buffer((4, 6), popxl.float32, grouping)
        assert (buffer.tensor_shape, buffer.meta_shape) == ((3,), (6,))

    def test_meta_shape_of_the_buffer(self):
        ir = popxl.Ir(2)
        data = np.zeros((2, 3), "float32")
        with ir.main_graph:
            buffer = popxl.remote_buffer((3,), popxl.float32, 2)
            w = popxl.remote_replica_sharded_variable(data, buffer, 0)
            assert buffer.meta_shape == (2, 3)
            assert w.shape == w.shape_on_host == (2, 3)
            assert w.location_info.isSharded()
            with pytest.raises(ValueError, match="meta_shape"):
                popxl.remote_replica_sharded_variable(data.T, buffer, 1)

    @pytest.mark.parametrize(("replicas", "shard_over"), [(2, 2), (4, 4), (4, 2), (4, 1)])
    @pytest.mark.parametrize("nelms", [1, 6, 8])
    def test_which_replica_holds_which_shard(
        self, make_session: Any, rng: Rng, replicas: int, shard_over: int, nelms: int
    ):
        ir = popxl.Ir(replicas)
        data = rng.normal(size=nelms).astype("float32")
        with ir.main_graph, popxl.in_sequence():
            buffer = popxl.replica_sharded_buffer((nelms,), popxl.float32, None, shard_over, 2)
            w = popxl.remote_replica_sharded_variable(data, buffer, 1)
            shard = ops.remote_load(buffer, 1)
            stream = store(shard)
            ops.remote_store(buffer, 1, shard * 2.0)
        assert shard.meta_shape == (nelms,)
        length = -(-nelms // shard_over)
        pieces = np.pad(data, (0, length * shard_over - nelms)).reshape(shard_over, length)
        session = make_session(ir)
        with session:
            found = session.run()[stream]
        np.testing.assert_array_equal(found, np.tile(pieces, (replicas // shard_over, 1)))
        np.testing.assert_array_equal(session.get_tensor_data(w), data * 2)

    @pytest.mark.parametrize(
        ("groups", "shard_over"), [((1, 2), None), ((2, 2), 2), ((1, 4), 2), ((1, 4), None)]
    )
    def test_on_the_device(self, make_session: Any, rng: Rng, groups: Any, shard_over: Any):
        ir = popxl.Ir(4)
        grouping = ir.replica_grouping(*groups)
        data = grouped_data(rng, grouping.num_groups, (2, 3)).round()
        count = shard_over or grouping.group_size
        holders = ir.replica_grouping(grouping.stride, count)
        with ir.main_graph, popxl.in_sequence():
            w, shard = popxl.replica_sharded_variable(
                data, name="w", replica_grouping=grouping, shard_over=shard_over
            )
            full = ops.collectives.replicated_all_gather(shard, group=holders)
            stream = store(full)
            ops.add_(shard, popxl.constant(np.ones(shard.shape, "float32")))
        assert shard.name == "w_rts_remote_loaded"
        assert shard.shape == (-(-6 // count),)
        assert shard.meta_shape == w.shape == full.shape == (2, 3)
        wanted = on_replicas(data, grouping)
        session = make_session(ir)
        with session:
            for step in range(2):  # the shard lives across runs
                np.testing.assert_array_equal(session.run()[stream], wanted + step)
        np.testing.assert_array_equal(session.get_tensor_data(w), data + 2)
        session.write_variable_data(w, data)
        with session:
            np.testing.assert_array_equal(session.run()[stream], wanted)

    def test_conversion_options_apply(self, rng: Rng):
        from popxl.fp8_utils import host_pow2scale_cast_to_fp8

        ir = popxl.Ir(2)
        data = rng.normal(size=4).astype("float32")
        with ir.main_graph:
            w, shard = popxl.replica_sharded_variable(data, popxl.float8_143, log2_scale=1)
        assert shard.dtype is popxl.float8_143
        wanted = host_pow2scale_cast_to_fp8(data, popxl.float8_143, 1)
        np.testing.assert_array_equal(w._value.data.host, wanted)


def test_remote_variables_do_not_look_at_their_buffer(main: popxl.Graph):
    buffer = popxl.remote_buffer((3,), popxl.float32)
    assert popxl.remote_variable(np.zeros(2, "float16"), buffer).shape == (2,)


def test_only_in_the_main_graph(ir: popxl.Ir):
    with ir.create_empty_graph():
        buffer = popxl.remote_buffer((), popxl.float32)
        with pytest.raises(ValueError, match="You cannot initialise a variable"):
            popxl.remote_variable(1.0, buffer)
