"""Which parts of plans are recorded: never what needs the host, and everything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.ir.records import Buffer
from popxl_torch.kernels import host_kinds
from popxl_torch.passes.mark_uniform import Varying
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.plan.lower import lower
from popxl_torch.plan.recording import Device, record_parts
from popxl_torch.plan.steps import Plan, Step

from runtime.tests.popxl_torch.programs import build

Body = Callable[[popxl.Tensor], popxl.Tensor]


EVERYTHING_STAYS = Device(lambda buffer: True, lambda buffer: True, host_kinds())


def plan_of(body: Body) -> Plan:
    """x -> body(x) for x of shape (4, 4), with some work in front and behind."""

    def program(ir: popxl.Ir) -> None:
        x = _work(ops.host_load(popxl.h2d_stream((4, 4), popxl.float32, "x")))
        y = _work(body(x))
        ops.host_store(popxl.d2h_stream(y.shape, y.dtype, "y"), y)

    functional, _ = specialise(to_functional(build(program)), Varying())
    return lower(functional, functional.main)


def _work(x: popxl.Tensor) -> popxl.Tensor:
    for _ in range(5):
        x = ops.tanh(ops.exp(x))
    return x


def parts_of(
    plan: Plan, is_fixed: bool = True, traced: bool = False, stays: bool = True
) -> tuple[list[list[str]], list[str]]:
    """Kinds in each part, those in loops included, and the reasons of the other steps."""

    def fixed(buffer: Buffer) -> bool:
        return is_fixed

    device = Device(fixed, lambda buffer: stays, host_kinds(), traced)
    found, reasons = record_parts(plan, device)
    recorded = [step for step in found.steps() if step.kind == "Recorded"]
    return [_kinds(step) for step in recorded], reasons


def _kinds(step: Step) -> list[str]:
    return [
        kind
        for body in step.bodies
        for inner in body.steps
        for kind in (inner.kind, *_kinds(inner))
        if kind != "Mark"
    ]


def _weights() -> popxl.RemoteBuffer:
    buffer = popxl.remote_buffer((4, 4), popxl.float32, 3)
    for entry in range(3):
        popxl.remote_variable(np.eye(4, dtype="float32"), buffer, entry)
    return buffer


def _layers(x: popxl.Tensor) -> popxl.Tensor:
    """Weights of a remote buffer, one entry after the other, in a loop."""
    buffer = _weights()

    def step(x: popxl.Tensor, n: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        return x @ ops.remote_load(buffer, n), n + 1

    n = popxl.constant(0, popxl.int32)
    graph = popxl.gcg().ir.create_graph(step, x, n)
    return ops.repeat(graph, 3, x, n)[0]


def _entry_of_the_data(x: popxl.Tensor) -> popxl.Tensor:
    n = ops.cast(ops.maximum(ops.reshape(x[0, 0], ()), popxl.constant(0.0)), popxl.int32)
    return x @ ops.remote_load(_weights(), n)


def _branch(x: popxl.Tensor) -> popxl.Tensor:
    ir = popxl.gcg().ir
    yes, no = ir.create_graph(ops.relu, x), ir.create_graph(ops.exp, x)
    positive = ops.greater(ops.reshape(x[0, 0], ()), popxl.constant(0.0))
    (y,) = ops.conditional(positive, yes, no, then_inputs=[x], else_inputs=[x])
    return y


def _variable(written: bool) -> Body:
    def body(x: popxl.Tensor) -> popxl.Tensor:
        state = popxl.variable(np.ones((4, 4), "float32"))
        y = x + state
        if written:
            ops.var_updates.accumulate_(state, y)
        return y

    return body


def _cache(x: popxl.Tensor) -> popxl.Tensor:
    """An entry of which a window is written at a place that a constant tells."""
    buffer = popxl.remote_buffer((4, 4), popxl.float32, 2)
    entry = popxl.constant(0, popxl.int32)
    kept = ops.remote_load(buffer, entry)
    row = ops.dynamic_update(kept, popxl.constant([1], popxl.uint32), x[:1], [0], [1], True)
    ops.remote_store(buffer, entry, row)
    return ops.relu(row)


def _kept(x: popxl.Tensor) -> popxl.Tensor:
    buffer = popxl.remote_buffer((4, 4), popxl.float32, 1)
    ops.remote_store(buffer, 0, x)
    return x


def test_work_between_streams_is_one_part() -> None:
    parts, reasons = parts_of(plan_of(ops.relu))
    assert len(parts) == 1
    assert parts[0].count("Exp") == 10
    assert [reason.split(":")[0] for reason in reasons] == ["HostLoad", "HostStore"]


def test_a_loop_over_weights_that_stay_is_in_a_part() -> None:
    (part,), _ = parts_of(plan_of(_layers))
    assert {"Loop", "RemoteLoad", "MatMul"} <= set(part)


@pytest.mark.parametrize(
    ("body", "reason", "fixed"),
    [
        (_layers, "Loop: it loads weights that have no fixed place", False),
        (_entry_of_the_data, "RemoteLoad: data tell which entry it is", True),
        (_branch, "If: it depends on data what runs", True),
        (_variable(written=True), "WriteState: it gives a variable another place", True),
        (_variable(written=True), "ReadState: it reads a variable that the run writes", True),
        (_kept, "RemoteStore: it gives an entry of remote memory another place", True),
        (ops.print_tensor, "PrintTensor: its kernel needs the host", True),
    ],
)
def test_what_needs_the_host_divides_parts_and_says_why(
    body: Body, reason: str, fixed: bool
) -> None:
    parts, reasons = parts_of(plan_of(body), fixed)
    assert len(parts) == 2
    assert any(found.startswith(reason) for found in reasons), reasons


def test_what_uses_weights_without_a_place_is_not_handed_them() -> None:
    """A part would copy its inputs; weights must not be among them."""

    def body(x: popxl.Tensor) -> popxl.Tensor:
        return x @ ops.transpose(ops.remote_load(_weights(), 0))

    parts, reasons = parts_of(plan_of(body), is_fixed=False)
    assert not any({"MatMul", "Transpose", "Linear"} & set(part) for part in parts)
    assert sum("it uses weights that have no fixed place" in reason for reason in reasons) >= 1


def test_variables_that_are_read_and_entries_written_in_place_are_in_parts() -> None:
    for body, kind, name in ((_variable(False), "ReadState", "states"), (_cache, None, "buffers")):
        plan, _ = record_parts(plan_of(body), EVERYTHING_STAYS)
        (part,) = [step for step in plan.steps() if step.kind == "Recorded"]
        assert (kind or "RemoteUpdate") in _kinds(part)
        assert len(part.attrs[name]) == 1


def test_entries_that_may_lie_on_the_host_are_in_no_part() -> None:
    plan = plan_of(lambda x: _cache(x) @ x)
    (whole,), _ = parts_of(plan)
    assert "RemoteUpdate" in whole
    parts, reasons = parts_of(plan, stays=False)
    assert len(parts) == 2
    assert not any("RemoteUpdate" in part for part in parts)
    assert any("an entry that may lie on the host" in reason for reason in reasons)
    # What is made of them is not copied to a fixed place either.
    assert any(reason.startswith("Relu: it uses weights") for reason in reasons)


def test_regions_of_a_trace_are_parts_of_their_own() -> None:
    def body(x: popxl.Tensor) -> popxl.Tensor:
        with popxl.name_scope("first"):
            x = _work(x)
        with popxl.name_scope("second"):
            return _work(x)

    plan = plan_of(body)
    assert [len(parts_of(plan, traced=traced)[0]) for traced in (False, True)] == [1, 4]


def test_little_work_is_not_recorded() -> None:
    def program(ir: popxl.Ir) -> None:
        x = ops.exp(ops.host_load(popxl.h2d_stream((4, 4), popxl.float32, "x")))
        ops.host_store(popxl.d2h_stream(x.shape, x.dtype, "y"), x)

    functional, _ = specialise(to_functional(build(program)), Varying())
    assert parts_of(lower(functional, functional.main))[0] == []


def test_parts_free_what_they_take_and_give_what_is_used_later() -> None:
    def body(x: popxl.Tensor) -> popxl.Tensor:
        both = ops.print_tensor(ops.exp(x))
        return both + x

    plan, _ = record_parts(plan_of(body), EVERYTHING_STAYS)
    first, second = [step for step in plan.body.steps if step.kind == "Recorded"]
    alive: set[int] = set()
    for step in plan.body.steps:
        alive |= {out.slot for out in step.outs}
        assert set(step.frees) <= alive
        alive -= set(step.frees)
    assert not alive
    assert len(first.outs) == 2
    inside = {out.slot for step in second.bodies[0].steps for out in step.outs}
    assert all(set(step.frees) <= inside for step in second.bodies[0].steps)
