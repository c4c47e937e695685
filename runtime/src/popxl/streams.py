"""Host streams: the inputs and outputs of a program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from popxl import dtypes
from popxl.context import get_current_context
from popxl.tensor import TensorSpec, _add_value
from popxl_torch.ir import records


class Stream:
    """A named channel to or from the host; ``shape`` is that of one transfer on one replica.

    Its tensor belongs to the main graph, whichever graph is current.
    """

    _record: records.Stream

    def __init__(self) -> None:
        raise NotImplementedError("Use popxl.h2d_stream or popxl.d2h_stream.")

    @classmethod
    def _make(cls, shape: Iterable[int], dtype: dtypes.dtype, name: str) -> Any:
        main = get_current_context().main_graph
        spec = records.Spec(tuple(int(n) for n in shape), dtype.name)
        tensor = _add_value(main, name, spec, "stream")
        self = cls.__new__(cls)
        self._record = records.Stream(tensor.id, spec, cls is HostToDeviceStream)
        main.ir._program.streams.append(self._record)
        main.ir._streams[self._record] = self
        return self

    @property
    def dtype(self) -> dtypes.dtype:
        """Data type."""
        return dtypes.dtype.from_name(self._record.spec.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one transfer on one replica."""
        return self._record.spec.shape

    @property
    def spec(self) -> TensorSpec:
        """Shape and dtype."""
        return TensorSpec(self.shape, self.dtype)

    @property
    def tensor_id(self) -> str:
        """Name of the stream, unique in the Ir."""
        return self._record.id

    def __hash__(self) -> int:
        return hash(id(self._record))

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Stream) and other._record is self._record

    def __str__(self) -> str:
        return f"{type(self).__name__} Tensor[{self.tensor_id} {self.dtype} {self.shape}]"

    def __repr__(self) -> str:
        return str(self)


class HostToDeviceStream(Stream):
    """An input of the program."""

    def __str__(self) -> str:
        return super().__str__()


class DeviceToHostStream(Stream):
    """An output of the program."""

    def __str__(self) -> str:
        return super().__str__()


def h2d_stream(
    shape: Iterable[int], dtype: dtypes.dtype, name: str | None = None
) -> HostToDeviceStream:
    """A new input stream of the main graph."""
    return HostToDeviceStream._make(shape, dtype, name or "h2d_stream")


def d2h_stream(
    shape: Iterable[int], dtype: dtypes.dtype, name: str | None = None
) -> DeviceToHostStream:
    """A new output stream of the main graph."""
    return DeviceToHostStream._make(shape, dtype, name or "d2h_stream")
