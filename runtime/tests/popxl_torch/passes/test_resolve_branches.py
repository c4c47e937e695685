"""Which conditions are settled before a run, and what is left of the program then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import popxl
import pytest
from popxl import ops
from popxl_torch.passes.pipeline import to_functional
from popxl_torch.passes.resolve_branches import Choices, find_choices, take
from popxl_torch.passes.ssa import Functional

from runtime.tests.popxl_torch.programs import build, kinds_of

Build = Callable[[popxl.Ir, popxl.Tensor], popxl.Tensor]


def _conditional(condition: popxl.Tensor, x: popxl.Tensor) -> popxl.Tensor:
    """exp(x) or tanh(x)."""
    ir = popxl.gcg().ir
    branches = ir.create_graph(lambda t: ops.exp(t), x), ir.create_graph(lambda t: ops.tanh(t), x)
    return ops.conditional(condition, *branches, [x], [x])[0]


def _program(condition: Build) -> tuple[Functional, Choices]:
    def body(ir: popxl.Ir) -> None:
        x = ops.host_load(popxl.h2d_stream((2,), popxl.float32, "x"))
        y = _conditional(condition(ir, x), x)
        ops.host_store(popxl.d2h_stream((2,), popxl.float32, "y"), y)

    functional = to_functional(build(body))
    return functional, find_choices(functional)


def _kind() -> popxl.Tensor:
    return ops.host_load(popxl.h2d_stream((), popxl.int32, "kind"))


def _is_two(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    return ops.equal(_kind() + 1, popxl.constant(3, popxl.int32))


def _on_device(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    return ops.equal(popxl.variable(np.int32(1), popxl.int32), popxl.constant(1, popxl.int32))


def _of_floats(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    return ops.greater(ops.sum(x), popxl.constant(0.0))


def _of_much(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    many = ops.host_load(popxl.h2d_stream((65,), popxl.int32, "many"))
    return ops.equal(ops.sum(many), popxl.constant(3, popxl.int32))


def _loaded_twice(ir: popxl.Ir, x: popxl.Tensor) -> popxl.Tensor:
    stream = popxl.h2d_stream((), popxl.int32, "kind")
    return ops.equal(ops.host_load(stream), ops.host_load(stream))


def test_a_settled_condition_leaves_one_branch_and_no_load_of_it() -> None:
    functional, choices = _program(_is_two)
    assert [stream.id for stream in choices.streams] == ["kind"]
    assert "Exp" not in kinds_of(choices.program.main)
    yes, no = (kinds_of(take(functional, choices, (way,)).main) for way in (True, False))
    assert yes == ["HostLoad", "Taken", "Exp", "HostStore"]
    assert no == ["HostLoad", "Taken", "Tanh", "HostStore"]
    assert "If" in kinds_of(functional.main)


@pytest.mark.parametrize("condition", [_on_device, _of_floats, _of_much, _loaded_twice])
def test_conditions_that_the_run_must_compute_are_left(condition: Build) -> None:
    functional, choices = _program(condition)
    assert not choices.nodes
    kinds = kinds_of(take(functional, choices, ()).main)
    assert {"If", "Exp", "Tanh"} <= set(kinds)


def _session(
    replicas: int = 1, executor: str = "plan", trace: str = ""
) -> tuple[popxl.Session, Callable[[object], np.ndarray]]:
    """Nested choices. Kind 0: exp(x), 1: tanh(x), else x * kind."""
    ir = popxl.Ir(replication=replicas)
    options = ir._pb_ir.getSessionOptions().engineOptions
    options["popxl_torch.executor"] = executor
    options["popxl_torch.trace"] = trace
    with ir.main_graph, popxl.in_sequence():
        source = popxl.h2d_stream((2,), popxl.float32, "x")
        target = popxl.d2h_stream((2,), popxl.float32, "y")
        number = popxl.h2d_stream((), popxl.int32, "kind")
        x, kind = ops.host_load(source), ops.host_load(number)

        def other(x: popxl.Tensor, kind: popxl.Tensor) -> popxl.Tensor:
            with popxl.name_scope("times"):
                return x * ops.cast(kind, popxl.float32)

        def either(x: popxl.Tensor, kind: popxl.Tensor) -> popxl.Tensor:
            no = ir.create_graph(other, x, kind)
            is_one = ops.equal(kind, popxl.constant(1, popxl.int32))
            yes = ir.create_graph(lambda t: ops.tanh(t), x)
            return ops.conditional(is_one, yes, no, [x], [x, kind])[0]

        yes, no = ir.create_graph(lambda t: ops.exp(t), x), ir.create_graph(either, x, kind)
        is_zero = ops.equal(kind, popxl.constant(0, popxl.int32))
        (y,) = ops.conditional(is_zero, yes, no, [x], [x, kind])
        ops.host_store(target, y)
    session = popxl.Session(ir, "ipu_hw")

    def run(kind: object) -> np.ndarray:
        shape = (replicas, 2) if replicas > 1 else (2,)
        x = np.broadcast_to(np.array([0.5, -1.0], "float32"), shape)
        number_host = np.broadcast_to(np.asarray(kind, "int32"), shape[:-1])
        return session.run({source: x, number: number_host})[target]

    return session, run


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_way_is_lowered_when_it_is_first_taken(replicas: int) -> None:
    session, run = _session(replicas)
    oracle, expected = _session(replicas, "interpreter")
    found: list[set] = []
    with session, oracle:
        for kind in (1, 0, 1, 2, 5, 0):
            np.testing.assert_allclose(run(kind), expected(kind), rtol=1e-6)
            found.append(set(session._engine._ways) - {("from_host", None)})
    paths = [{path for _, path in ways} for ways in found]
    assert paths[0] == {(False, True)}
    assert paths[1] == paths[2] == {(False, True), (True,)}
    assert paths[3] == paths[5] == {(False, True), (True,), (False, False)}


def test_replicas_that_choose_apart_run_the_whole_program() -> None:
    session, run = _session(replicas=2)
    oracle, expected = _session(2, "interpreter")
    with session, oracle:
        for kinds in ([0, 1], [1, 3], [3, 3]):
            np.testing.assert_allclose(run(kinds), expected(kinds), rtol=1e-6)
        assert ("main", None) in session._engine._ways


def test_the_trace_counts_regions_of_the_branches_taken(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    session, run = _session(trace=str(path))
    with session:
        for kind in (0, 2, 1, 3):
            run(kind)
    runs = {region["name"]: region["runs"] for region in json.loads(path.read_text())["regions"]}
    assert runs == {"": 4, "times": 2}


def test_the_trace_counts_a_region_in_which_a_run_has_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    ir = popxl.Ir()
    ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.trace"] = str(path)
    with ir.main_graph, popxl.in_sequence():
        x = ops.host_load(popxl.h2d_stream((2,), popxl.float32, "x"))
        buffer = popxl.remote_buffer((2,), popxl.float32)
        condition = _is_two(ir, x)
        store = ir.create_graph(lambda t: ops.remote_store(buffer, 0, t), x)
        with popxl.name_scope("maybe"):
            ops.conditional(condition, store, ir.create_graph(lambda t: None, x), [x], [x])
    with popxl.Session(ir, "ipu_hw") as session:
        for kind in (2, 1, 1):
            arrays = {(): np.int32(kind), (2,): np.zeros(2, "float32")}
            session.run({stream: arrays[stream.shape] for stream in session.expected_inputs()})
    runs = {region["name"]: region["runs"] for region in json.loads(path.read_text())["regions"]}
    assert runs["maybe"] == 3


def test_the_null_backend_takes_the_way_that_the_host_asks_for() -> None:
    ir = popxl.Ir()
    ir._pb_ir.getSessionOptions().engineOptions["popxl_torch.backend"] = "null"
    with ir.main_graph, popxl.in_sequence():
        x = ops.host_load(popxl.h2d_stream((2,), popxl.float32, "x"))
        y = _conditional(_is_two(ir, x), x)
        ops.host_store(popxl.d2h_stream((2,), popxl.float32, "y"), y)
    with popxl.Session(ir, "ipu_hw") as session:
        inputs = dict.fromkeys(session.expected_inputs(), np.int32(2))
        for stream in session.expected_inputs():
            if stream.shape:
                inputs[stream] = np.zeros(2, "float32")
        session.run(inputs)
        assert ("main", (True,)) in session._engine._ways
