"""What an executor asks of a backend. Tensors are opaque to the executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from popxl_torch.ir.records import Spec
from popxl_torch.plan.steps import Step


class Backend(Protocol):
    """Makes, moves and computes tensors. ``lead`` tells of a leading replica axis."""

    name: str
    replicas: int
    shares_host: bool
    """Whether remote memory is the device's own, so that a load is a view."""

    def from_host(self, array: np.ndarray, spec: Spec) -> Any:
        """A tensor of host data (any leading axes); a view of it where that is possible."""
        ...

    def to_host(self, tensor: Any, spec: Spec) -> np.ndarray:
        """Host data of a tensor in the spec's NumPy dtype; may be a view."""
        ...

    def remote_view(self, array: np.ndarray, spec: Spec) -> Any:
        """Host data as a tensor of remote memory; a view of it where that is possible."""
        ...

    def remote_zeros(self, spec: Spec) -> Any:
        """Zeros in remote memory."""
        ...

    def remote_copy(self, tensor: Any, spec: Spec) -> Any:
        """A copy in remote memory, in the spec's storage dtype."""
        ...

    def remote_window(
        self, tensor: Any, axes: tuple[int, ...], starts: Any, window: Any, lead: int
    ) -> None:
        """Write ``window`` into a tensor of remote memory at run-time ``starts``, one per axis."""
        ...

    def fetch(self, tensor: Any) -> Any:
        """A tensor of remote memory on the device: itself where the two are one memory."""
        ...

    def stored(self, tensor: Any, spec: Spec) -> Any:
        """A copy to keep, in the spec's storage dtype."""
        ...

    def expand(self, tensor: Any) -> Any:
        """The tensor with a leading replica axis, not copied."""
        ...

    def replica(self, tensor: Any, index: int) -> Any:
        """One replica's part of a tensor with the replica axis."""
        ...

    def stack(self, tensors: Sequence[Any]) -> Any:
        """Replicas' tensors with a new leading axis."""
        ...

    def arrays(self, tensor: Any) -> list[np.ndarray]:
        """The arrays that a tensor of remote memory is made of."""
        ...

    def moved(self, tensor: Any, memory: np.ndarray, places: Sequence[int]) -> Any:
        """The same tensor of other bytes: its arrays begin at these places of ``memory``."""
        ...

    def has_lead(self, tensor: Any, spec: Spec) -> bool:
        """Whether the tensor has a replica axis in front of ``spec.shape``."""
        ...

    def is_view(self, tensor: Any, of: Any) -> bool:
        """Whether two tensors share their memory."""
        ...

    def same(self, tensor: Any, other: Any) -> bool:
        """Whether two tensors are the same view of the same memory."""
        ...

    def running(self) -> AbstractContextManager[object]:
        """The context of a run."""
        ...

    def select(self, condition: Any, yes: Any, no: Any) -> Any:
        """Per replica ``yes`` where the one-element condition holds, else ``no``."""
        ...

    def integer(self, tensor: Any) -> int:
        """The value of a one-element tensor."""
        ...

    def nbytes(self, tensor: Any) -> int:
        """Bytes that the tensor's elements occupy, counting expanded axes once."""
        ...

    def bind(self, step: Step) -> Callable[..., Any]:
        """A function from the step's input tensors to its output, or outputs as a tuple."""
        ...

    def prepare(self, step: Step, known: Sequence[Any]) -> Callable[..., Any] | None:
        """As :meth:`bind`, a function of the inputs that are not known, for which None is given.

        None if the step's kernel has no way of its own for that.
        """
        ...

    def synchronise(self) -> None:
        """Wait until all work has been done."""
        ...
