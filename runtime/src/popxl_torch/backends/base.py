"""What an executor asks of a backend. Tensors are opaque to the executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from popxl_torch.ir.records import Spec
from popxl_torch.plan.steps import Step
from popxl_torch.plan.windows import Window

if TYPE_CHECKING:
    from popxl_torch.executor.device_slots import Link
    from popxl_torch.executor.trace import Trace


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

    def remote_zeros(self, spec: Spec, lead: bool, memory: np.ndarray | None = None) -> Any:
        """Zeros where runs write remote memory, with a replica axis if ``lead``: on the device, or
        at the head of bytes of the host that are zeros, if some are given."""
        ...

    def remote_copy(self, tensor: Any, spec: Spec, memory: np.ndarray | None = None) -> Any:
        """A copy where runs write remote memory, in the spec's storage dtype; at the head of bytes
        of the host if some are given."""
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

    def moved(self, tensor: Any, memory: Any, places: Sequence[int]) -> Any:
        """The same tensor of other bytes: its arrays begin at these places of ``memory``, which is
        an array of the host's, or what a :class:`Link` leases."""
        ...

    def bring(self, tensor: Any, window: Window) -> Any:
        """A tensor of the device like a row-major one of the host's, of which only a window is
        copied, from a start to a stop on each of the last axes; queued among the work."""
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

    # What follows is for devices with memory of their own.

    def link(self) -> Link:
        """Copies to the device."""
        ...

    def memory_used(self) -> int:
        """Bytes of the device's memory that the process has given out."""
        ...

    def memory_free(self) -> int:
        """Bytes of the device's memory that it may take; 0 where nobody knows."""
        ...

    def limit_memory(self, num_bytes: int) -> None:
        """Let the process take no more of the device's memory than this, and what other backends
        said; 0 takes it back."""
        ...

    def recorded(
        self, part: Callable[..., Any], places: Callable[[], object], trace: Trace
    ) -> Callable[..., Any]:
        """A function that needs nothing of the host, as one that may replay what it did.

        Args:
            part: from tensors to a tuple of tensors, which hold until the next call.
            places: tells apart where the memory lies that it uses besides its inputs.
            trace: counts what a part loads.
        """
        ...
