"""float8 on the host: encoding, decoding, and the choice of a scale.

Both formats have one NaN and no infinity: the code of negative zero is the NaN.

A scale is chosen by a histogram of magnitudes. Its bins are narrow against a step of float8, so
that one value stands for all of a bin: the squared error of every scale then costs a few thousand
roundings, whatever the number of elements.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np

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
_BINS = 64  # per factor of two: eight or more for each step of float8


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


def find_exponential_range(fp_def: FpDef) -> tuple[int, int]:
    """(lowest, highest) exponent e for which the format has a value of 2**e."""
    bits, mantissa, bias, denormals, nans = fp_def
    lowest = 1 - bias - (mantissa if denormals else 0)
    return lowest, (1 << bits) - 1 - bias - bool(nans)


class CandidateConfig:
    """A float8 format that a histogram of values is measured against.

    Attributes:
        format: name of the float8 dtype.
        exponent_size, mantissa_size, fix_exponent_bias: fields of the float8 definition.
        quantisation_error: relative squared error, 2 ** (-2 * (bits of mantissa that are lost)).
        format_span: number of powers of two that float8 has values for.
        num_exp_src: the same of the values' format.
        min_src_exp_index, max_src_exp_index: places, among the values' powers of two, where
            float8's powers begin under the extreme scales; beyond the ends where there are none.
    """

    def __init__(self, format: str, src_ftype: FpDef, dest_ftype: FpDef, src_type: Any) -> None:
        """Args:
        format: name of the float8 dtype.
        src_ftype: definition of the values' format.
        dest_ftype: definition of the float8 format.
        src_type: NumPy dtype of the values; their format says all that counts.
        """
        self.format = format
        self.exponent_size = dest_ftype.num_exp_bits
        self.mantissa_size = dest_ftype.num_mantissa_bits
        self.fix_exponent_bias = dest_ftype.fix_exponent_bias
        lost = src_ftype.num_mantissa_bits - dest_ftype.num_mantissa_bits
        self.quantisation_error = 2.0 ** (-2 * lost)
        low, high = find_exponential_range(dest_ftype)
        src_low, src_high = find_exponential_range(src_ftype)
        self.format_span = high - low + 1
        self.num_exp_src = src_high - src_low + 1
        self.min_src_exp_index = low + min_scaling_bias - src_low
        self.max_src_exp_index = low + max_scaling_bias - src_low


def log_histogram(src: np.ndarray, ftype: FpDef) -> tuple[np.ndarray, np.ndarray]:
    """Histogram of magnitudes over all exponents of ``ftype``.

    Args:
        src: floats of any shape; zeros, infinities and NaN are not counted.
        ftype: the format whose range is covered.

    Returns:
        Counts, (bins,) int64, and their limits, (bins + 1,) float64: bin i counts
        limits[i] <= abs(x) < limits[i + 1].
    """
    low, high = find_exponential_range(ftype)
    steps = 1 + np.arange(_BINS) / _BINS
    powers = np.ldexp(1.0, np.arange(low, high + 2))
    limits = np.append(np.outer(powers[:-1], steps), powers[-1])
    size = np.abs(np.asarray(src, np.float64).reshape(-1))
    counts, _ = np.histogram(size[np.isfinite(size)], limits)
    return counts, limits


def calculate_metric_mse(
    histogram: np.ndarray,
    limits: np.ndarray,
    src_bias_starting_indices: np.ndarray,
    candidate: CandidateConfig,
) -> np.ndarray:
    """Mean squared error of casting to float8 and back, for several scales.

    Args:
        histogram: (bins,) counts or shares, of :func:`log_histogram`.
        limits: (bins + 1,) limits of the bins.
        src_bias_starting_indices: (scales,) base-2 exponents of the scales.
        candidate: the format.

    Returns:
        (scales,) sums over the bins of share times squared error. What is out of range counts as
        the largest value.
    """
    used = histogram > 0
    share = histogram[used]
    value = (limits[:-1][used] + limits[1:][used]) / 2
    positive = _decoded(candidate.format)[:_NAN_CODE]
    halves = (positive[:-1] + positive[1:]) / 2
    errors = []
    for scale in src_bias_starting_indices:
        back = np.ldexp(positive[np.searchsorted(halves, np.ldexp(value, scale))], -scale)
        errors.append(float(np.sum(share * (back - value) ** 2)))
    return np.array(errors)


def calculate_candidate_metric(
    hist_norm: np.ndarray, limits: np.ndarray, candidate: CandidateConfig, metric_type: Any = None
) -> tuple[float, int]:
    """The least error of a format and the scale that has it; of equal ones the smallest.

    Args:
        hist_norm: (bins,) shares of the values.
        limits: (bins + 1,) limits of the bins.
        candidate: the format.
        metric_type: the measure, default :func:`calculate_metric_mse`.

    Returns:
        (error, log2_scale)
    """
    scales = np.array(sorted(range(min_scaling_bias, max_scaling_bias + 1), key=abs))
    errors = (metric_type or calculate_metric_mse)(hist_norm, limits, scales, candidate)
    best = int(np.argmin(errors))
    return float(errors[best]), int(scales[best])


def host_fp8_mse_scale(
    src: np.ndarray,
    dtype: dtypes.dtype = None,  # type: ignore[assignment]
) -> int:
    """The scale with the smallest mean squared error, by a histogram of ``src``.

    Args:
        src: float16, float32 or float64, any shape.
        dtype: a float8 type.

    Returns:
        (error, log2_scale), though annotated otherwise: casting with ``log2_scale`` and back with
        ``-log2_scale`` has about this mean squared error. Nothing but zeros has (0, 0).

    Raises:
        RuntimeError: other dtypes.
    """
    array = np.asarray(src)
    if dtype is None or dtype.name not in _FORMATS or array.dtype.name not in _FLOATS:
        raise RuntimeError(f"No scale of {array.dtype} for {dtype}: expected floats and float8.")
    source = ieee_fp16_denorms if array.dtype == np.float16 else ieee_fp32_no_denorms
    counts, limits = log_histogram(array, source)
    candidate = CandidateConfig(dtype.name, source, _FORMATS[dtype.name], array.dtype)
    result = calculate_candidate_metric(counts / max(array.size, 1), limits, candidate)
    return result  # type: ignore[return-value]


def host_fp8_mse_scale_pb(
    src: np.ndarray,
    dtype: dtypes.dtype = None,  # type: ignore[assignment]
) -> int:
    """The ``log2_scale`` of :func:`host_fp8_mse_scale`.

    Raises:
        RuntimeError: ``src`` holds no floats, or ``dtype`` is no float8 type.
    """
    found: Any = host_fp8_mse_scale(src, dtype)
    return found[1]
