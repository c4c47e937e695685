"""Small programs around ops, for their tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import popxl
from popxl import ops

Build = Callable[..., "popxl.Tensor | Sequence[popxl.Tensor]"]


@contextmanager
def main_graph(replicas: int = 1) -> Iterator[popxl.Graph]:
    """The current main graph of a new Ir."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph as graph, popxl.in_sequence():
        yield graph


def tensor(shape: Sequence[int], dtype: popxl.dtype = popxl.float32) -> popxl.Tensor:
    """A tensor called ``x`` of the current graph, for tests that run nothing."""
    return ops.init(shape, dtype, "x")


def last_op(graph: popxl.Graph) -> tuple[str, list[str]]:
    """Kind of the op that was created last, and the names of its outputs."""
    op = graph._record.ops[-1]
    return op.kind, [value.name for value in op.outputs]


def foreign_tensor() -> popxl.Tensor:
    """A tensor of another Ir's graph."""
    with main_graph():
        return tensor((2,))


def run_ops(build: Build, *arrays: np.ndarray, replicas: int = 1) -> list[np.ndarray]:
    """What a session computes from ``arrays``.

    Args:
        build: makes output tensors from one tensor per array.
        arrays: with a leading axis of length ``replicas`` if that is above 1.
        replicas: replication factor.

    Returns:
        One array per output, with the replica axis if there are several replicas.
    """
    loads, stores = {}, []
    with main_graph(replicas) as graph:
        tensors = []
        for array in arrays:
            shape = array.shape[1:] if replicas > 1 else array.shape
            stream = popxl.h2d_stream(shape, popxl.dtype.as_dtype(array.dtype))
            loads[stream] = array
            tensors.append(ops.host_load(stream))
        built = build(*tensors)
        for result in [built] if isinstance(built, popxl.Tensor) else built:
            stores.append(popxl.d2h_stream(result.shape, result.dtype))
            ops.host_store(stores[-1], result)
    with popxl.Session(graph.ir, "ipu_hw") as session:
        outputs = session.run(loads)
    return [np.array(outputs[stream]) for stream in stores]


def run_replicas(build: Build, *arrays: np.ndarray) -> list[np.ndarray]:
    """As :func:`run_ops` on two replicas that get different rows of ``arrays``."""
    return run_ops(build, *arrays, replicas=2)


def assert_half_close(
    found: np.ndarray, wanted: np.ndarray, ulps: int = 1, atol: float = 0.0
) -> None:
    """float16 results of float32 arithmetic: within ``ulps`` of the rounded exact value.

    ``atol`` is what float32 arithmetic may lose where terms cancel.
    """
    assert found.dtype == np.float16
    with np.errstate(over="ignore"):
        rounded = wanted.astype(np.float16)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(rounded))
    finite = np.isfinite(rounded)
    step = np.spacing(np.abs(rounded[finite])).astype(np.float64)
    error = np.abs(found[finite].astype(np.float64) - rounded[finite].astype(np.float64))
    assert np.all(error <= ulps * step + atol), (
        f"{error.max()} at most {ulps} units in the last place"
    )
