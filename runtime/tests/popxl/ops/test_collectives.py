"""Collectives over replicas and over IPUs, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import popart
import popxl
import pytest
from popxl import ops
from popxl.ops import collectives
from popxl.ops.collectives.collectives import OP_MAP, CommGroup, CommGroupType, to_collective_op

Rng = np.random.Generator
RTOL, ATOL = 1e-5, 1e-6

# replicas, stride, group size
GROUPINGS = [(1, 1, 1), (2, 1, 2), (2, 1, 1), (4, 1, 4), (4, 1, 2), (4, 2, 2)]
REDUCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "add": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "mul": lambda x: x.mean(0),
    "min": lambda x: x.min(0),
    "max": lambda x: x.max(0),
    "square_add": lambda x: (x.astype("float64") ** 2).sum(0),
}


def groups_of(replicas: int, stride: int, size: int) -> list[list[int]]:
    """Members of each group, found by walking over the replicas."""
    groups, taken = [], set()
    for start in range(replicas):
        if start not in taken:
            groups.append([start + stride * k for k in range(size)])
            taken.update(groups[-1])
    return groups


def run(
    make_session: Any,
    data: np.ndarray,
    grouping: tuple[int, int, int],
    build: Callable[[popxl.Tensor, popxl.ReplicaGrouping], popxl.Tensor],
) -> np.ndarray:
    """(replicas, ...): what ``build`` makes of ``data``, (replicas, ...)."""
    replicas, stride, size = grouping
    ir = popxl.Ir(replicas)
    shape = data.shape[1:]
    with ir.main_graph, popxl.in_sequence():
        xs = popxl.h2d_stream(shape, popxl.dtype.as_dtype(data.dtype))
        y = build(ops.host_load(xs), ir.replica_grouping(stride, size))
        ys = popxl.d2h_stream(y.shape, y.dtype)
        ops.host_store(ys, y)
    with make_session(ir) as session:
        found = session.run({xs: data if replicas > 1 else data[0]})[ys]
    return found if replicas > 1 else found[np.newaxis]


def per_group(
    data: np.ndarray, grouping: tuple[int, int, int], function: Callable[[np.ndarray], Any]
) -> np.ndarray:
    """``function`` of each group's members' values gives one value per member."""
    result: list[Any] = [None] * grouping[0]
    for members in groups_of(*grouping):
        for member, value in zip(members, function(data[members]), strict=True):
            result[member] = value
    return np.stack(result)


def pieces(flat: np.ndarray, count: int) -> np.ndarray:
    """(count, ceil(size / count)), zero-padded."""
    length = -(-flat.size // count)
    return np.pad(flat.reshape(-1), (0, count * length - flat.size)).reshape(count, length)


@pytest.fixture(params=GROUPINGS, ids=str)
def grouping(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return request.param


@pytest.fixture(params=[False, True], ids=["uniform", "varying"])
def data(request: pytest.FixtureRequest, rng: Rng, grouping: tuple[int, int, int]) -> np.ndarray:
    """(replicas, 2, 3) float32; equal on all replicas or not."""
    values = rng.normal(size=(grouping[0], 2, 3)).astype("float32")
    return values if request.param else np.broadcast_to(values[:1], values.shape)


class TestAllReduce:
    @pytest.mark.parametrize("op", REDUCTIONS)
    def test_values(self, make_session: Any, data: np.ndarray, grouping: Any, op: Any):
        found = run(
            make_session, data, grouping, lambda t, g: collectives.replicated_all_reduce(t, op, g)
        )
        wanted = per_group(data, grouping, lambda x: [REDUCTIONS[op](x)] * len(x))
        np.testing.assert_allclose(found, wanted, RTOL, ATOL)

    @pytest.mark.parametrize(("op", "function"), [("and", np.all), ("or", np.any)])
    def test_logical(
        self, make_session: Any, data: np.ndarray, grouping: Any, op: Any, function: Any
    ):
        flags = data > 0.5
        found = run(
            make_session, flags, grouping, lambda t, g: collectives.replicated_all_reduce(t, op, g)
        )
        wanted = per_group(flags, grouping, lambda x: [function(x, axis=0)] * len(x))
        np.testing.assert_array_equal(found, wanted)

    def test_in_place(self, make_session: Any, data: np.ndarray, grouping: Any):
        def build(t: popxl.Tensor, group: popxl.ReplicaGrouping) -> popxl.Tensor:
            alias = collectives.replicated_all_reduce_(t, group=group)
            ops.add_(alias, popxl.constant(np.ones((2, 3), "float32")))
            return t

        found = run(make_session, data, grouping, build)
        wanted = per_group(data, grouping, lambda x: [x.sum(0) + 1] * len(x))
        np.testing.assert_allclose(found, wanted, RTOL, ATOL)

    def test_halves_are_summed_in_float32(self, make_session: Any):
        values = np.array([[2048.0], [1.0], [1.0], [1.0]], "float16")
        found = run(
            make_session, values, (4, 1, 4), lambda t, g: collectives.replicated_all_reduce(t)
        )
        np.testing.assert_array_equal(found, np.full((4, 1), 2052.0))  # 2051 rounds to even

    def test_integers(self, make_session: Any):
        values = np.array([[2**24], [1]], "int32")
        found = run(
            make_session, values, (2, 1, 2), lambda t, g: collectives.replicated_all_reduce(t)
        )
        np.testing.assert_array_equal(found, np.full((2, 1), 2**24 + 1))

    def test_keeps_the_meta_shape(self):
        with popxl.Ir(2).main_graph:
            t = ops.collectives.replica_sharded_slice(popxl.variable(np.zeros((2, 3))))
            assert collectives.replicated_all_reduce(t).meta_shape == (2, 3)

    def test_name_and_kind(self):
        with popxl.Ir(2).main_graph as graph:
            t = popxl.variable([1.0], name="x")
            assert collectives.replicated_all_reduce(t).name == "x_all_reduce"
            collectives.replicated_all_reduce_(t)
            kinds = [op.opType() for op in graph._pb_graph.getOps()]
        assert kinds == ["ReplicatedAllReduce", "ReplicatedAllReduceInplace"]


class TestAllGather:
    @pytest.mark.parametrize("axis", [0, 1, -1])
    @pytest.mark.parametrize("mode", ["auto", "concat"])
    def test_concat(self, make_session: Any, data: np.ndarray, grouping: Any, axis: int, mode: Any):
        found = run(
            make_session,
            data,
            grouping,
            lambda t, g: collectives.replicated_all_gather(t, axis, g, mode),
        )
        wanted = per_group(data, grouping, lambda x: [np.concatenate(list(x), axis)] * len(x))
        np.testing.assert_array_equal(found, wanted)

    def test_new_axis(self, make_session: Any, data: np.ndarray, grouping: Any):
        found = run(
            make_session,
            data,
            grouping,
            lambda t, g: collectives.replicated_all_gather(t, 0, g, "new_axis"),
        )
        np.testing.assert_array_equal(found, per_group(data, grouping, lambda x: [x] * len(x)))

    @pytest.mark.parametrize("mode", ["auto", "meta_shape"])
    def test_meta_shape(self, make_session: Any, data: np.ndarray, grouping: Any, mode: Any):
        """Each member's piece of its own tensor, put together."""

        def build(t: popxl.Tensor, group: popxl.ReplicaGrouping) -> popxl.Tensor:
            shard = collectives.replica_sharded_slice(t, group)
            return collectives.replicated_all_gather(shard, group=group, output_shape=mode)

        found = run(make_session, data, grouping, build)

        def whole(x: np.ndarray) -> list[np.ndarray]:
            parts = [pieces(value, len(x))[k] for k, value in enumerate(x)]
            return [np.concatenate(parts)[:6].reshape(2, 3)] * len(x)

        np.testing.assert_array_equal(found, per_group(data, grouping, whole))

    def test_concat_of_shards(self, make_session: Any, data: np.ndarray, grouping: Any):
        def build(t: popxl.Tensor, group: popxl.ReplicaGrouping) -> popxl.Tensor:
            shard = collectives.replica_sharded_slice(t, group)
            return collectives.replicated_all_gather(shard, group=group, output_shape="concat")

        found = run(make_session, data, grouping, build)
        wanted = per_group(
            data,
            grouping,
            lambda x: [np.concatenate([pieces(v, len(x))[k] for k, v in enumerate(x)])] * len(x),
        )
        np.testing.assert_array_equal(found, wanted)

    def test_shapes(self):
        with popxl.Ir(4).main_graph:
            t = popxl.variable(np.zeros((2, 3)))
            shapes = {
                mode: collectives.replicated_all_gather(t, output_shape=mode).shape
                for mode in ("auto", "concat", "new_axis", "meta_shape")
            }
        assert shapes == {
            "auto": (8, 3),
            "concat": (8, 3),
            "new_axis": (4, 2, 3),
            "meta_shape": (24,),
        }

    def test_errors(self):
        ir = popxl.Ir(2)
        with ir.main_graph:
            t, scalar = popxl.variable([1.0, 2.0]), popxl.variable(1.0)
            group: Any = ir.replica_grouping()
            with pytest.raises(ValueError, match="Axis should be an int"):
                collectives.replicated_all_gather(t, group)
            with pytest.raises(ValueError, match="output_shape must equal one of"):
                collectives.replicated_all_gather(t, output_shape="flat")  # type: ignore[arg-type]
            for mode in ("auto", "concat", "new_axis"):
                with pytest.raises(IndexError):
                    collectives.replicated_all_gather(scalar, output_shape=mode)
            with pytest.raises(IndexError):
                collectives.replicated_all_gather(t, 1)


