"""Programs that once failed, or that look as if they might."""
# No string annotations here: popxl recognises TensorByRef by identity.

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl_addons.rts import all_gather_replica_sharded_graph, reduce_replica_sharded_graph


def _stored(t: popxl.Tensor) -> popxl.DeviceToHostStream:
    stream = popxl.d2h_stream(t.shape, t.dtype)
    ops.host_store(stream, t)
    return stream


@pytest.mark.parametrize("given", [[3, 5], [4, 4]], ids=["different", "equal"])
def test_scalar_indices(given: list[int]) -> None:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((), popxl.int32)
        i = ops.host_load(stream)
        table = popxl.constant(np.arange(10, dtype="float32"))
        one = _stored(table[i])
        rows = _stored(ops.gather(table, i.reshape((1,))))
        window = _stored(ops.dynamic_slice(table, i.reshape((1,)), [0], [2], False))
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({stream: np.array(given)})
    np.testing.assert_array_equal(found[one], given)
    np.testing.assert_array_equal(found[rows], np.array(given)[:, np.newaxis])
    np.testing.assert_array_equal(found[window], [[i, i + 1] for i in given])


def test_random_scalars() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        seed = popxl.constant(popxl.create_seeds(3))
        flat = _stored(ops.random_uniform(seed, ()))
        bell = _stored(ops.random_normal(seed, (), mean=100.0))
    with popxl.Session(ir) as session:
        found = session.run()
    assert found[flat].shape == found[bell].shape == ()
    assert 0 <= found[flat] < 1
    assert 90 < found[bell] < 110


@pytest.mark.parametrize("place", [-2, 1, 9])
def test_a_window_that_sticks_out_of_a_cache_is_moved_inside(place: int) -> None:
    """As an entry written in place, and as a tensor."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((1,), popxl.int32)
        buffer = popxl.remote_buffer((4, 2), popxl.float32)
        row = popxl.constant(np.ones((1, 2), "float32"))

        def write(entry: popxl.Tensor, place: popxl.Tensor, row: popxl.Tensor) -> popxl.Tensor:
            kept = ops.remote_load(buffer, entry)
            kept = ops.dynamic_update_(kept, place, row, [0], [1], no_overlap=True)
            ops.remote_store(buffer, entry, kept)
            return ops.sum(kept, axis=1)

        given = [popxl.constant(0, popxl.int32), ops.host_load(stream), row]
        cached = _stored(ops.call(ir.create_graph(write, *given), *given)[0])
        zeros = ops.init((4, 2), popxl.float32)
        plain = ops.dynamic_update(zeros, given[1], row, [0], [1], no_overlap=True)
        plain = _stored(ops.sum(plain, axis=1))
    with popxl.Session(ir) as session:
        found = session.run({stream: np.array([place])})
    expected = np.zeros(4)
    expected[min(max(place, 0), 3)] = 2
    np.testing.assert_array_equal(found[cached], expected)
    np.testing.assert_array_equal(found[plain], expected)


_PASSED_ON = {
    "cast": lambda t: ops.cast(t, popxl.float32),
    "clip": lambda t: ops.clip(t),
    "copied": lambda t: ops.var_updates.copy_var_update_(ops.init(t.shape, t.dtype), t),
    "maximum": lambda t: ops.maximum(t),
    "reduced": lambda t: ops.collectives.replicated_all_reduce(t, "max"),
    "reshaped": lambda t: t.T.T,
    "resized": lambda t: ops.interpolate(t, (1.0, 1.0)),
    "summed over nothing": lambda t: ops.sum(t, axis=[]),
}


@pytest.mark.parametrize("how", _PASSED_ON)
@pytest.mark.parametrize("replicas", [1, 2])
def test_what_a_loop_carries_is_not_the_cache_itself(how: str, replicas: int) -> None:
    """Ops whose results may share memory with an entry that the next iteration writes."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((3, 2), popxl.float32)

        def body(before: popxl.Tensor, i: popxl.Tensor, total: popxl.Tensor, entry: popxl.Tensor):
            kept = ops.remote_load(buffer, entry)
            row = popxl.constant(np.ones((1, 2), "float32"))
            kept = ops.dynamic_update_(kept, i, row, axes=[0], sizes=[1], no_overlap=True)
            ops.remote_store(buffer, entry, kept)
            return _PASSED_ON[how](kept), i + 1, total + ops.sum(before)

        start = [ops.init((3, 2), popxl.float32), popxl.constant([0]), popxl.constant(0.0)]
        given = [*start, popxl.constant(0, popxl.int32)]
        _, _, total = ops.repeat(ir.create_graph(body, *given), 3, *given)
        out = _stored(total)
    with popxl.Session(ir, "ipu_hw") as session:
        np.testing.assert_array_equal(session.run()[out], np.full((2,) * (replicas > 1), 0 + 2 + 4))


