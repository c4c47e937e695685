"""Scale for a cast to float8 from the mean squared error."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import float8_143, float8_152
from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph
from popxl_addons.ops.fp8_utils import (
    FpDef,
    float8_143_def,
    float8_152_def,
    ieee_fp16_denorms,
    ieee_fp32_no_denorms,
)
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

__all__ = ["fp8_mse_scale"]

_FORMATS = {float8_143: float8_143_def, float8_152: float8_152_def}
_MAX_SCALE = 31

define(OpDef("Fp8MseScale", lambda ins, attrs: [Spec((), "int32")]))


class CandidateConfig:
    """What a float8 format does to values of each binary exponent.

    Args:
        format: the float8 dtype.
        src_ftype: the format whose exponents are counted.
        dest_ftype: the float8 format.
        src_type: dtype of the values.

    Attributes:
        quantisation_error: relative squared error of a value in range. (quirk) That of float16's
            mantissa for every `src_type`.
        format_span: binary exponents in the range of `dest_ftype`.
        num_exp_src: binary exponents from `min_src_exp` to `max_src_exp`, which are counted.
    """

    def __init__(
        self, format: popxl.dtype, src_ftype: FpDef, dest_ftype: FpDef, src_type: Any
    ) -> None:
        self.format = format
        self.num_exp_bits = dest_ftype.num_exp_bits
        self.num_mantissa_bits = dest_ftype.num_mantissa_bits
        self.fix_exponent_bias = dest_ftype.exponent_bias
        lost_bits = ieee_fp16_denorms.num_mantissa_bits - dest_ftype.num_mantissa_bits
        self.quantisation_error = 2.0 ** (-2 * lost_bits)
        self.format_span = dest_ftype.max_exp - dest_ftype.min_exp + 1
        self.min_src_exp, self.max_src_exp = src_ftype.min_exp, src_ftype.max_exp
        self.num_exp_src = self.max_src_exp - self.min_src_exp + 1


@op_debug_context
def fp8_mse_scale(src: popxl.Tensor, dtype: popxl.dtype = float8_143) -> popxl.Tensor:
    """The log2 scale with the least squared error, by a histogram of exponents; an int32 scalar.

    Values of one binary exponent count as that power of two. With a scale, those below the
    format's range lose all, those above it what they exceed its largest power by, and the others a
    fixed part. Of equally good scales it is the middle one.

    Args:
        src: float16 or float32.
        dtype: float8_143 or float8_152.

    Raises:
        RuntimeError: `src` has another dtype.
        ValueError: another target dtype. (mended) Upstream fails on an unbound name.
    """
    check_in_graph(get_current_context().graph, src=src)
    if src.dtype not in (popxl.float16, popxl.float32):
        raise RuntimeError(f"fp8_mse_scale: src is float16 or float32, got {src.dtype}")
    if dtype not in _FORMATS:
        raise ValueError(f"fp8_mse_scale: dtype is one of {list(_FORMATS)}, got {dtype}")
    target = _FORMATS[dtype]
    config = CandidateConfig(dtype, ieee_fp32_no_denorms, target, src.dtype)
    attrs = {
        "min_exp": config.min_src_exp,
        "count": config.num_exp_src,
        "first": target.min_exp - config.min_src_exp,
        "span": config.format_span,
        "error": config.quantisation_error,
        "max_scale": _MAX_SCALE,
    }
    return _create_op("Fp8MseScale", [src], attrs, ["fp8_mse_scale"])[0]