class TestScatter:
    @pytest.mark.parametrize("op", ["add", "mean", "max", "square_add"])
    def test_reduce_scatter(self, make_session: Any, data: np.ndarray, grouping: Any, op: Any):
        found = run(
            make_session,
            data,
            grouping,
            lambda t, g: collectives.replicated_reduce_scatter(t, op, g),
        )
        wanted = per_group(data, grouping, lambda x: pieces(REDUCTIONS[op](x), len(x)))
        np.testing.assert_allclose(found, wanted, RTOL, ATOL)

    def test_sharded_slice(self, make_session: Any, data: np.ndarray, grouping: Any):
        found = run(make_session, data, grouping, collectives.replica_sharded_slice)
        wanted = per_group(
            data, grouping, lambda x: [pieces(v, len(x))[k] for k, v in enumerate(x)]
        )
        np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize("nelms", [1, 2, 5])
    def test_padding(self, make_session: Any, rng: Rng, nelms: int):
        values = rng.normal(size=(4, nelms)).astype("float32")
        for build, whole in (
            (lambda t, g: collectives.replicated_reduce_scatter(t), values.sum(0)),
            (lambda t, g: collectives.replica_sharded_slice(t), None),
        ):
            found = run(make_session, values, (4, 1, 4), build)
            sources = [values[k] if whole is None else whole for k in range(4)]
            wanted = np.stack([pieces(source, 4)[k] for k, source in enumerate(sources)])
            np.testing.assert_allclose(found, wanted, RTOL, ATOL)

    def test_specs(self):
        with popxl.Ir(4).main_graph:
            t = popxl.variable(np.zeros((2, 3)))
            plain = collectives.replicated_reduce_scatter(t)
            flagged = collectives.replicated_reduce_scatter(
                t, configure_output_for_replicated_tensor_sharding=True
            )
            own = collectives.replica_sharded_slice(t)
        assert [x.shape for x in (plain, flagged, own)] == [(2,)] * 3
        assert [x.meta_shape for x in (plain, flagged, own)] == [(), (2, 3), (2, 3)]

    def test_combining_meta_shapes(self):
        with popxl.Ir(2).main_graph:
            a = collectives.replica_sharded_slice(popxl.variable(np.zeros((2, 3))))
            b = collectives.replica_sharded_slice(popxl.variable(np.zeros((3, 2))))
            plain = popxl.variable(np.zeros(3))
            assert (a + plain).meta_shape == (plain + a).meta_shape == (2, 3)
            with pytest.raises(popart.popart_exception, match="Incompatible meta shapes"):
                a + b


