"""Named streams."""

from __future__ import annotations

import popxl
import pytest
from popxl_addons import InputStreams, OutputStreams


def test_streams_are_read_by_name_and_position(ir: popxl.Ir):
    streams = InputStreams(words=((4,), popxl.int32), image=((2, 3), popxl.float16))
    words, image = streams
    assert streams.words is streams["words"] is streams[0] is words
    assert streams[-1] is image
    assert streams[0:2] == [words, image]
    assert (words.shape, words.dtype) == ((4,), popxl.int32)
    assert isinstance(words, popxl.HostToDeviceStream)
    assert isinstance(OutputStreams(y=((), popxl.float32)).y, popxl.DeviceToHostStream)


def test_streams_are_a_dict_otherwise(ir: popxl.Ir):
    streams = InputStreams(a=((), popxl.int32), keys=((), popxl.int32))
    assert list(streams.keys()) == ["a", "keys"]
    assert list(streams.items()) == [("a", streams[0]), ("keys", streams[1])]
    assert dict(streams) == {"a": streams[0], "keys": streams[1]}
    assert dict(**streams) == dict(streams)
    assert "a" in streams
    assert len(streams) == 2
    assert streams["keys"] is streams[1]


def test_missing_streams(ir: popxl.Ir):
    streams = InputStreams(a=((), popxl.int32))
    with pytest.raises(AttributeError, match=r"no stream 'b'\. Streams: a"):
        _ = streams.b
    with pytest.raises(KeyError):
        _ = streams["b"]
    with pytest.raises(IndexError):
        _ = streams[1]


def test_from_streams(ir: popxl.Ir):
    stream = popxl.h2d_stream((2,), popxl.float32, "x")
    streams = InputStreams.from_streams([stream])
    assert list(streams) == [stream]
    assert list(streams.keys()) == [stream.tensor_id]
