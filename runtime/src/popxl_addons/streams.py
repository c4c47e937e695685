"""Named groups of host streams."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import popxl
from popxl import DeviceToHostStream, HostToDeviceStream

__all__ = ["InputStreams", "OutputStreams"]

StreamType = TypeVar("StreamType", HostToDeviceStream, DeviceToHostStream)


class _StreamsBase(collections.OrderedDict, Generic[StreamType]):
    """An ordered dict of streams, also read by attribute and position. Iterating it yields
    the streams; `keys`, `items`, `values`, `in` and `len` are a dict's."""

    stream_init: Any = None

    def __init__(self, **streams: tuple[tuple[int, ...], popxl.dtype]) -> None:
        super().__init__()
        for name, (shape, dtype) in streams.items():
            self[name] = self.stream_init(shape, dtype, name)

    @classmethod
    def from_streams(cls, streams: Iterable[StreamType]) -> _StreamsBase[StreamType]:
        """The same group from streams that exist, by their `tensor_id`."""
        group = cls()
        for stream in streams:
            group[stream.tensor_id] = stream
        return group

    def __getattr__(self, key: str) -> StreamType:
        try:
            return super().__getitem__(key)
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__} has no stream {key!r}. Streams: {', '.join(self.keys())}"
            ) from None

    def __getitem__(self, key: str | int | slice) -> StreamType:
        if isinstance(key, int | slice):
            return list(self.values())[key]  # type: ignore[return-value]
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[StreamType]:
        return iter(self.values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self.items())!r})"


class InputStreams(_StreamsBase[HostToDeviceStream]):
    """Host-to-device streams, made from `name=(shape, dtype)`."""

    stream_init = staticmethod(popxl.h2d_stream)


class OutputStreams(_StreamsBase[DeviceToHostStream]):
    """Device-to-host streams, made from `name=(shape, dtype)`."""

    stream_init = staticmethod(popxl.d2h_stream)
