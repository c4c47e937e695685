"""Batch normalisation with given statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t = specs[0]
    if len(t.shape) < 3:
        raise popart_exception(f"batch_norm_inference needs (N, C, *spatial), not {t}")
    for name, spec in zip(("scale", "bias", "mean", "var"), specs[1:], strict=True):
        if spec.shape != (t.shape[1],):
            raise popart_exception(
                f"batch_norm_inference: {name} must have shape ({t.shape[1]},), not {spec.shape}"
            )
    return [t]


define(OpDef("BatchNormalization", _infer, flops=lambda ins, outs, attrs: 2 * outs[0].nelms))


@op_debug_context
def batch_norm_inference(
    t: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Tensor:
    """``scale * (t - mean) / sqrt(var + epsilon) + bias``, per channel.

    Args:
        t: (N, C, *spatial).
        scale: (C,).
        bias: (C,).
        mean: (C,).
        var: (C,).
        epsilon: added to the variance.
        momentum: of training; ignored.

    Raises:
        popart_exception: other shapes.
    """
    tensors = {"t": t, "scale": scale, "bias": bias, "mean": mean, "var": var}
    check_in_graph(get_current_context().graph, **tensors)
    check_tensor_ipu_and_tile_set(**tensors)
    attrs = {"eps": float(epsilon), "momentum": float(momentum)}
    return _create_op("BatchNormalization", list(tensors.values()), attrs, ["batch_norm_out"])[0]
