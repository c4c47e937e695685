"""Programs for the tests of popxl_addons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import popxl
import pytest
from popxl import ops


@pytest.fixture
def ir() -> Iterator[popxl.Ir]:
    """A program of one replica whose main graph is being built."""
    program = popxl.Ir()
    with program.main_graph:
        yield program


@pytest.fixture
def ir4() -> Iterator[popxl.Ir]:
    """The same with four replicas."""
    program = popxl.Ir(replication=4)
    with program.main_graph:
        yield program


Run = Callable[..., list[np.ndarray]]


@pytest.fixture
def run() -> Run:
    """`run(tensors, inputs, weights)`: outputs of the current program, run once."""

    def run_program(
        tensors: list[popxl.Tensor],
        inputs: Mapping[popxl.HostToDeviceStream, np.ndarray] | None = None,
        weights: Mapping[popxl.Tensor, np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in tensors]
        for stream, tensor in zip(streams, tensors, strict=True):
            ops.host_store(stream, tensor)
        session = popxl.Session(popxl.gcg().ir, "ipu_hw")
        if weights:
            session.write_variables_data(dict(weights))
        with session:
            results = session.run(dict(inputs or {}))
        return [results[stream] for stream in streams]

    return run_program