@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 2), (1, 2)])
def test_sharded_parameters_round_trip(stride: int, size: int, rng: np.random.Generator) -> None:
    """Load the shards, gather, use, reduce a gradient to shards, store those in another entry."""
    ir = popxl.Ir(replication=4)
    with ir.main_graph, popxl.in_sequence():
        group = ir.replica_grouping(stride=stride, group_size=size)
        several = group.num_groups > 1
        data = rng.normal(size=(group.num_groups, 4, 2)).astype("float32")

        class Product(addons.Module):
            def build(self, x: popxl.Tensor) -> popxl.Tensor:
                shard = self.add_replica_sharded_variable_input(
                    "w", iter([data[0], *data]), popxl.float32, replica_grouping=group
                )
                return x @ ops.collectives.replicated_all_gather(shard, group=group)

        stream = popxl.h2d_stream((3, 4), popxl.float32)
        x = ops.host_load(stream)
        facts, graph = Product().create_graph(x)
        buffers = addons.named_variable_buffers(facts, 2)
        state = facts.init_remote(buffers, 1)
        load, names = addons.load_remote_graph(buffers, 2)
        shards = addons.NamedTensors.pack(names, load.call(1))
        product = _stored(graph.bind(shards).call(x)[0])
        gather, names = all_gather_replica_sharded_graph(
            shards, replica_groups=facts.replica_groupings
        )
        whole = addons.NamedTensors.pack(names, gather.bind(shards).call())
        gathered = _stored(whole.w)
        reduce, names = reduce_replica_sharded_graph(
            whole, "mean", shard_groups=facts.replica_groupings
        )
        mean = addons.NamedTensors.pack(names, reduce.bind(whole).call())
        addons.store_remote_graph(buffers, 2).bind(mean).call(0)
        again = addons.NamedTensors.pack(["w"], load.call(0))
        averaged = _stored(ops.collectives.replicated_all_gather(again.w, group=group))
    # The factory peeked at its first element: the group's data are what follows.
    given = rng.normal(size=(4, 3, 4)).astype("float32")
    session = popxl.Session(ir, "ipu_hw")
    session.write_variable_data(state.w, data if several else data[0])
    with session:
        found = session.run({stream: given})
    for replica, g in enumerate(group.assignment):
        np.testing.assert_array_equal(found[gathered][replica], data[g])
        np.testing.assert_allclose(
            found[product][replica], given[replica] @ data[g], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(found[averaged][replica], data.mean(0), rtol=1e-5, atol=1e-6)


def test_a_mapped_variable_is_updated_in_its_file(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "w", dtype="float32", mode="w+", shape=(2, 3))
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        w = popxl.variable(mapped)
        w += 1.0
    session = popxl.Session(ir)
    for count in (2, 3):
        with session:
            session.run()
            if count == 2:
                session.run()
        np.testing.assert_array_equal(np.fromfile(tmp_path / "w", "float32"), np.full(6, count))


def test_graphs_without_inputs_or_outputs() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.variable(np.arange(3, dtype="float32"))

        def bump(t: popxl.TensorByRef) -> popxl.Tensor:
            ops.add_(t, popxl.constant(1.0))
            return t

        nothing = ir.create_graph(lambda: None)
        assert ops.call(nothing) == ops.repeat(nothing, 3) == ()
        (five,) = ops.call(ir.create_graph(lambda: popxl.constant(5.0)))
        assert ops.conditional(popxl.constant(True), nothing, nothing) == ()
        bumped = ir.create_graph(bump, x)
        (y,) = ops.call(bumped, x)
        ops.add_(y, popxl.constant(50.0))  # the result is not the caller's tensor
        (same,) = ops.repeat(ir.create_graph(lambda t: t * 0.0, x), 0, x)
        streams = [_stored(t) for t in (five, x, y, same)]
    with popxl.Session(ir) as session:
        found = [session.run()[stream] for stream in streams[:1]]
        assert found == [5]
        run = session.run()
    np.testing.assert_array_equal(run[streams[1]], np.arange(3) + 2)
    np.testing.assert_array_equal(run[streams[2]], np.arange(3) + 52)
    np.testing.assert_array_equal(run[streams[3]], np.arange(3) + 2)


def test_streams_made_and_used_in_sub_graphs(rng: np.random.Generator) -> None:
    """Six transfers by a loop in a call in a loop, and more rows than are used."""
    ir = popxl.Ir()
    ir.num_host_transfers = 6
    streams: dict[str, popxl.HostToDeviceStream | popxl.DeviceToHostStream] = {}
    with ir.main_graph, popxl.in_sequence():

        def outer() -> None:
            streams["in"] = popxl.h2d_stream((2,), popxl.float32)
            streams["out"] = popxl.d2h_stream((2,), popxl.float32)

            def inner() -> None:
                ops.host_store(streams["out"], ops.host_load(streams["in"]) + 1.0)

            graph = ir.create_graph(inner)
            ops.repeat(graph, 2)
            ops.call(graph)

        graph = ir.create_graph(outer)
        ops.repeat(graph, 1)
        ops.call(graph)
    x = rng.normal(size=(8, 2)).astype("float32")
    with popxl.Session(ir) as session:
        found = session.run({streams["in"]: x})[streams["out"]]
    np.testing.assert_array_equal(found, x[:6] + 1)


DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "float64"]


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_goes_everywhere(name: str, replicas: int) -> None:
    """Streams, variables, remote memory, selection; sums wrap."""
    dtype = popxl.dtypes.dtype.from_name(name)
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((4,), dtype)
        x = ops.host_load(stream)
        kept = popxl.variable(np.zeros(4), dtype)
        mask = popxl.constant([True, False, True, False])
        chosen = ops.concat([ops.where(mask, x, kept), x])
        ops.add_(kept, x)
        buffer = popxl.remote_buffer((8,), dtype, entries=2)
        ops.remote_store(buffer, 1, chosen)
        outs = [_stored(ops.remote_load(buffer, 1)), _stored(kept)]
    x = np.array([[1, 0, 3, 100], [2, 1, 120, 0]]).astype(name)[:replicas]
    x = x if replicas > 1 else x[0]
    with popxl.Session(ir, "ipu_hw") as session:
        session.run({stream: x}, downcast_inputs=False)
        found = session.run({stream: x}, downcast_inputs=False)
    assert {found[out].dtype for out in outs} == {np.dtype(name)}
    np.testing.assert_array_equal(found[outs[0]], np.concatenate([x, x], -1))
    np.testing.assert_array_equal(found[outs[1]], x + x)


