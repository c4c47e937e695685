"""Resizing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Tuple, get_args

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

InterpolateType = Literal["nearest", "linear", "cubic"]
InterpolateNearestType = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
InterpolateCoordinateTransformationType = Literal[
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"
]


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (t,), scales = specs, attrs["scales"]
    if len(scales) != len(t.shape):
        raise popart_exception(f"interpolate: {len(t.shape)} scale factors expected, not {scales}")
    sizes = (math.floor(size * scale) for size, scale in zip(t.shape, scales, strict=True))
    return [Spec(tuple(sizes), t.dtype)]


define(OpDef("Resize", _infer))


def _check(what: str, value: Any, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"The {what} {value!r} is not valid; use one of {get_args(allowed)}.")


@op_debug_context
def interpolate(
    t: Tensor,
    scale_factor: Optional[Tuple[float]] = (1.0, 1.0, 1.0, 1.0),  # type: ignore[assignment]
    mode: Optional[InterpolateType] = "nearest",
    nearest_mode: Optional[InterpolateNearestType] = "round_prefer_floor",
    coordinate_transformation_mode: Optional[
        InterpolateCoordinateTransformationType
    ] = "half_pixel",
) -> Tensor:
    """Resizes each axis, as ONNX's Resize.

    Args:
        t: any shape.
        scale_factor: one per axis; sizes are rounded down.
        mode: ``nearest``, ``linear`` or ``cubic``.
        nearest_mode: how ``nearest`` rounds a coordinate.
        coordinate_transformation_mode: which coordinate of the input a result stands for.

    Raises:
        ValueError: an unknown mode.
        popart_exception: not one factor per axis.
    """
    check_in_graph(get_current_context().graph, t=t)
    _check("mode", mode, InterpolateType)
    _check("nearest mode", nearest_mode, InterpolateNearestType)
    _check(
        "coordinate transformation mode",
        coordinate_transformation_mode,
        InterpolateCoordinateTransformationType,
    )
    attrs = {
        "scales": tuple(float(scale) for scale in scale_factor or ()),
        "mode": mode,
        "nearest_mode": nearest_mode,
        "transformation": coordinate_transformation_mode,
    }
    return _create_op("Resize", [t], attrs, ["interpolate_out"])[0]


define(OpDef("ResizeGrad", to_shape))


@gradient("Resize")
def _gradients(site: GradSite) -> Grads:
    return [
        lambda: gradient_op("ResizeGrad", site.grad(), **site.attrs, shape=site.in_spec().shape)
    ]
