"""Scale for a cast to float8 from the mean squared error."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import float8_143
from popxl.errors import _not_implemented

__all__ = ["fp8_mse_scale"]


def fp8_mse_scale(src: popxl.Tensor, dtype: popxl.dtype = float8_143) -> popxl.Tensor:
    """The log2 scale with the least squared error. Not implemented yet."""
    raise NotImplementedError("popxl_addons.ops.fp8_mse_scale is not implemented yet")


class CandidateConfig:
    """Formats and types of a search for a scale. Not implemented yet."""

    def __init__(self, format: Any, src_ftype: Any, dest_ftype: Any, src_type: Any) -> None:
        """Not implemented yet."""
        _not_implemented("popxl_addons.ops.fp8_mse_scale.fp8_mse_scale.CandidateConfig")
