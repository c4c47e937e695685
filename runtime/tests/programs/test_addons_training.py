"""Training programs as applications of popxl_addons write them."""

from __future__ import annotations

import numpy as np
import popxl
import popxl_addons as addons
import pytest
from popxl import ops
from popxl_addons.layers import Embedding, Linear
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.remote import named_variable_buffers, store_remote_graph
from popxl_addons.rts import all_gather_replica_sharded_graph, reduce_replica_sharded_graph
from popxl_addons.transforms.repeat_graph import repeat_graph
from popxl_addons.variable_factory import NamedVariableFactories

RTOL = 1e-4
ATOL = 1e-5


def test_seeds_change_from_iteration_to_iteration_and_from_run_to_run():
    """`seed += 1` in a main graph that is repeated for each transfer."""
    ir = popxl.Ir()
    ir.num_host_transfers = 3
    with ir.main_graph, popxl.in_sequence():
        variable, seed = addons.seed_variable(1234)
        seed += 1
        out = popxl.d2h_stream((2,), popxl.uint32)
        ops.host_store(out, seed)
    repeat_graph(ir.main_graph, 3)
    with popxl.Session(ir, "ipu_hw") as session:
        first, second = (session.run()[out].astype(np.int64) for _ in range(2))
        np.testing.assert_array_equal(np.diff(np.concatenate([first, second]), axis=0), 1)
        np.testing.assert_array_equal(session.get_tensor_data(variable), second[-1])


def test_a_finite_iterator_gives_each_replica_group_its_offset():
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        offsets = iter(Embedding.get_offsets(64, 2))
        pairs = ir.replica_grouping(group_size=2)
        factory = addons.VariableFactory(offsets, popxl.int32, replica_grouping=pairs)
        variables = NamedVariableFactories(offset=factory).init()
        out = popxl.d2h_stream((), popxl.int32)
        ops.host_store(out, variables.offset + 0)
    with popxl.Session(ir, "ipu_hw") as session:
        np.testing.assert_array_equal(session.run()[out], [0, 0, 32, 32])


STEPS, REPLICAS = 3, 2


class Phase:
    """A layer forward and backward over micro-batches, its weights cut over the replicas."""

    def __init__(
        self, x: popxl.HostToDeviceStream, y: popxl.DeviceToHostStream, io_mode: str
    ) -> None:
        factories, graph = Linear(4, bias=False).create_graph(x.spec)
        self.groups = factories.replica_groupings
        self.accumulators, grad = addons.autodiff_with_accumulation(
            graph, graph.args.tensors, replica_groupings=self.groups
        )
        grad = addons.recompute_graph(grad)
        dy = grad.graph.inputs[0]
        upstream = addons.batch_serial_buffer(dy, STEPS)
        self.forward, self.backward = addons.batch_serialise_fwd_and_grad(
            graph,
            grad,
            graph.args,
            STEPS,
            {graph.graph.inputs[0]: x, dy: (upstream, None)},
            {graph.graph.outputs[0]: y},
            {},
            io_mode=io_mode,  # type: ignore[arg-type]
        )
        for step in range(STEPS):
            popxl.remote_variable(np.ones((2, 4), "f4"), upstream, step)
        self.buffers = named_variable_buffers(factories)
        self.state = factories.init_remote(self.buffers)

    def run(self) -> addons.NamedTensors:
        """The shards of the weights, then of their mean gradient."""
        load, names = addons.load_remote_graph(self.buffers)
        shards = addons.NamedTensors.pack(names, load.call(0))
        gather, names = all_gather_replica_sharded_graph(shards, replica_groups=self.groups)
        whole = addons.NamedTensors.pack(names, gather.bind(shards).call())
        accum = self.accumulators.init_zero()
        self.forward.graph.bind(whole).call(0)
        named = whole.copy()
        named.update(accum)
        self.backward.graph.bind(named).call(0)
        accum.pop("mean_accum_counter")
        reduce, names = reduce_replica_sharded_graph(
            accum, "mean", shard_groups=NamedReplicaGrouping(accum=self.groups)
        )
        shards.update(addons.NamedTensors.pack(names, reduce.bind(accum).call()))
        return shards


@pytest.mark.parametrize("io_mode", ["compute", "io_overlapped"])
def test_a_phase_with_sharded_weights(io_mode: str):
    """Weights cut over two data-parallel replicas: load, gather, forward and backward over
    micro-batches, reduce-scatter of the gradient, update of the shard, store."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 4)).astype("f4")
    ir = popxl.Ir(replication=REPLICAS)
    ir.num_host_transfers = STEPS
    ir._pb_ir.getSessionOptions().numIOTiles = 32
    with ir.main_graph, popxl.in_sequence():
        inputs = addons.InputStreams(x=((2, 4), popxl.float32))
        outputs = addons.OutputStreams(y=((2, 4), popxl.float32))
        phase = Phase(inputs.x, outputs.y, io_mode)
        shards = phase.run()
        assert {(t.shape, t.meta_shape) for t in shards.tensors} == {((8,), (4, 4))}
        ops.scaled_add_(shards.weight, shards.accum.weight, b=-0.1)
        store_remote_graph(phase.buffers).bind(shards).call(0)
    session = addons.TaskSession(inputs, outputs, phase.state, 1, ir, "ipu_hw")
    session.write_variables_data({phase.state.weight: weight})
    data = rng.normal(size=(STEPS, REPLICAS, 2, 4)).astype("f4")
    with session:
        found = session.run({session.inputs.x: data})[session.outputs.y]
    np.testing.assert_allclose(found, data @ weight, rtol=RTOL, atol=ATOL)
    gradient = np.einsum("srbi,srbj->ij", data, np.ones_like(data)) / STEPS / REPLICAS
    updated = session.get_named_tensors_data().weight
    np.testing.assert_allclose(updated, weight - 0.1 * gradient, rtol=RTOL, atol=ATOL)
