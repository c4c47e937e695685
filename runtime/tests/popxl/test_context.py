"""The build context: stacks, placement, names, ordering, hooks."""

from __future__ import annotations

import sys
from typing import Any

import popxl
import pytest
from popxl import ops
from popxl.context import (
    _execution_context,
    debug_context_frame_offset,
    get_current_context,
    op_debug_context,
)

ASKING = [popxl.gcg, popxl.gmg, popxl.gir]


@pytest.mark.parametrize("ask", ASKING)
def test_nothing_active(ask: Any):
    with pytest.raises(RuntimeError):
        ask()


def test_op_without_a_graph(ir: popxl.Ir):
    with ir.main_graph:
        x = popxl.variable(1)
    with pytest.raises(RuntimeError):
        ops.add(x, x)


def test_aliases():
    assert popxl.get_current_graph is popxl.gcg
    assert popxl.get_main_graph is popxl.gmg
    assert popxl.get_ir is popxl.gir


def test_a_sub_graph_alone_leads_to_its_ir(ir: popxl.Ir):
    graph = ir.create_empty_graph()
    with graph:
        assert popxl.gcg() is graph
        assert popxl.gmg() is ir.main_graph
        assert popxl.gir() is ir


def test_nesting(ir: popxl.Ir):
    graph = ir.create_empty_graph()
    with ir.main_graph, graph:
        assert popxl.gcg() is graph
        with ir.main_graph:
            assert popxl.gcg() is ir.main_graph
        assert popxl.gcg() is graph


def test_a_graph_of_another_ir(ir: popxl.Ir):
    with ir.main_graph as graph:
        with pytest.raises(RuntimeError, match="another Ir"), popxl.Ir().main_graph:
            pass
        assert popxl.gcg() is graph


def test_ipu(main: popxl.Graph):
    x = popxl.variable(1)
    with popxl.ipu(1) as number:
        one = x + 1
        with popxl.ipu(2):
            two = x + 1
        again = x + 1
    zero = x + 1
    assert number == 1
    assert [t.ipu for t in (one, two, again, zero)] == [1, 2, 1, 0]


def test_io_tiles(main: popxl.Graph):
    x = popxl.variable(1)
    with popxl.io_tiles() as nothing:
        inside = x + 1
    assert nothing is None
    assert inside.tile_set == "io"
    assert (x + 1).tile_set == "compute"


def test_name_scopes(main: popxl.Graph):
    with popxl.name_scope("a") as outer, popxl.name_scope("b") as inner:
        w = popxl.variable(1, name="w")
        stream = popxl.h2d_stream((), popxl.int32, "s")
        assert get_current_context().name_scopes == ["a", "b"]
    assert (outer, inner) == (["a"], ["a", "b"])
    assert w.name == "a/b/w"
    assert stream.tensor_id == "a/b/s"
    assert get_current_context().name_scopes == []


def test_name_scopes_reach_graphs_that_are_built_inside(ir: popxl.Ir):
    with popxl.name_scope("a"):
        graph = ir.create_graph(lambda x: x + 1, popxl.TensorSpec((), popxl.int32))
    assert graph.inputs[0].name == "a/x"
    assert graph.outputs[0].id.startswith(graph.id + "/a/")


def test_managers_are_decorators_too(main: popxl.Graph):
    x = popxl.variable(1)

    @popxl.ipu(3)
    def build():
        return x + 1

    assert build().ipu == 3
    assert (x + 1).ipu == 0


@pytest.mark.parametrize(
    ("manager", "attribute", "value"),
    [
        (lambda: popxl.ipu(1), "ipu_id", 1),
        (popxl.io_tiles, "io_tile_set", True),
        (lambda: popxl.name_scope("a"), "name_scopes", ["a"]),
        (popxl.in_sequence, "in_sequence", True),
    ],
)
def test_managers_do_not_restore_after_an_exception(
    clean_context: Any, manager: Any, attribute: str, value: object
):
    before = getattr(clean_context, attribute)
    with pytest.raises(KeyError), manager():
        raise KeyError
    assert getattr(clean_context, attribute) == value != before


def test_in_sequence_modes():
    context = get_current_context()
    assert context.in_sequence is None
    with popxl.in_sequence() as mode:
        assert mode is context.in_sequence is True
        with popxl.in_sequence(False):
            assert context.in_sequence is False
        with popxl.in_sequence("pass") as word:
            assert word == "pass"
            assert context.in_sequence is None
        assert context.in_sequence is True
    assert context.in_sequence is None


def test_in_sequence_none():
    with pytest.raises(TypeError), popxl.in_sequence(None):  # type: ignore[arg-type]
        pass


def test_unknown_mode_fails_with_the_next_op(main: popxl.Graph):
    x = popxl.variable(1)
    with (
        pytest.raises(ValueError, match="in_sequence"),
        popxl.in_sequence("always"),  # type: ignore[arg-type]
    ):
        ops.negate(x)
    get_current_context().in_sequence = None


def test_in_sequence_can_be_set_but_not_deleted(clean_context: Any):
    clean_context.in_sequence = True
    assert clean_context.in_sequence is True
    with pytest.raises(AttributeError):
        del clean_context.in_sequence


def test_execution_context(main: popxl.Graph):
    fragment = popxl.ExecutionContext.WeightsFromHostFragment
    x = popxl.variable(1)
    with _execution_context(fragment) as found:
        inside = ops.negate(x)
    outside = ops.negate(x)
    assert found is fragment
    assert inside._value.producer.context == "WeightsFromHostFragment"
    assert outside._value.producer.context == "Normal"


def test_hooks_see_every_graph(clean_context: Any, ir: popxl.Ir, main: popxl.Graph):
    seen: list[str] = []
    handle = clean_context.register_op_created_hook(lambda op: seen.append(op.opType()))
    x = popxl.variable(1)
    ops.call(ir.create_graph(lambda a: a * 2, x), x)
    assert seen == ["Mul", "Call"]
    clean_context.remove_op_created_hook(handle)
    ops.negate(x)
    assert seen == ["Mul", "Call"]


def test_decorators_pass_everything_through():
    @op_debug_context
    def bare(a, b=2):
        return a, b

    @op_debug_context("name")
    def named(*args, **kwargs):
        return args, kwargs

    @debug_context_frame_offset(1)
    def offset(a):
        return a

    assert bare(1, b=3) == (1, 3)
    assert bare.__name__ == "bare"
    assert named(1, c=2) == ((1,), {"c": 2})
    assert offset(5) == 5


def test_ops_know_the_line_that_built_them(main: popxl.Graph):
    x = popxl.variable([1.0, 2.0])
    line = sys._getframe().f_lineno + 1
    y = ops.relu(x)
    assert y._value.producer.location == f"{__file__}:{line}"
    line = sys._getframe().f_lineno + 1
    z = x + 1.0
    assert z._value.producer.location == f"{__file__}:{line}"


def test_location_enums():
    location = popxl.TensorLocation(popxl.TensorStorage.OffChip, popxl.ReplicatedTensorSharding.On)
    assert location.storage is popxl.TensorStorage.OffChip
    assert location.replicated_tensor_sharding is popxl.ReplicatedTensorSharding.On
    assert popxl.TensorLocation().storage is popxl.TensorStorage.OnChip
    assert {t.name for t in popxl.TileSet} == {"Compute", "IO", "Undefined", "N"}
