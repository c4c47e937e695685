"""Loops with a fixed number of iterations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from popxl import dtypes
from popxl.context import get_current_context
from popxl.graph import Graph
from popxl.ops.call import CallSiteInfo, _bind_inputs, _check_specs, _flag_by_ref, call_with_info
from popxl.ops.utils import _create_op
from popxl.tensor import Tensor, graph_input
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define

define(OpDef("Loop", lambda ins, attrs: [], effect=True))


def repeat(
    graph: Graph,
    repeat_count: int,
    *inputs: Tensor | Iterable[Tensor],
    inputs_dict: Mapping[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Call ``graph`` ``repeat_count`` times; output k of an iteration is input k of the next.

    Inputs beyond the number of outputs have the caller's value in every iteration, unless they are
    by reference. With count 0 the results are the initial values.

    Args:
        graph: a sub-graph with at least as many inputs as outputs.
        repeat_count: number of iterations, 0 or more.
        inputs: initial values, by position; see :func:`popxl.ops.call`.
        inputs_dict: the same by input tensor of ``graph``.

    Raises:
        ValueError: negative count, fewer inputs than outputs, or input binding problems.
        popart_exception: output k and input k differ in shape or dtype.
    """
    return repeat_with_info(graph, repeat_count, *inputs, inputs_dict=inputs_dict).outputs


def repeat_with_info(
    graph: Graph,
    repeat_count: int,
    *inputs: Tensor | Iterable[Tensor],
    inputs_dict: Mapping[Tensor, Tensor] | None = None,
    check_inputs: bool = True,
) -> CallSiteInfo:
    """As :func:`repeat`, but returns the loop's site: its graph is a wrapper that calls ``graph``,
    with an iteration counter and a condition as leading inputs."""
    if repeat_count < 0:
        raise ValueError(f"Repeat count must be >= 0, not {repeat_count}.")
    outputs = graph._record.outputs
    if len(graph.inputs) < len(outputs):
        raise ValueError(
            f"To repeat the subgraph {graph.id} the number of inputs must be greater than or equal"
            f" to the number of outputs: {len(graph.inputs)} < {len(outputs)}."
        )
    bound = _bind_inputs(graph, inputs, inputs_dict, check_inputs)
    if any(t is None for t in bound):
        raise IndexError(f"Inputs of graph {graph.id} are not connected.")
    _check_specs(graph, bound)
    for out, carried in zip(outputs, graph._record.inputs, strict=False):
        if out.spec != carried.spec:
            raise popart_exception(
                f"Repeat of graph {graph.id}: output {out} cannot be carried to input {carried}"
            )
    wrapper = _wrap(graph, [t for t in bound if t is not None])
    current = get_current_context().graph._record
    scope = f"{current.id}/" if current.id else ""
    _create_op(
        "Loop",
        [None, None, *bound],
        {"count": int(repeat_count), "modified": set()},
        names=[value.name for value in outputs],
        graphs=(wrapper._record,),
        specs=[value.spec for value in outputs],
        ids=[f"{scope}{v.name}__t{next(current.program.tensor_ids)}" for v in outputs],
    )
    info = CallSiteInfo._of(current.ops[-1])
    _flag_by_ref(info, graph, bound)
    return info


def _wrap(graph: Graph, parents: list[Tensor]) -> Graph:
    """(iteration, condition, inputs...) -> (condition, outputs...) around one call of ``graph``."""
    ir = get_current_context().ir
    wrapper = ir.create_empty_graph(f"{graph.id}__loop_wrapper")
    with wrapper:
        graph_input((), dtypes.int32, "iteration")
        condition = graph_input((), dtypes.bool, "condition")
        passed = [
            graph_input(
                inner.shape, inner.dtype, parent.name, inner._value.by_ref, inner.meta_shape
            )
            for inner, parent in zip(graph.inputs, parents, strict=True)
        ]
        site = call_with_info(graph, *passed)
        wrapper._record.outputs.append(condition._value)
        wrapper._record.outputs.extend(t._value for t in site.outputs)
    return wrapper
