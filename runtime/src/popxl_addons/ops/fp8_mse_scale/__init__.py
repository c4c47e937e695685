"""Scale for a cast to float8 from the mean squared error."""

from popxl_addons.ops.fp8_mse_scale.fp8_mse_scale import fp8_mse_scale

__all__ = [
    "fp8_mse_scale",
]
