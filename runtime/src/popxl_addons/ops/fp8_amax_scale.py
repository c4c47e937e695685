"""Scale for a cast to float8 from the largest value."""

from __future__ import annotations

import popxl
from popxl import float8_143, float8_152, ops
from popxl_addons.ops.fp8_utils import float8_143_def, float8_152_def

__all__ = ["fp8_amax_scale"]

_FORMATS = {float8_143: float8_143_def, float8_152: float8_152_def}
# Range of the scale that the casts take.
_MAX_SCALE = 31


def fp8_amax_scale(src: popxl.Tensor, dtype: popxl.dtype = float8_143) -> popxl.Tensor:
    """The largest log2 scale with which the largest element still fits, an int32 scalar.

    Args:
        src: float16 or float32.
        dtype: float8_143 or float8_152.

    Raises:
        RuntimeError: `src` has another dtype.
        ValueError: another target dtype. (mended) Upstream fails on an unbound name.
    """
    if src.dtype not in (popxl.float16, popxl.float32):
        raise RuntimeError(f"fp8_amax_scale: src is float16 or float32, got {src.dtype}")
    if dtype not in _FORMATS:
        raise ValueError(f"fp8_amax_scale: dtype is one of {list(_FORMATS)}, got {dtype}")
    largest = popxl.constant(_FORMATS[dtype].max_value, src.dtype)
    scale = ops.floor(ops.log2(largest / ops.max(ops.abs(src))))
    return ops.cast(ops.clip(scale, -_MAX_SCALE, _MAX_SCALE), popxl.int32)
