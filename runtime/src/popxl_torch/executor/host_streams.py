"""Host inputs and outputs of one run: arrays, cursors, the replica axis.

Arrays have the shape ([transfers,] [replicas,] \\*stream shape); axes of size 1 are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from popxl_torch.backends.base import Backend
from popxl_torch.ir.records import Stream


def rows_are_equal(array: np.ndarray, axis: int) -> bool:
    """Whether all slices along ``axis`` hold the same bits."""
    if array.shape[axis] == 1 or array.strides[axis] == 0:
        return True
    first, *others = np.moveaxis(array, axis, 0) if axis else array
    bits = first.tobytes()
    return all(other.tobytes() == bits for other in others)


def _apart(array: np.ndarray, outputs: Iterable[np.ndarray]) -> np.ndarray:
    """The array, copied if a store could change it: a load is a view of it."""
    shared = any(np.may_share_memory(array, output) for output in outputs)
    return array.copy() if shared else array


class HostStreams:
    """Loads and stores of the run at hand."""

    def __init__(self, backend: Backend, transfers: int, replicas: int) -> None:
        self.backend = backend
        self.transfers = transfers
        self.replicas = replicas
        self.arrays: dict[Stream, np.ndarray] = {}
        self.cursors: dict[Stream, list[int]] = {}

    def start(
        self, inputs: Mapping[Stream, np.ndarray], outputs: Mapping[Stream, np.ndarray]
    ) -> None:
        """Take the arrays of a run."""
        self.cursors = {}
        self.arrays = {stream: _apart(array, outputs.values()) for stream, array in inputs.items()}
        self.arrays.update(outputs)

    def varying(self, streams: Iterable[Stream]) -> frozenset[Stream]:
        """Those of some input streams whose replicas differ in the run at hand."""
        if self.replicas == 1:
            return frozenset()
        axis = int(self.transfers > 1)
        return frozenset(s for s in streams if not rows_are_equal(self.arrays[s], axis))

    def finish(self) -> None:
        """Let go of the arrays."""
        self.arrays = {}

    def _next(self, stream: Stream) -> np.ndarray:
        """The element of all replicas, whose cursors move together."""
        array = self.arrays[stream]
        if self.transfers == 1:
            return array
        cursors = self._cursors(stream)
        position = cursors[0]
        cursors[:] = [(position + 1) % len(array)] * self.replicas
        return array[position, ...]

    def _next_of(self, stream: Stream, replica: int) -> np.ndarray:
        """The element of one replica, whose cursor moves alone."""
        array, cursors = self.arrays[stream], self._cursors(stream)
        if self.transfers > 1:
            position = cursors[replica]
            cursors[replica] = (position + 1) % len(array)
            array = array[position, ...]
        return array[replica, ...] if self.replicas > 1 else array

    def _cursors(self, stream: Stream) -> list[int]:
        return self.cursors.setdefault(stream, [0] * self.replicas)

    def load(self, stream: Stream, varying: bool) -> Any:
        """The stream's next element: one replica's, or all with a leading axis if ``varying``."""
        element = self._next(stream)
        if self.replicas > 1 and not varying:
            element = element[0, ...]
        return self.backend.from_host(element, stream.spec)

    def store(self, stream: Stream, tensor: Any) -> None:
        """The stream's next element becomes ``tensor``; the same for all replicas if it has no
        replica axis."""
        np.copyto(self._next(stream), self.backend.to_host(tensor, stream.spec), casting="no")

    def load_replica(self, stream: Stream, replica: int) -> Any:
        """As :meth:`load`, for one replica."""
        return self.backend.from_host(self._next_of(stream, replica), stream.spec)

    def store_replica(self, stream: Stream, tensor: Any, replica: int) -> None:
        """As :meth:`store`, for one replica."""
        element = self.backend.to_host(tensor, stream.spec)
        np.copyto(self._next_of(stream, replica), element, casting="no")
