"""float8 on the host: encoding, decoding, and (not built yet) the choice of a scale.

Both formats have one NaN and no infinity: the code of negative zero is the NaN.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np
from popxl.errors import _not_implemented

if TYPE_CHECKING:
    from popxl import dtypes

max_scaling_bias = 31
min_scaling_bias = -31

FpDef = namedtuple(
    "FpDef",
    ["num_exp_bits", "num_mantissa_bits", "fix_exponent_bias", "include_denorm", "has_nans"],
)
ieee_fp32_no_denorms = FpDef(8, 23, 127, False, True)
ieee_fp16_denorms = FpDef(5, 10, 15, True, True)
float8_152_def = FpDef(5, 2, 16, True, False)
float8_143_def = FpDef(4, 3, 8, True, False)

_FORMATS = {"float8_143": float8_143_def, "float8_152": float8_152_def}
_NAN_CODE = 0x80
_FLOATS = ("float16", "float32", "float64")


def _decoded(name: str) -> np.ndarray:
    """(256,) float64: the value of each code."""
    exponent_bits, mantissa_bits, bias, *_ = _FORMATS[name]
    codes = np.arange(256)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    normal = np.ldexp(1 + mantissa / 2.0**mantissa_bits, exponent - bias)
    denormal = np.ldexp(mantissa / 2.0**mantissa_bits, 1 - bias)
    values = np.where(exponent == 0, denormal, normal) * np.where(codes & 0x80, -1.0, 1.0)
    values[_NAN_CODE] = np.nan
    return values


def host_pow2scale_cast_to_fp8(
    src: np.ndarray,
    dtype: dtypes.dtype = None,  # type: ignore[assignment]
    log2_scale: int = 0,
    nan_on_overflow: bool = True,
) -> np.ndarray:
    """``src * 2 ** log2_scale`` in float8, rounded to nearest, ties to even.

    Args:
        src: float16, float32 or float64 (array, torch tensor or list).
        dtype: a float8 type.
        log2_scale: exponent of the scale.
        nan_on_overflow: what is out of range becomes NaN, not the largest value.

    Returns:
        A structured array of ``src``'s shape.

    Raises:
        RuntimeError: other dtypes.
    """
    if hasattr(src, "detach") and hasattr(src, "numpy"):
        src = src.detach().cpu().numpy()
    array = np.asarray(src)
    if dtype is None or dtype.name not in _FORMATS or array.dtype.name not in _FLOATS:
        raise RuntimeError(f"Cannot cast {array.dtype} to {dtype}: expected floats and float8.")
    positive = _decoded(dtype.name)[:_NAN_CODE]  # codes 0..127 are in ascending order
    scaled = np.ldexp(array.astype(np.float64), log2_scale)
    size = np.abs(scaled)
    # Halfway to the code above; at a tie the even code wins.
    halves = (positive[:-1] + positive[1:]) / 2
    low = np.searchsorted(halves, size, side="left")
    high = np.searchsorted(halves, size, side="right")
    codes = np.where(low == high, low, low + (low & 1)).astype(np.uint8)
    step = positive[-1] - positive[-2]
    overflow = size >= positive[-1] + step / 2
    codes = np.where(scaled < 0, codes | np.where(codes > 0, 0x80, 0), codes)
    codes = np.where(overflow & nan_on_overflow | np.isnan(scaled), _NAN_CODE, codes)
    return codes.astype(np.uint8).view(dtype.as_numpy()).reshape(array.shape)


def host_pow2scale_cast_from_fp8(
    src: np.ndarray,
    dtype: dtypes.dtype = None,  # type: ignore[assignment]
    log2_scale: int = 0,
) -> np.ndarray:
    """The values of a float8 array times ``2 ** log2_scale``.

    Args:
        src: structured array.
        dtype: float16, float32 or float64.
        log2_scale: exponent of the scale.

    Raises:
        RuntimeError: other dtypes.
    """
    names = src.dtype.names or ("",)
    if dtype is None or dtype.name not in _FLOATS or names[0] not in _FORMATS:
        raise RuntimeError(f"Cannot cast {src.dtype} to {dtype}: expected float8 and floats.")
    with np.errstate(over="ignore"):  # beyond float16's range is infinite
        values = np.ldexp(_decoded(names[0]), log2_scale).astype(dtype.as_numpy())
    return values[src[names[0]]]


class CandidateConfig:
    """A format that a histogram of values is measured against. Not built yet."""

    def __init__(self, format: Any, src_ftype: Any, dest_ftype: Any, src_type: Any) -> None:
        _not_implemented("popxl.fp8_utils.CandidateConfig")


def find_exponential_range(fp_def: FpDef) -> Any:
    """Exponents that a format covers. Not built yet."""
    _not_implemented("popxl.fp8_utils.find_exponential_range")


def log_histogram(src: np.ndarray, ftype: FpDef) -> Any:
    """Histogram over exponents. Not built yet."""
    _not_implemented("popxl.fp8_utils.log_histogram")


def calculate_metric_mse(
    histogram: Any, limits: Any, src_bias_starting_indices: Any, candidate: Any
) -> Any:
    """Squared error of a candidate. Not built yet."""
    _not_implemented("popxl.fp8_utils.calculate_metric_mse")


def calculate_candidate_metric(
    hist_norm: Any, limits: Any, candidate: Any, metric_type: Any = None
) -> Any:
    """Error of a candidate. Not built yet."""
    _not_implemented("popxl.fp8_utils.calculate_candidate_metric")


def host_fp8_mse_scale(
    src: np.ndarray,
    dtype: dtypes.dtype = None,  # type: ignore[assignment]
) -> int:
    """The scale with the smallest squared error. Not built yet."""
    _not_implemented("popxl.fp8_utils.host_fp8_mse_scale")


def host_fp8_mse_scale_pb(
    src: np.ndarray,
    dtype: dtypes.dtype = None,  # type: ignore[assignment]
) -> int:
    """As :func:`host_fp8_mse_scale`. Not built yet."""
    _not_implemented("popxl.fp8_utils.host_fp8_mse_scale_pb")
