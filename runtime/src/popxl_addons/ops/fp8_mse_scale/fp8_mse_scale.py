"""Scale for a cast to float8 from the mean squared error."""

from __future__ import annotations

import popxl
from popxl import float8_143

__all__ = ["fp8_mse_scale"]


def fp8_mse_scale(src: popxl.Tensor, dtype: popxl.dtype = float8_143) -> popxl.Tensor:
    """The log2 scale with the least squared error. Not implemented yet."""
    raise NotImplementedError("popxl_addons.ops.fp8_mse_scale is not implemented yet")
