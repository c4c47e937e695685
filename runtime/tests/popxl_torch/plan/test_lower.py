"""Slots and lifetimes of plans."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.ir.records import Program
from popxl_torch.passes.mark_uniform import Varying
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.plan.lower import NotVectorisable, lower
from popxl_torch.plan.memory import peak_bytes
from popxl_torch.plan.steps import Body, Plan

from runtime.tests.popxl_torch.programs import build, tensor_parallel_mlp


def _plan(program: Program, varying: bool = False) -> Plan:
    sources = Varying(streams=set(program.streams) if varying else set())
    functional, _ = specialise(to_functional(program), sources)
    return lower(functional, functional.main)


def _chain(length: int) -> Program:
    def body(ir: popxl.Ir) -> None:
        x = ops.host_load(popxl.h2d_stream((8, 8), popxl.float32))
        for _ in range(length):
            x = ops.exp(x)
        ops.host_store(popxl.d2h_stream((8, 8), popxl.float32), x)

    return build(body)


def test_every_value_dies_right_after_its_last_use() -> None:
    plan = _plan(_chain(3))
    for before, after in zip(plan.body.steps[2:-2], plan.body.steps[3:-1], strict=True):
        assert after.frees == tuple(out.slot for out in before.outs)


def test_peak_memory_does_not_grow_with_the_length_of_a_chain() -> None:
    assert peak_bytes(_plan(_chain(3))) == peak_bytes(_plan(_chain(30))) == 2 * 8 * 8 * 4


def test_a_view_keeps_memory_alive() -> None:
    def body(ir: popxl.Ir) -> None:
        h = ops.host_load(popxl.h2d_stream((8, 8), popxl.float32))
        row = ops.transpose(ops.exp(h), (1, 0))[0:1]
        x = ops.exp(ops.exp(h))
        ops.host_store(popxl.d2h_stream((8, 8), popxl.float32), x + row)

    assert peak_bytes(_plan(build(body))) == 3 * 8 * 8 * 4


def test_a_loop_has_what_it_began_with_and_two_turns_in_memory() -> None:
    def body(ir: popxl.Ir) -> None:
        x = ops.exp(ops.host_load(popxl.h2d_stream((8, 8), popxl.float32)))
        (y,) = ops.repeat(ir.create_graph(lambda x: ops.exp(x), x), 5, x)
        ops.host_store(popxl.d2h_stream((8, 8), popxl.float32), y)

    assert peak_bytes(_plan(build(body))) == 3 * 8 * 8 * 4


@pytest.mark.parametrize(("stores", "copies"), [(True, 1), (False, 0)])
def test_a_load_that_is_copied_takes_memory(stores: bool, copies: int) -> None:
    def body(ir: popxl.Ir) -> None:
        buffer = popxl.remote_buffer((8, 8), popxl.float32, 1)
        x = ops.remote_load(buffer, 0)
        y = ops.exp(x)
        if stores:
            ops.remote_store(buffer, 0, x)
        ops.host_store(popxl.d2h_stream((8, 8), popxl.float32), y)

    assert peak_bytes(_plan(build(body))) == (1 + copies) * 8 * 8 * 4


def _defined(body: Body) -> set[int]:
    return {out.slot for step in body.steps for out in step.outs} | {p.slot for p in body.params}


def test_a_loop_frees_only_what_it_defines() -> None:
    def step(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
        return ops.relu(x @ w)

    def body(ir: popxl.Ir) -> None:
        x = ops.host_load(popxl.h2d_stream((4, 4), popxl.float32))
        w = ops.exp(x)
        (y,) = ops.repeat(ir.create_graph(step, x, w), 5, x, w)
        ops.host_store(popxl.d2h_stream((4, 4), popxl.float32), y)

    plan = _plan(build(body))
    (loop,) = (step for step in plan.body.steps if step.kind == "Loop")
    (inner,) = loop.bodies
    assert {slot for s in inner.steps for slot in s.frees} <= _defined(inner)
    (weights,) = (step.outs[0].slot for step in plan.body.steps if step.kind == "Exp")
    assert weights in loop.frees


def test_a_carried_value_that_becomes_varying_starts_expanded() -> None:
    def step(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        return x + y

    def body(ir: popxl.Ir) -> None:
        y = ops.host_load(popxl.h2d_stream((2,), popxl.float32))
        x = popxl.variable(np.zeros(2, "float32"))
        ops.host_store(
            popxl.d2h_stream((2,), popxl.float32),
            ops.repeat(ir.create_graph(step, x, y), 2, x, y)[0],
        )

    assert "Expand" in [s.kind for s in _plan(build(body, replicas=2), varying=True).body.steps]


@pytest.mark.parametrize("effect", [False, True])
def test_a_branch_that_some_replicas_take_may_not_have_effects(effect: bool) -> None:
    def body(ir: popxl.Ir) -> None:
        buffer = popxl.remote_buffer((2,), popxl.float32)

        def first(x: popxl.Tensor) -> popxl.Tensor:
            if effect:
                ops.remote_store(buffer, 0, x)
            return x * 2.0

        x = ops.host_load(popxl.h2d_stream((2,), popxl.float32))
        condition = ops.greater(ops.sum(x), popxl.constant(0.0))
        graph = ir.create_graph(first, x)
        (y,) = ops.conditional(condition, graph, graph, [x], [x])
        ops.host_store(popxl.d2h_stream((2,), popxl.float32), y)

    program = build(body, replicas=2)
    if effect:
        with pytest.raises(NotVectorisable):
            _plan(program, varying=True)
    else:
        assert "Select" in [step.kind for step in _plan(program, varying=True).body.steps]
    assert "If" in [step.kind for step in _plan(program).body.steps]


def test_a_plan_prints_its_steps() -> None:
    text = str(_plan(build(tensor_parallel_mlp, replicas=2)))
    assert "HostLoad" in text
    assert "free" in text