class TestSlice:
    @pytest.mark.parametrize("axis", [0, 1, -1, -2])
    def test_values(self, make_session: Any, rng: Rng, grouping: Any, axis: int):
        values = rng.normal(size=(grouping[0], 8, 8)).astype("float32")
        found = run(
            make_session, values, grouping, lambda t, g: collectives.replicated_slice(t, axis, g)
        )
        wanted = per_group(
            values,
            grouping,
            lambda x: [np.split(value, len(x), axis)[k] for k, value in enumerate(x)],
        )
        np.testing.assert_array_equal(found, wanted)

    def test_an_axis_of_parts_of_length_1_is_removed(self, make_session: Any, rng: Rng):
        values = rng.normal(size=(2, 2, 3)).astype("float32")
        found = run(
            make_session, values, (2, 1, 2), lambda t, g: collectives.replicated_slice(t, 0, g)
        )
        np.testing.assert_array_equal(found, np.stack([values[0, 0], values[1, 1]]))

    def test_unequal_parts(self):
        with popxl.Ir(2).main_graph:
            t = popxl.variable(np.zeros((2, 3)))
            for axis in (1, -1):
                with pytest.raises(ValueError, match="Replicated slice must equally divide axis"):
                    collectives.replicated_slice(t, axis)


COLLECTIVES = [
    collectives.replicated_all_reduce,
    collectives.replicated_all_reduce_,
    collectives.replicated_all_gather,
    collectives.replicated_reduce_scatter,
    collectives.replica_sharded_slice,
    collectives.replicated_slice,
]


