"""Fully connected layer with float8 arithmetic."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ReplicaGrouping, float8_143, float8_152, ops
from popxl_addons._initialisers import Full, TruncatedNormal
from popxl_addons.layers.linear import Linear
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.ops.fp8_amax_scale import fp8_amax_scale
from popxl_addons.ops.fp8_mse_scale import fp8_mse_scale
from popxl_addons.utils import WeightsDict

# Room for the sums of a gradient's products, as a power of two.
_HEADROOM = 3
_MAX_SCALE = 31


class LinearFP8(Module):
    """y = x @ weight + bias with the product of float8 values, whose scales are found each time.

    Its gradient is its own, so use it as a graph or through `call_module`, not inline.

    Args:
        out_features: size of the last axis of y.
        bias: whether there is a bias.
        scale_metric: how scales are found: "amax", "mse", or "manual_scale" for `scale`.
        scale: power of two by which values are multiplied before the cast.
        replica_grouping: of the variables.

    Raises:
        ValueError: another metric.
    """

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        scale_metric: str = "amax",
        scale: int = 0,
        replica_grouping: ReplicaGrouping | None = None,
    ) -> None:
        super().__init__()
        scales = {"amax": fp8_amax_scale, "mse": fp8_mse_scale, "manual_scale": self._manual_scale}
        if scale_metric not in scales:
            raise ValueError(f"LinearFP8: scale_metric is one of {[*scales]}, got {scale_metric!r}")
        self.out_features = out_features
        self.bias = bias
        self.replica_grouping = replica_grouping
        self.scale_metric = scale_metric
        self.scale = scale
        self.forward_fp8_type = float8_143
        self.grad_fp8_type = float8_152
        self.fp8_scale = scales[scale_metric]

    def _manual_scale(self, src: popxl.Tensor, dtype: popxl.dtype) -> popxl.Tensor:
        return popxl.constant(self.scale, popxl.int32, "scale")

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Apply the layer.

        Args:
            x: (..., in_features), float16 or float32. The weight is (in_features, out_features).
        """
        group, fp8 = self.replica_grouping, self.forward_fp8_type
        shape = (x.shape[-1], self.out_features)
        weight = self.add_variable_input(
            "weight", TruncatedNormal(shape), x.dtype, replica_grouping=group
        )
        weight_scale, x_scale = self.fp8_scale(weight, fp8), self.fp8_scale(x, fp8)
        weight8 = ops.pow2scale_cast_to_fp8(weight, weight_scale, fp8)
        x8 = ops.pow2scale_cast_to_fp8(x, x_scale, fp8)
        self.aux["weight8"], self.aux["weight_scale"] = weight8, weight_scale
        self.aux["x8"], self.aux["x_scale"] = x8, x_scale
        y = ops.matmul_pow2scaled(x8, weight8, ops.negate(weight_scale + x_scale))
        y = ops.cast(y, x.dtype) if x.dtype == popxl.float32 else y
        if self.bias:
            zeros = Full((y.shape[-1],), 0.0)
            y = y + self.add_variable_input("bias", zeros, x.dtype, replica_grouping=group)
        return y

    def build_grad(self, dLdy: popxl.Tensor) -> popxl.Tensor:
        """Gradients by x, which is returned, weight and bias; float16 but for the bias's."""
        fp8 = self.grad_fp8_type
        weight8, weight_scale = self.aux["weight8"], self.aux["weight_scale"]
        x8, x_scale = self.aux["x8"], self.aux["x_scale"]
        scale = self.fp8_scale(dLdy, fp8) - _HEADROOM
        scale = ops.cast(
            ops.clip(ops.cast(scale, popxl.float32), -_MAX_SCALE, _MAX_SCALE), popxl.int32
        )
        rows = dLdy.reshape((-1, self.out_features))
        rows8 = ops.pow2scale_cast_to_fp8(rows, scale, fp8)
        dx = ops.matmul_pow2scaled(rows8, weight8.T, ops.negate(weight_scale + scale))
        x_rows8 = x8.reshape((-1, x8.shape[-1]))
        self.var_grad["weight"] = ops.matmul_pow2scaled(
            rows8.T, x_rows8, ops.negate(x_scale + scale)
        ).T
        if self.bias:
            self.var_grad["bias"] = ops.sum(rows, axis=0)
        return dx.reshape(x8.shape)

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtype = popxl.float32
    ) -> WeightsDict:
        """Data for the variables from a `torch.nn.Linear`."""
        return Linear.torch_mapping(variables, nn_layer, dtype)
