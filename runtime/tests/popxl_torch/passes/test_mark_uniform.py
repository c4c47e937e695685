"""What differs between replicas, found from the sources up."""

from __future__ import annotations

import numpy as np
import popxl
from popxl import ops
from popxl_torch.ir.records import Program
from popxl_torch.passes.mark_uniform import Varying, mark_uniform, varying_sources
from popxl_torch.passes.pipeline import to_functional
from popxl_torch.passes.ssa import Functional, walk

from runtime.tests.popxl_torch.programs import build, tensor_parallel_mlp


def _marked(program: Program, varying_streams: bool = False) -> tuple[Functional, Varying]:
    functional = to_functional(program)
    variables = [v for v in program.main.values.values() if v.kind == "variable"]
    sources = varying_sources(variables)
    if varying_streams:
        sources.streams = set(program.streams)
    return functional, mark_uniform(functional, sources)


def _varying(functional: Functional) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for node in walk(functional.main):
        found.setdefault(node.kind, []).extend(val.varying for val in node.outputs)
    return found


def test_shards_vary_and_their_full_sum_does_not() -> None:
    functional, _ = _marked(build(tensor_parallel_mlp, replicas=4))
    marks = _varying(functional)
    assert marks["HostLoad"] == [False]
    assert marks["MatMul"] == [True, True]
    assert marks["ReplicatedAllReduce"] == [False]


def test_an_input_that_differs_makes_what_follows_differ() -> None:
    functional, _ = _marked(build(tensor_parallel_mlp, replicas=4), varying_streams=True)
    marks = _varying(functional)
    assert marks["HostLoad"] == [True]
    assert marks["ReplicatedAllReduce"] == [False]


def test_a_sum_over_some_replicas_still_varies() -> None:
    def body(ir: popxl.Ir) -> None:
        x = ops.host_load(popxl.h2d_stream((2,), popxl.float32))
        pairs = ir.replica_grouping(group_size=2)
        y = ops.collectives.replicated_all_reduce(x, group=pairs)
        ops.host_store(popxl.d2h_stream((2,), popxl.float32), y)

    functional, _ = _marked(build(body, replicas=4), varying_streams=True)
    assert _varying(functional)["ReplicatedAllReduce"] == [True]


def test_a_variable_that_takes_a_varying_value_varies_in_the_next_run() -> None:
    def body(ir: popxl.Ir) -> None:
        total = popxl.variable(np.zeros(2, "float32"))
        ops.add_(total, ops.host_load(popxl.h2d_stream((2,), popxl.float32)))

    program = build(body, replicas=2)
    _, sources = _marked(program, varying_streams=True)
    assert [state.name for state in sources.states] == ["t"]
    assert not _marked(program)[1].states


def test_marking_reaches_a_fixed_point_over_a_loop() -> None:
    def step(x: popxl.Tensor, y: popxl.Tensor, z: popxl.Tensor) -> tuple[popxl.Tensor, ...]:
        return y + 1.0, z + 1.0, z + 2.0

    def body(ir: popxl.Ir) -> None:
        x, y = (popxl.variable(np.zeros(2, "float32"), name=n) for n in "xy")
        z = ops.host_load(popxl.h2d_stream((2,), popxl.float32))
        for t in ops.repeat(ir.create_graph(step, x, y, z), 3, x, y, z):
            ops.host_store(popxl.d2h_stream((2,), popxl.float32), t)

    functional, _ = _marked(build(body, replicas=2), varying_streams=True)
    assert _varying(functional)["Loop"] == [True, True, True]


def test_a_store_of_a_varying_value_makes_the_buffer_vary() -> None:
    def body(ir: popxl.Ir) -> None:
        buffer = popxl.remote_buffer((2,), popxl.float32)
        loaded = ops.remote_load(buffer, 0)
        ops.host_store(popxl.d2h_stream((2,), popxl.float32), loaded)
        x = ops.host_load(popxl.h2d_stream((2,), popxl.float32))
        ops.remote_store(buffer, 0, x)

    functional, sources = _marked(build(body, replicas=2), varying_streams=True)
    assert len(sources.buffers) == 1
    assert _varying(functional)["RemoteLoad"] == [True]
