"""NamedTensors: a tree of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import popxl
from popxl import ops
from popxl_addons.dot_tree import DotTree

TensorMap = Mapping[popxl.Tensor, popxl.Tensor]


class NamedTensorData(DotTree[np.ndarray]):
    """A tree of host arrays."""


class NamedTensors(DotTree[popxl.Tensor]):
    """A tree of tensors."""

    @property
    def tensors(self) -> tuple[popxl.Tensor, ...]:
        """All tensors, sorted by their own name. The order is not that of `named_tensors`."""
        return tuple(sorted(self.to_dict().values(), key=lambda t: t.name))

    @property
    def named_tensors(self) -> dict[str, popxl.Tensor]:
        """Flat key to tensor, in insertion order."""
        return dict(self.to_dict())

    def remap(self, mapping: TensorMap) -> NamedTensors:
        """A new tree with `mapping[tensor]` for each tensor.

        Raises:
            KeyError: a tensor is not in the mapping.
        """
        return self.map(lambda t: mapping[t])


def print_named_tensors(named_tensors: NamedTensors) -> NamedTensors:
    """Print each tensor when the program runs, titled with its flat key."""
    return NamedTensors.from_dict(
        {key: ops.print_tensor(t, title=key) for key, t in named_tensors.to_dict().items()}
    )
