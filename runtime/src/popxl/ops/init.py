"""A tensor without a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Iterable, Literal, Optional, Union

from popxl import dtypes
from popxl.context import op_debug_context
from popxl.ops.utils import _create_op
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    return [Spec(attrs["shape"], attrs["dtype"], attrs["meta_shape"])]


def init_attrs(spec: Spec, zero: bool) -> dict[str, Any]:
    """Attributes of an op that makes a tensor of a spec."""
    return {
        "shape": spec.shape,
        "dtype": spec.dtype,
        "zero": zero,
        "meta_shape": spec.meta_shape,
    }


define(OpDef("Init", _infer, moves_data=True))


@op_debug_context
def init(
    shape: Iterable[int],
    dtype: dtypes.dtype,
    name: Optional[str] = None,
    init_type: Union[Literal["zero"], Literal["undef"]] = "zero",
    meta_shape: Optional[Iterable[int]] = None,
) -> Tensor:
    """A new tensor of the current graph.

    Args:
        shape: sizes.
        dtype: data type.
        name: debug name.
        init_type: ``"zero"``, or ``"undef"`` if everything is written before it is read.
        meta_shape: shape of the unsharded tensor, if this is a shard.

    Raises:
        ValueError: another ``init_type``.
    """
    if init_type not in ("zero", "undef"):
        raise ValueError(f"Unknown init_type {init_type!r}: it must be 'zero' or 'undef'.")
    sizes, meta_sizes = (tuple(int(size) for size in s) for s in (shape, meta_shape or ()))
    attrs = init_attrs(Spec(sizes, dtype.name, meta_sizes), init_type == "zero")
    return _create_op("Init", [], attrs, [name or "t"])[0]
