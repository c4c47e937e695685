"""Batch normalisation with the statistics of training."""

from __future__ import annotations

from functools import partial

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from modelling.shards import Arrays, take

EPSILON = 1e-5

# A fresh layer is the identity.
_FRESH = {"weight": np.ones, "bias": np.zeros, "running_mean": np.zeros, "running_var": np.ones}


class BatchNorm2D(addons.Module):
    """Shifts and scales each channel by running statistics, as in inference."""

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        """Normalises each channel.

        Args:
            x: (b, c, y, x).

        Returns:
            (b, c, y, x).
        """
        weight, bias, mean, var = (
            self.add_variable_input(name, partial(fresh, x.shape[1], dtype="float32"), x.dtype)
            for name, fresh in _FRESH.items()
        )
        return ops.batch_norm_inference(x, weight, bias, mean, var, epsilon=EPSILON)

    @staticmethod
    def mapping(
        channels: int, dtype: np.dtype, tensors: Arrays, prefix: str = ""
    ) -> dict[str, np.ndarray]:
        """Variables from the four tensors of a torch BatchNorm2d; its batch counter is unused."""
        return {name: take(tensors, prefix + name, (channels,), dtype) for name in _FRESH}
