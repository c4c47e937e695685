"""``popart._internal.ir.op``: ops by kind and class, and the tensors that they add to a graph."""

from __future__ import annotations

from inspect import isfunction
from operator import attrgetter
from typing import Any

import popart._internal.ir as _ir
import popxl
import pytest
from popxl import ops
from popxl.ops import collectives, var_updates

from runtime.tests.popart.op_cases import CASES, Build, graph, last, var, x


@pytest.mark.parametrize(
    ("kind", "name", "outputs", "build"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_op(main: popxl.Graph, kind: str, name: str, outputs: str, build: Build):
    build()
    op = last(main)
    assert op.opType() == op.opid.type == kind
    assert type(op) is attrgetter(name)(_ir.op)
    assert isinstance(op, _ir.Op)
    found = [tensor.id.split("__t")[0] for tensor in op.getOutputTensors()]
    assert found == outputs.split()


@pytest.mark.parametrize("build", [case[-1] for case in CASES], ids=[case[0] for case in CASES])
def test_tensors_of_a_graph_are_those_it_was_given_and_outputs(main: popxl.Graph, build: Build):
    build()
    made = sum(len(op.getOutputTensors()) for op in main._pb_graph.getOps())
    streams = sum(tensor._value.kind == "stream" for tensor in main.tensors)
    assert len(main.tensors) == made + len(main.variables) + len(main.constants) + streams


def test_every_function_has_a_case():
    modules = (ops, var_updates, collectives)
    functions = {n for m in modules for n in m.__all__ if isfunction(getattr(m, n))}
    # Made of other ops, or the same op under another name.
    made_of_others = {"flatten_", "isfinite", "rename", "clamp", "repeat"}
    with_info = {name for name in functions if name.endswith("_with_info")}
    identical = {name for name in functions if name.startswith("all_reduce_identical")}
    assert functions - {case[0] for case in CASES} == made_of_others | with_info | identical


def test_repeat_is_a_loop_around_a_call(main: popxl.Graph):
    info = ops.repeat_with_info(graph(), 3, x())
    loop = last(main)
    assert isinstance(loop, _ir.op.LoopOp)
    assert loop.opType() == "Loop"
    assert (loop.getTripCountValue(), loop.getNumExplicitInputs()) == (3, 1)
    (call,) = info.called_graph._pb_graph.getOps()
    assert isinstance(call, _ir.op.CallOp)
    assert loop.getCalledGraph() == info.called_graph._pb_graph
    (output,) = loop.getOutputTensors()
    assert output.id.startswith("add_out__t")


@pytest.mark.parametrize(
    ("expression", "added", "constants"),
    [
        (lambda t: t + t, 1, 0),
        (lambda t: t + 1, 2, 1),
        (lambda t: t[0], 2, 0),
        (ops.log2, 4, 1),
        (ops.relu_, 1, 0),
        (lambda t: ops.split(t, 2), 2, 0),
    ],
    ids=["add", "coerced", "index", "log2", "in place", "split"],
)
def test_tensors_that_an_expression_adds(
    main: popxl.Graph, expression: Build, added: int, constants: int
):
    t = x()
    before = len(main.tensors)
    expression(t)
    assert len(main.tensors) - before == added
    assert len(main.constants) == constants
    assert len(main.variables) == 1


def test_a_call_adds_one_tensor_for_each_output(main: popxl.Graph):
    t, called = x(), graph(lambda t: (t + t, t * t))
    before = len(main.tensors)
    assert len(called.tensors) == 3
    ops.call(called, t)
    assert (len(main.tensors) - before, len(called.tensors)) == (2, 3)


def test_hooks_get_ops_of_their_class(main: popxl.Graph):
    seen: list[Any] = []
    handle = main.register_op_created_hook(seen.append)
    ops.relu(x())
    main.remove_op_created_hook(handle)
    assert [type(op) for op in seen] == [_ir.op.ReluOp]


def test_kinds_without_a_class_are_ops(main: popxl.Graph):
    import popxl_addons as addons  # noqa: F401
    from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed

    rotary_pos_embed(var(1, 2, 1, 4), var(2, 2), var(2, 2))
    assert type(last(main)) is _ir.Op


def test_unknown_names():
    for namespace in (_ir, _ir.op, _ir.op.exchange, _ir.op.dynamic, _ir.op.collectives):
        with pytest.raises(AttributeError):
            _ = namespace.NoSuchOp
    with pytest.raises(AttributeError):
        _ = _ir.op.HostLoadOp
