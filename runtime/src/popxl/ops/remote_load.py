"""Loads from remote memory."""

from __future__ import annotations

import numpy as np
from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops.init import init_attrs
from popxl.ops.utils import _create_op, check_in_graph
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Tensor, constant
from popxl_torch.ir.opdef import OpDef, define

define(OpDef("RemoteLoad", lambda ins, attrs: [attrs["buffer"].spec], effect=True))
define(
    OpDef(
        "RemoteLoadInplace",
        lambda ins, attrs: [attrs["buffer"].spec],
        pure="RemoteLoad",
        writes=0,
        effect=True,
    )
)


def _offset_tensor(offset: int | Tensor) -> Tensor:
    """An offset as a one-element integer tensor of the current graph."""
    if isinstance(offset, Tensor):
        check_in_graph(get_current_context().graph, offset=offset)
        if offset.nelms != 1 or not offset.dtype.is_int:
            raise ValueError(f"The offset must be one integer, not {offset}.")
        return offset
    if isinstance(offset, bool | np.integer) or not isinstance(offset, int):
        raise TypeError(f"The offset must be an int or a Tensor, not {type(offset)}.")
    return constant(offset, dtypes.uint32, name="offset")


@op_debug_context
def remote_load(
    remote_buffer: RemoteBuffer, offset: int | Tensor, name: str | None = None
) -> Tensor:
    """A copy of entry ``offset`` of a buffer: its shape, dtype and meta shape.

    Args:
        remote_buffer: entries of one shape and dtype.
        offset: entry; an int, or one integer that is known at run time.
        name: debug name; the result's is ``<name>_remote_loaded``.

    Raises:
        TypeError: the offset is neither an int nor a Tensor (NumPy's integers are not).
        ValueError: the offset is not one integer of the current graph.
    """
    index = _offset_tensor(offset)
    base = name or f"id_{remote_buffer.remote_buffer_id}_offset_{index.name}"
    spec = remote_buffer._record.spec
    (target,) = _create_op("Init", [], init_attrs(spec, zero=False), [f"{base}_remote_load"])
    attrs = {"buffer": remote_buffer._record}
    return _create_op("RemoteLoad", [target, index], attrs, [f"{base}_remote_loaded"])[0]


@op_debug_context
def remote_load_(remote_buffer: RemoteBuffer, offset: int | Tensor, t: Tensor) -> Tensor:
    """Load entry ``offset`` into ``t``; returns an alias of it.

    Args:
        remote_buffer: entries of one shape and dtype.
        offset: entry; an int, or one integer that is known at run time.
        t: of the entries' shape and dtype; takes the buffer's meta shape.

    Raises:
        TypeError: the offset is neither an int nor a Tensor (NumPy's integers are not).
        ValueError: the offset is not one integer of the current graph, or shape or
            dtype of ``t`` is not that of the buffer's entries.
    """
    check_in_graph(get_current_context().graph, t=t)
    remote_buffer.validate_tensor_matches_buffer(t)
    index = _offset_tensor(offset)
    t._value.spec = remote_buffer._record.spec  # (quirk) also takes the buffer's meta shape
    attrs = {"buffer": remote_buffer._record}
    return _create_op("RemoteLoadInplace", [t, index], attrs, ["remote_load_inplace_out"])[0]


def multiply_tuple(tup: tuple[int, ...]) -> int:
    """Product of the elements."""
    result = 1
    for element in tup:
        result *= element
    return result
