"""Layer normalisation."""

from __future__ import annotations

from typing import Any

import popxl
from popxl import ops
from popxl.utils import to_numpy
from popxl_addons._initialisers import Full
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.utils import WeightsDict


class LayerNorm(Module):
    """Normalises the last axis, then scales and shifts it."""

    def build(self, x: popxl.Tensor, eps: float = 1e-5) -> popxl.Tensor:
        """Apply the layer.

        Args:
            x: (rows, features).
            eps: added to the variance.

        Raises:
            ValueError: `x` is not of rank 2.
        """
        if x.rank != 2:
            raise ValueError(f"LayerNorm: x is (rows, features), got shape {x.shape}")
        shape = (x.shape[-1],)
        weight = self.add_variable_input("weight", Full(shape, 1.0), x.dtype)
        bias = self.add_variable_input("bias", Full(shape, 0.0), x.dtype)
        return ops.layer_norm(x, weight, bias, eps=eps)

    @staticmethod
    def torch_mapping(
        variables: NamedTensors, nn_layer: Any, dtype: popxl.dtype = popxl.float32
    ) -> WeightsDict:
        """Data for the variables from a `torch.nn.LayerNorm`."""
        weight, bias = variables.weight, variables.bias
        return WeightsDict(
            {
                weight: to_numpy(nn_layer.weight.data.reshape(weight.shape), dtype),
                bias: to_numpy(nn_layer.bias.data.reshape(bias.shape), dtype),
            }
        )
