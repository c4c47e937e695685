"""Calls, aliases and writes become plain values."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.passes.functionalise import functionalise
from popxl_torch.passes.pipeline import to_functional

from runtime.tests.popxl_torch.programs import build, kinds_of


def _store(t: popxl.Tensor) -> None:
    ops.host_store(popxl.d2h_stream(t.shape, t.dtype), t)


def test_calls_are_inlined() -> None:
    def body(ir: popxl.Ir) -> None:
        x = popxl.variable(np.ones(3, "float32"))
        graph = ir.create_graph(lambda_with_name, x)
        _store(ops.call(graph, x)[0])
        _store(ops.call(graph, x)[0])

    def lambda_with_name(x: popxl.Tensor) -> popxl.Tensor:
        return x + x

    assert kinds_of(to_functional(build(body)).main) == [
        "ReadState",
        "Add",
        "HostStore",
        "Add",
        "HostStore",
    ]


def test_a_write_in_a_call_by_value_is_dropped_and_by_reference_is_a_state() -> None:
    def bump(x: popxl.Tensor) -> None:
        ops.add_(x, popxl.constant(1.0))

    def bump_by_ref(x: popxl.TensorByRef) -> None:
        ops.add_(x, popxl.constant(1.0))

    bump_by_ref.__annotations__ = {"x": popxl.TensorByRef}

    def body_of(fn):
        def body(ir: popxl.Ir) -> None:
            x = popxl.variable(np.ones((), "float32"))
            ops.call(ir.create_graph(fn, x), x)

        return body

    assert kinds_of(to_functional(build(body_of(bump))).main) == []
    kinds = kinds_of(to_functional(build(body_of(bump_by_ref))).main)
    assert kinds == ["ReadState", "Add", "WriteState"]


def test_a_write_through_a_chain_of_aliases_updates_the_source() -> None:
    def body(ir: popxl.Ir) -> None:
        x = popxl.variable(np.zeros((4, 4), "float32"))
        part = ops.transpose_(ops.slice_(x, [1], [3]))
        ops.add_(part, popxl.constant(1.0))
        _store(x)

    kinds = kinds_of(to_functional(build(body)).main)
    assert kinds.count("SliceUpdate") == 1
    assert kinds[-2:] == ["HostStore", "WriteState"]


def test_an_alias_is_derived_again_after_its_source_changed() -> None:
    def body(ir: popxl.Ir) -> None:
        x = popxl.variable(np.zeros(4, "float32"))
        alias = ops.reshape_(x, (2, 2))
        _store(alias)
        ops.add_(x, popxl.constant(1.0))
        _store(alias)

    assert kinds_of(functionalise(build(body)).main).count("Reshape") == 2


@pytest.mark.parametrize("by_ref", [False, True])
def test_a_loop_carries_outputs_and_modified_inputs(by_ref: bool) -> None:
    def step(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        ops.add_(y, x)
        return x + y

    step.__annotations__ = {"y": popxl.TensorByRef} if by_ref else {}

    def body(ir: popxl.Ir) -> None:
        x, y = (popxl.variable(np.ones((), "float32"), name=n) for n in "xy")
        _store(ops.repeat(ir.create_graph(step, x, y), 3, x, y)[0])

    functional = to_functional(build(body))
    (loop,) = (node for node in functional.main.nodes if node.kind == "Loop")
    assert len(loop.blocks[0].params) == (2 if by_ref else 1)
    assert ("WriteState" in kinds_of(functional.main)) is by_ref


def test_one_constant_of_a_graph_that_is_called_twice_is_one_value() -> None:
    def plus(x: popxl.Tensor) -> popxl.Tensor:
        return x + 1.0

    def body(ir: popxl.Ir) -> None:
        x = popxl.variable(np.ones((), "float32"))
        graph = ir.create_graph(plus, x)
        _store(ops.call(graph, ops.call(graph, x)[0])[0])

    assert len(functionalise(build(body)).constants) == 1


def test_unused_values_are_dropped_and_effects_are_kept() -> None:
    def body(ir: popxl.Ir) -> None:
        x = ops.host_load(popxl.h2d_stream((2,), popxl.float32))
        ops.exp(x)
        buffer = popxl.remote_buffer((2,), popxl.float32)
        ops.remote_load(buffer, 0)
        ops.remote_store(buffer, 0, x)

    assert kinds_of(to_functional(build(body)).main) == ["HostLoad", "RemoteStore"]
