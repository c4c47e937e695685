"""The scale of float8 with the least estimated error, against a count by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import popxl
import pytest
from popxl_addons.ops.fp8_mse_scale import fp8_mse_scale
from popxl_addons.ops.fp8_mse_scale.fp8_mse_scale import CandidateConfig
from popxl_addons.ops.fp8_utils import float8_143_def, float8_152_def, ieee_fp32_no_denorms

FORMATS = {popxl.float8_143: float8_143_def, popxl.float8_152: float8_152_def}


def by_hand(x: np.ndarray, target: Any) -> int:
    """The rule in words: count elements by power of two, sum errors for each scale."""
    powers = [2.0 ** (k - 126) for k in range(254)]
    with np.errstate(over="ignore"):
        edges = [np.float64(edge) for edge in np.array(powers).astype(x.dtype)]
    counts = [0] * 254
    for v in np.abs(x.astype(np.float64)).ravel():
        below = sum(edge <= v for edge in edges)
        if below:
            counts[below - 1] += 1
    span = target.max_exp - target.min_exp + 1
    costs = []
    for trial in range(62):
        low = target.min_exp - 31 + 126 + trial
        high = low + span
        cost = 0.0
        for k in range(1, 254):
            if k < low:
                cost += counts[k] * powers[k] ** 2
            elif k < high:
                cost += counts[k] * powers[k] ** 2 * 2.0 ** (-2 * (10 - target.num_mantissa_bits))
            else:
                cost += counts[k] * (powers[high - 1] - powers[k]) ** 2
        costs.append(cost)
    best = [trial for trial, cost in enumerate(costs) if cost == min(costs)]
    return 31 - best[0] - len(best) // 2


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("source", [popxl.float16, popxl.float32], ids=str)
@pytest.mark.parametrize("factor", [1.0, 1e-3, 300.0])
def test_scale(
    dtype: popxl.dtype, source: popxl.dtype, factor: float, ir: popxl.Ir, run: Any, rng: Any
):
    x = (rng.normal(size=(4, 16)) * factor).astype(source.as_numpy())
    scale = fp8_mse_scale(popxl.variable(x), dtype)
    assert (scale.shape, scale.dtype) == ((), popxl.int32)
    assert run([scale])[0] == by_hand(x, FORMATS[dtype])


def test_equally_good_scales_give_the_middle_one(ir: popxl.Ir, run: Any):
    """Ones: each of the 18 scales that keep exponent 0 in range does."""
    (scale,) = run([fp8_mse_scale(popxl.variable(np.ones(8, np.float32)))])
    assert scale == by_hand(np.ones(8, np.float32), float8_143_def) == -2


def test_configuration():
    config = CandidateConfig(popxl.float8_143, ieee_fp32_no_denorms, float8_143_def, popxl.float32)
    assert (config.num_exp_bits, config.num_mantissa_bits, config.fix_exponent_bias) == (4, 3, 8)
    assert (config.format_span, config.num_exp_src) == (18, 254)
    assert (config.min_src_exp, config.max_src_exp) == (-126, 127)
    assert config.quantisation_error == 2.0**-14


def test_errors(ir: popxl.Ir):
    with pytest.raises(RuntimeError, match="float16 or float32"):
        fp8_mse_scale(popxl.variable(np.int32(3)))
    with pytest.raises(ValueError, match="dtype is one of"):
        fp8_mse_scale(popxl.variable(np.float32(3)), popxl.float16)
