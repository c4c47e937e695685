"""Checks and helpers that the op functions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from popart._internal import ir as _ir
from popxl import dtypes
from popxl.context import get_current_context
from popxl.tensor import Tensor
from popxl_torch.ir import records
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import opdef

if TYPE_CHECKING:
    from popxl.graph import Graph

__all__ = [
    "cast_if_needed",
    "check_in_graph",
    "check_tensor_ipu_and_tile_set",
    "convert_optional_dtype",
    "convert_optional_float",
    "convert_optional_int",
    "convert_optional_int64_list",
    "handle_negative_axis",
]


def _create_op(
    kind: str,
    inputs: Sequence[Tensor | None],
    attrs: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
    *,
    graphs: tuple[records.Graph, ...] = (),
    specs: Sequence[records.Spec] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Tensor]:
    """Append an op to the current graph and return its outputs.

    Args:
        kind: an identifier that some module declared with ``opdef.define``.
        inputs: tensors of the current graph, None where unconnected.
        attrs: compile-time attributes, normalised (non-negative axes, tuples).
        names: debug names of the outputs, one each; name scopes are added here.
        graphs: sub-graphs, for control flow.
        specs: output specs; by default the kind's ``infer`` rule gives them.
        ids: full and unique ids of the outputs, instead of the ones made from ``names``.

    Raises:
        popart_exception: the infer rule rejects the inputs.
    """
    ctx = get_current_context()
    graph = ctx.graph
    definition = opdef(kind)
    values = [None if t is None else t._value for t in inputs]
    settings = ctx._get_op_settings(names[0] if names else kind)
    attrs = dict(attrs or {})
    if specs is None:
        try:
            specs = definition.infer([None if v is None else v.spec for v in values], attrs)
        except popart_exception as error:
            shown = ", ".join(repr(v) for v in values if v is not None)
            raise type(error)(
                f"{kind} in graph {graph.id or '(main graph)'}: {error}\n"
                f"  inputs: {shown}\n  built at {settings.location}"
            ) from None
    if len(specs) != len(names):
        raise ValueError(f"{kind}: {len(specs)} outputs but {len(names)} names")
    unique = ids or (graph._create_tensor_id(name) for name in names)
    op = _ir.append_op(graph._record, kind, values, specs, unique, settings, attrs, graphs)
    ctx._follow(op, graph)
    return [Tensor._from_value(value) for value in op.outputs]


def check_in_graph(graph: Graph, *args: Any, **tensors: Tensor) -> None:
    """Every argument must be a Tensor (TypeError) of ``graph`` (ValueError)."""
    named = [(f"{i}", t) for i, t in enumerate(args)] + list(tensors.items())
    for name, tensor in named:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"The input `{name}` is not a Tensor. Type: {type(tensor)}.")
        if tensor._value.graph is not graph._record:
            raise ValueError(
                f"The input tensor `{name}` is not in the current Graph. Tensor: {tensor}, its"
                f" graph: '{tensor.scope}', current graph: '{graph.id}'."
            )


def check_tensor_ipu_and_tile_set(*args: Any, **tensors: Tensor) -> None:
    """Known placements of the arguments must agree (ValueError)."""
    values = [t._value for t in [*args, *tensors.values()] if isinstance(t, Tensor)]
    for what, attribute in (("IPUs", "ipu"), ("tile sets", "tile_set")):
        known = {v.id: getattr(v, attribute) for v in values if getattr(v, attribute) is not None}
        if len(set(known.values())) > 1:
            raise ValueError(f"The input tensors are located on different {what}: {known}.")


def cast_if_needed(t: Tensor, data_type: dtypes.dtype) -> Tensor:
    """``t`` itself if it has the dtype, else a cast of it."""
    from popxl.ops.cast import cast

    return t if t.dtype is data_type else cast(t, data_type)


def handle_negative_axis(t: Tensor, axis: int) -> int:
    """``axis`` counted from the front; not range-checked."""
    return axis + t.rank if axis < 0 else axis


def convert_optional_float(v: float | None) -> float | None:
    """Optional attributes need no wrapping here."""
    return v


def convert_optional_int(v: int | None) -> int | None:
    """Optional attributes need no wrapping here."""
    return v


def convert_optional_dtype(dt: dtypes.dtype | None) -> str | None:
    """The dtype's name."""
    return None if dt is None else dt.name


def convert_optional_int64_list(l: list[int] | None) -> list[int] | None:  # noqa: E741
    """Optional attributes need no wrapping here."""
    return l
