"""A backend that computes nothing: tensors are shapes. It runs the plans of models of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from popxl_torch.ir.records import Spec
from popxl_torch.plan.memory import spec_bytes
from popxl_torch.plan.steps import Step
from popxl_torch.plan.windows import Window

if TYPE_CHECKING:
    from popxl_torch.executor.device_slots import Link
    from popxl_torch.executor.trace import Trace


@dataclass(frozen=True, slots=True)
class NullTensor:
    """A spec and whether there is a replica axis in front of it."""

    spec: Spec
    lead: bool = False


class NullBackend:
    """See :class:`popxl_torch.backends.base.Backend`. Every one-element value reads as zero.

    It stands for any device: plans for one that has a memory of its own load weights.
    """

    name = "null"

    def __init__(self, replicas: int, device: str = "") -> None:
        self.replicas = replicas
        self.device = device or "null"
        self.shares_host = not device.startswith("cuda")

    def from_host(self, array: np.ndarray, spec: Spec) -> NullTensor:
        """The spec; the data are not touched."""
        return NullTensor(spec, len(array.shape) > len(spec.shape))

    def to_host(self, tensor: NullTensor, spec: Spec) -> np.ndarray:
        """Zeros without memory of their own."""
        shape = (self.replicas, *spec.shape) if tensor.lead else spec.shape
        return np.broadcast_to(np.zeros((), spec.dtype), shape)

    remote_view = from_host

    def remote_zeros(self, spec: Spec, lead: bool, memory: np.ndarray | None = None) -> NullTensor:
        """The spec."""
        return NullTensor(spec, lead)

    def remote_copy(
        self, tensor: NullTensor, spec: Spec, memory: np.ndarray | None = None
    ) -> NullTensor:
        """The tensor."""
        return tensor

    def remote_window(
        self, tensor: NullTensor, axes: tuple[int, ...], starts: Any, window: Any, lead: int
    ) -> None:
        """Nothing is written."""

    def fetch(self, tensor: NullTensor) -> NullTensor:
        """The tensor."""
        return tensor

    def stored(self, tensor: NullTensor, spec: Spec) -> NullTensor:
        """The tensor."""
        return tensor

    def expand(self, tensor: NullTensor) -> NullTensor:
        """The same with a replica axis."""
        return NullTensor(tensor.spec, True)

    def replica(self, tensor: NullTensor, index: int) -> NullTensor:
        """The same without a replica axis."""
        return NullTensor(tensor.spec)

    def stack(self, tensors: Sequence[NullTensor]) -> NullTensor:
        """The same with a replica axis."""
        return NullTensor(tensors[0].spec, True)

    def arrays(self, tensor: NullTensor) -> list[np.ndarray]:
        """None: there is no data."""
        return []

    def moved(self, tensor: NullTensor, memory: Any, places: Sequence[int]) -> NullTensor:
        """The tensor."""
        return tensor

    def bring(self, tensor: NullTensor, window: Window) -> NullTensor:
        """The tensor."""
        return tensor

    def has_lead(self, tensor: NullTensor, spec: Spec) -> bool:
        """Whether there is a replica axis."""
        return tensor.lead

    def is_view(self, tensor: NullTensor, of: NullTensor) -> bool:
        """Always."""
        return True

    def same(self, tensor: NullTensor, other: NullTensor) -> bool:
        """Whether they are equal."""
        return tensor == other

    def running(self) -> AbstractContextManager[object]:
        """Nothing to prepare."""
        return nullcontext()

    def select(self, condition: NullTensor, yes: NullTensor, no: NullTensor) -> NullTensor:
        """``yes``."""
        return yes

    def integer(self, tensor: NullTensor) -> int:
        """Zero."""
        return 0

    def nbytes(self, tensor: NullTensor) -> int:
        """Bytes of the spec, times the replicas if there is a replica axis."""
        return spec_bytes(tensor.spec) * (self.replicas if tensor.lead else 1)

    def bind(self, step: Step) -> Callable[..., Any]:
        """A function that returns the specs of the outputs."""
        results = tuple(NullTensor(out.spec, out.varying) for out in step.outs)
        result: Any = results[0] if len(results) == 1 else results
        return lambda *inputs: result

    def prepare(self, step: Step, known: Sequence[Any]) -> None:
        """There is nothing to make cheaper."""

    def synchronise(self) -> None:
        """Nothing to wait for."""

    def link(self) -> Link:
        """There are no bytes to copy."""
        raise NotImplementedError("the null backend has no memory")

    def memory_used(self) -> int:
        """None."""
        return 0

    def memory_free(self) -> int:
        """Nobody knows."""
        return 0

    def limit_memory(self, num_bytes: int) -> None:
        """Nothing is taken."""

    def recorded(
        self, part: Callable[..., Any], places: Callable[[], object], trace: Trace
    ) -> Callable[..., Any]:
        """The part."""
        return part
