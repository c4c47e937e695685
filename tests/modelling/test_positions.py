"""Where rows stand: positions behind pads, and who sees whom, against plain loops."""

from __future__ import annotations

import numpy as np
import popxl
import pytest
from popxl import ops

from modelling.gptj.positions import growing_sequences, whole_sequences
from tests.small_configs import small_config
from tests.tolerances import ROTARY_FLOAT32

LIMIT = 40


def run_place(b: int, m: int, k: int, start: int, pads: list[int]) -> list[np.ndarray]:
    """sin, cos and visible of m slots from a start."""
    config = small_config(batch=b).transformer
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        streams = [popxl.h2d_stream((n,), popxl.int32) for n in (1, b)]
        place = growing_sequences(config, *map(ops.host_load, streams), m, k, LIMIT)
        outputs = [popxl.d2h_stream(t.shape, t.dtype) for t in place]
        for stream, tensor in zip(outputs, place, strict=True):
            ops.host_store(stream, tensor)
    inputs = dict(zip(streams, (np.array([start]), np.array(pads)), strict=True))
    with popxl.Session(ir, "ipu_hw") as session:
        results = session.run({s: array.astype(np.int32) for s, array in inputs.items()})
    return [results[stream] for stream in outputs]


@pytest.mark.parametrize(
    ("b", "m", "k", "start", "pads"),
    [(1, 6, 6, 0, [0]), (3, 8, 8, 0, [0, 5, 7]), (2, 1, 16, 9, [3, 9]), (2, 3, 12, 8, [10, 0])],
)
def test_slots_of_growing_sequences(b: int, m: int, k: int, start: int, pads: list[int]):
    sin, cos, visible = run_place(b, m, k, start, pads)
    config = small_config().transformer.attention
    rates = 10000.0 ** (-np.arange(0, config.rotary_dim, 2) / config.rotary_dim)
    assert visible.shape == (b, 1, m, k)
    assert sin.shape == cos.shape == (b * m, config.rotary_dim // 2)
    for row in range(b):
        for query in range(m):
            position = start + query - pads[row]
            if position >= 0:  # what pads get means nothing
                place = row * m + query
                assert np.abs(sin[place] - np.sin(position * rates)).max() <= ROTARY_FLOAT32
                assert np.abs(cos[place] - np.cos(position * rates)).max() <= ROTARY_FLOAT32
            for key in range(k):
                expected = pads[row] <= key <= start + query
                assert visible[row, 0, query, key] == expected


def test_whole_sequences_are_growing_ones_without_pads():
    config = small_config(batch=2).transformer
    ir = popxl.Ir()
    with ir.main_graph:
        place = whole_sequences(config, 7)
        outputs = [
            popxl.d2h_stream(t.shape, t.dtype) for t in (place.sin, place.cos, place.visible)
        ]
        for stream, tensor in zip(outputs, (place.sin, place.cos, place.visible), strict=True):
            ops.host_store(stream, tensor)
    with popxl.Session(ir, "ipu_hw") as session:
        results = session.run()
    grown = run_place(2, 7, 7, 0, [0, 0])
    for stream, other in zip(outputs, grown, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(results[stream], other.shape), other)
