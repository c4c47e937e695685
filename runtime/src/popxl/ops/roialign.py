"""Averages over regions of interest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Tuple

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, rois, batch_index = specs
    if len(t.shape) != 4 or len(rois.shape) != 2 or rois.shape[1] != 4:
        raise popart_exception(f"roi_align: expected (N, C, H, W) and (R, 4), got {t} and {rois}")
    if batch_index.shape != rois.shape[:1]:
        raise popart_exception(
            f"roi_align: expected {rois.shape[0]} batch indices, got {batch_index}"
        )
    if len(attrs["output_size"]) != 2:
        raise popart_exception(f"roi_align: output_size needs 2 values, not {attrs['output_size']}")
    return [Spec((rois.shape[0], t.shape[1], *attrs["output_size"]), t.dtype)]


define(OpDef("RoiAlign", _infer))


@op_debug_context
def roi_align(
    t: Tensor,
    rois: Tensor,
    batch_index: Tensor,
    output_size: Tuple[int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """Average of bilinear samples in each bin of each region.

    Args:
        t: (N, C, H, W).
        rois: (R, 4) as x1, y1, x2, y2.
        batch_index: (R,) int32: which of N a region lies in.
        output_size: bins: (height, width).
        spatial_scale: from the regions' coordinates to those of ``t``.
        sampling_ratio: samples per bin and axis; 0 takes about one per element.

    Returns:
        (R, C, height, width).

    Raises:
        popart_exception: other shapes.
    """
    check_in_graph(get_current_context().graph, t=t, rois=rois, batch_index=batch_index)
    check_tensor_ipu_and_tile_set(t=t, rois=rois, batch_index=batch_index)
    attrs = {
        "output_size": tuple(output_size),
        "spatial_scale": float(spatial_scale),
        "sampling_ratio": int(sampling_ratio),
    }
    return _create_op("RoiAlign", [t, rois, batch_index], attrs, ["roi_align_out"])[0]


define(OpDef("RoiAlignGrad", to_shape))


@gradient("RoiAlign")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        regions = site.input(1), site.input(2)
        shape = site.in_spec().shape
        return gradient_op("RoiAlignGrad", site.grad(), *regions, **site.attrs, shape=shape)

    return [grad, None, None]
