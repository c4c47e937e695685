"""Element-wise kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.kernels.registry import Site, kernel

_BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
}


def _plain(function: Callable[..., torch.Tensor]) -> Callable[[Site, int], Callable[..., Any]]:
    """A factory for functions that need neither attributes nor axes."""
    return lambda site, lead: function


for _kind, _function in _BINARY.items():
    kernel(_kind, broadcast=True)(_plain(_function))