@pytest.mark.parametrize("function", COLLECTIVES)
class TestGroups:
    def test_irregular(self, function: Any):
        ir = popxl.Ir(4)
        group = ir.replica_grouping_from_assignments([0, 1, 1, 0])
        with ir.main_graph:
            t = popxl.variable(np.zeros((4, 4)))
            with pytest.raises(NotImplementedError):
                function(t, group=group)

    def test_of_another_number_of_replicas(self, function: Any):
        ir = popxl.Ir(2)
        group = ir.replica_grouping()
        ir.replication_factor = 4
        with ir.main_graph:
            t = popxl.variable(np.zeros((4, 4)))
            with pytest.raises(ValueError, match="replicas"):
                function(t, group=group)

    def test_inputs_are_checked(self, function: Any):
        ir = popxl.Ir(2)
        with ir.main_graph:
            t = popxl.variable(np.zeros((4, 4)))
            with pytest.raises(TypeError, match="is not a Tensor"):
                function(1.0)
        with ir.create_empty_graph(), pytest.raises(ValueError, match="not in the current Graph"):
            function(t)


@pytest.mark.parametrize("op", ["sum", "", "local", None])
def test_unknown_reductions(op: Any):
    with pytest.raises(ValueError, match="Not a valid op"):
        to_collective_op(op)
    with popxl.Ir(2).main_graph:
        t = popxl.variable([1.0, 2.0])
        with pytest.raises(ValueError, match="Not a valid op"):
            collectives.replicated_all_reduce(t, op)


def test_names_for_older_programs():
    assert OP_MAP["mul"] == OP_MAP["mean"]
    assert {kind.name for kind in CommGroupType} == {
        "All",
        "Consecutive",
        "Orthogonal",
        "Ungrouped",
    }
    assert CommGroup(CommGroupType.Consecutive, 2).replicaGroupSize == 2
    assert CommGroup is collectives.CommGroup is popart.CommGroup


class TestAcrossIpus:
    def values(self, rng: Rng, count: int) -> np.ndarray:
        return rng.normal(size=(count, 3)).astype("float32")

    def run(self, make_session: Any, values: np.ndarray, function: Any, **options: Any) -> list:
        ir = popxl.Ir()
        with ir.main_graph, popxl.in_sequence():
            inputs = []
            for number, value in enumerate(values):
                with popxl.ipu(number):
                    inputs.append(ops.identity(popxl.variable(value)))
            outputs = function(inputs, **options)
            assert isinstance(outputs, list)
            assert [t.ipu for t in outputs] == list(range(len(values)))
            streams = [popxl.d2h_stream(t.shape, t.dtype) for t in outputs]
            for stream, t in zip(streams, outputs, strict=True):
                ops.host_store(stream, t)
        with make_session(ir) as session:
            found = session.run()
        return [found[stream] for stream in streams]

    @pytest.mark.parametrize("op", REDUCTIONS)
    def test_all_reduce(self, make_session: Any, rng: Rng, op: str):
        values = self.values(rng, 3)
        found = self.run(make_session, values, collectives.all_reduce, op=op)
        np.testing.assert_allclose(found, [REDUCTIONS[op](values)] * 3, RTOL, ATOL)

    def test_identical_grad_inputs(self, make_session: Any, rng: Rng):
        values = self.values(rng, 2)
        function = collectives.all_reduce_identical_grad_inputs
        found = self.run(make_session, values, function, ipus=[0, 1])
        np.testing.assert_allclose(found, [values.sum(0)] * 2, RTOL, ATOL)

    def test_identical_inputs(self, make_session: Any, rng: Rng):
        values = np.repeat(self.values(rng, 1), 2, axis=0)
        found = self.run(make_session, values, collectives.all_reduce_identical_inputs)
        np.testing.assert_array_equal(found, values)

    def test_errors(self, main: popxl.Graph):
        t = popxl.variable([1.0])
        with pytest.raises(ValueError, match="Could not automatically infer the IPU"):
            collectives.all_reduce([t, t])
        with pytest.raises(popart.popart_exception, match="differ in shape or dtype"):
            collectives.all_reduce([t, popxl.variable([1.0, 2.0])], [0, 1])
        with pytest.raises(ValueError, match="2 tensors but 1 IPUs"):
            collectives.all_reduce([t, t], [0])
        with pytest.raises(ValueError, match="Not a valid op"):
            collectives.all_reduce([t, t], [0, 1], "sum")  # type: ignore[arg-type]