def test_several_ipus_and_io_tiles() -> None:
    ir = popxl.Ir()
    ir._pb_ir.getSessionOptions().numIOTiles = 32
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((3,), popxl.float32)
        with popxl.ipu(0), popxl.io_tiles():
            x = ops.io_tile_copy(ops.host_load(stream))
        with popxl.ipu(0):
            x = x * 2.0
            y = x.copy_to_ipu(1)
        with popxl.ipu(1), popxl.name_scope("second"), popxl.in_sequence(False):
            y = ops.relu(y + 1.0)
        outs = [_stored(t) for t in ops.collectives.all_reduce([x, y], [0, 1])]
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({stream: np.arange(3, dtype="float32")})
    for out in outs:
        np.testing.assert_array_equal(found[out], [1, 5, 9])


@pytest.mark.parametrize("given", [[1.0, 1.0], [1.0, 200.0]], ids=["equal", "different"])
def test_a_loop_that_stops_early(given: list[float]) -> None:
    """A conditional in a loop passes values through once they are big enough."""
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((), popxl.float32)

        def step(x: popxl.Tensor, n: popxl.Tensor):
            stop = ir.create_graph(lambda x, n: (x, n), x, n)
            go = ir.create_graph(lambda x, n: (x * 3.0, n + 1), x, n)
            big = ops.greater(x, popxl.constant(100.0))
            return ops.conditional(big, stop, go, [x, n], [x, n])

        x, n = ops.host_load(stream), popxl.constant(0)
        outs = [_stored(t) for t in ops.repeat(ir.create_graph(step, x, n), 10, x, n)]
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({stream: np.array(given, "float32")})
    np.testing.assert_array_equal(found[outs[0]], [x if x > 100 else 243 for x in given])
    np.testing.assert_array_equal(found[outs[1]], [0 if x > 100 else 5 for x in given])


