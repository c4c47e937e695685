"""Scale for a cast to float8 from the largest value."""

from __future__ import annotations

import popxl
from popxl import float8_143

__all__ = ["fp8_amax_scale"]


def fp8_amax_scale(src: popxl.Tensor, dtype: popxl.dtype = float8_143) -> popxl.Tensor:
    """The log2 scale with which the largest element just fits. Not implemented yet."""
    raise NotImplementedError("popxl_addons.ops.fp8_amax_scale is not implemented yet")
