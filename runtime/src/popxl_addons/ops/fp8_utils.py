"""Facts of floating-point formats."""

from __future__ import annotations

from typing import NamedTuple


class FpDef(NamedTuple):
    """Bits, bias and range of a format; exponents are of the smallest and largest value."""

    num_exp_bits: int
    num_mantissa_bits: int
    exponent_bias: int
    has_denorms: bool
    has_nans: bool
    max_value: float
    max_exp: int
    min_exp: int


ieee_fp32_no_denorms = FpDef(8, 23, 127, False, True, 3.4028235e38, 127, -126)
ieee_fp16_denorms = FpDef(5, 10, 15, True, True, 65504.0, 15, -14)
float8_152_def = FpDef(5, 2, 16, True, False, 57344.0, 15, -17)
float8_143_def = FpDef(4, 3, 8, True, False, 240.0, 7, -10)