def test_writes_between_runs() -> None:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        own = popxl.variable(
            np.zeros((2, 3), "float32"), replica_grouping=ir.replica_grouping(group_size=1)
        )
        count = popxl.variable(np.zeros(3, "float32"))
        out = _stored(own + count)
        count += 1.0
    rows = np.arange(6, dtype="float32").reshape(2, 3)
    session = popxl.Session(ir, "ipu_hw")
    with session:
        session.run()
        np.testing.assert_array_equal(session.run()[out], np.ones((2, 3)))
        session.weights_to_host()  # else the write below would send the old count back
        session.write_variable_data(own, rows)
        np.testing.assert_array_equal(session.run()[out], rows + 2)
        session.write_variable_data(count, np.full(3, 5, "float32"))
        np.testing.assert_array_equal(session.run()[out], rows + 5)


def test_entries_move_along_a_buffer_in_a_loop() -> None:
    """Each iteration stores what the next one loads; variables see it after the context."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((3,), popxl.float32, entries=4)
        variables = [popxl.remote_variable(np.full(3, i, "float32"), buffer, i) for i in range(3)]

        def step(i: popxl.Tensor) -> popxl.Tensor:
            ops.remote_store(buffer, i + 1, ops.remote_load(buffer, i) + 1.0)
            return i + 1

        i = popxl.constant(0)
        ops.repeat(ir.create_graph(step, i), 3, i)
        out = _stored(ops.remote_load(buffer, 3))
    session = popxl.Session(ir)
    for first in (0, 10):
        session.write_variable_data(variables[0], np.full(3, first, "float32"))
        with session:
            np.testing.assert_array_equal(session.run()[out], np.full(3, first + 3))
        for i, variable in enumerate(variables):
            np.testing.assert_array_equal(session.get_tensor_data(variable), np.full(3, first + i))


def test_sessions_in_threads(rng: np.random.Generator) -> None:
    """Products of half-precision matrices, big enough for shared scratch memory to be used."""
    sessions = []
    weights = rng.normal(size=(3, 1100, 1100)).astype("float16")
    inputs = rng.normal(size=(3, 8, 1100)).astype("float16")
    for weight in weights:
        ir = popxl.Ir()
        with ir.main_graph, popxl.in_sequence():
            stream = popxl.h2d_stream((8, 1100), popxl.float16)
            out = _stored(ops.host_load(stream) @ popxl.variable(weight))
        sessions.append((popxl.Session(ir, "ipu_hw"), stream, out))

    def work(k: int) -> np.ndarray:
        session, stream, out = sessions[k]
        with session:
            return [session.run({stream: inputs[k]})[out] for _ in range(4)][-1]

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(work, range(3)))
    for k, result in enumerate(results):
        expected = inputs[k].astype("float32") @ weights[k].astype("float32")
        np.testing.assert_allclose(result, expected, rtol=2e-3, atol=5e-2)


@pytest.mark.parametrize("replicas", [1, 2])
def test_tensors_without_elements(replicas: int) -> None:
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((0, 3), popxl.float32)
        x = ops.host_load(stream)
        turned, sums = _stored(x.T), _stored(ops.sum(x, axis=0))
    lead = (2,) * (replicas > 1)
    with popxl.Session(ir, "ipu_hw") as session:
        found = session.run({stream: np.zeros((*lead, 0, 3), "float32")})
    assert found[turned].shape == (*lead, 3, 0)
    np.testing.assert_array_equal(found[sums], np.zeros((*lead, 3)))
