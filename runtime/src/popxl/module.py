"""Graphs from classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popxl.tensor import Tensor


class Module:
    """A callable whose ``build`` makes a graph; override it."""

    def __call__(self, *args: Any, **kwargs: Any) -> None | Tensor | Iterable[Tensor]:
        """Forwards to :meth:`build`."""
        return self.build(*args, **kwargs)

    def build(self, *args: Any, **kwargs: Any) -> None | Tensor | Iterable[Tensor]:
        """Builds the graph's ops and returns its outputs."""
        raise NotImplementedError("Your popxl.Module must override `build`.")
