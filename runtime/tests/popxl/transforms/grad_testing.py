"""Gradients of small graphs in float64, by popxl and by torch, for the tests of autodiff."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import popxl
import torch
from popxl import ops
from popxl.transforms import autodiff

from runtime.tests.popxl.ops.op_testing import main_graph

Build = Callable[..., "popxl.Tensor | Sequence[popxl.Tensor]"]
Reference = Callable[..., "torch.Tensor | Sequence[torch.Tensor]"]

RTOL = 1e-9  # of float64 arithmetic in a few steps
ATOL = 1e-10


def is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f"


def load(array: np.ndarray, loads: dict) -> popxl.Tensor:
    """A tensor that each run loads with ``array``, whose first axis is that of the replicas, if
    there are several."""
    shape = array.shape[1:] if popxl.gir().replication_factor > 1 else array.shape
    stream = popxl.h2d_stream(shape, popxl.dtype.as_dtype(array.dtype))
    loads[stream] = array
    return ops.host_load(stream)


def store(t: popxl.Tensor) -> popxl.DeviceToHostStream:
    """The stream that each run stores ``t`` to."""
    stream = popxl.d2h_stream(t.shape, t.dtype)
    ops.host_store(stream, t)
    return stream


def run(ir: popxl.Ir, loads: dict) -> dict:
    with popxl.Session(ir, "ipu_hw") as session:
        return session.run(loads, downcast_inputs=False)


def popxl_gradients(
    build: Build,
    arrays: Sequence[np.ndarray],
    wrt: Sequence[int],
    rng: np.random.Generator,
    replicas: int = 1,
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """(outputs, their random upstream gradients, gradients of the inputs ``wrt``).

    All arrays have a leading axis of length ``replicas`` if that is above 1.
    """
    loads: dict = {}
    ends = (replicas,) if replicas > 1 else ()
    with main_graph(replicas) as main:
        inputs = [load(array, loads) for array in arrays]
        graph = main.ir.create_graph(build, *inputs)
        floats = [t for t in graph.outputs if t.dtype.is_floating_point]
        count = len(floats)
        info = autodiff(graph, floats, [graph.inputs[i] for i in wrt])
        call = ops.call_with_info(graph, *inputs)
        upstream = [rng.normal(size=(*ends, *t.shape)).astype(t.dtype.as_numpy()) for t in floats]
        given = [load(array, loads) for array in upstream]
        grads = ops.call(info.graph, *given, inputs_dict=info.inputs_dict(call))
        parents = [call.graph_to_parent(t) for t in floats]
        streams = [store(t) for t in (*parents, *grads)]
    found = run(main.ir, loads)
    results = [np.array(found[stream]) for stream in streams]
    return results[:count], upstream, results[count:]


def torch_gradients(
    reference: Reference,
    arrays: Sequence[np.ndarray],
    wrt: Sequence[int],
    upstream: Sequence[np.ndarray],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(outputs, gradients of the inputs ``wrt``)."""
    tensors = [torch.tensor(array) for array in arrays]
    for index in wrt:
        tensors[index].requires_grad_(True)
    results = reference(*tensors)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    grads = torch.autograd.grad(
        results, [tensors[i] for i in wrt], [torch.tensor(g) for g in upstream]
    )
    return [t.detach().numpy() for t in results], [g.numpy() for g in grads]


def check_replicated_gradients(
    build: Build,
    reference: Reference,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    wrt: Sequence[int],
    rtol: float = RTOL,
) -> None:
    """As :func:`check_gradients`, on two replicas that get different arrays."""
    arrays = [np.stack(pair) for pair in zip(first, second, strict=True)]
    rng = np.random.default_rng(1)
    outputs, upstream, grads = popxl_gradients(build, arrays, wrt, rng, replicas=2)
    for replica, inputs in enumerate((first, second)):
        given = [array[replica] for array in upstream]
        wanted_outputs, wanted = torch_gradients(reference, inputs, wrt, given)
        for found, expected in zip((*outputs, *grads), (*wanted_outputs, *wanted), strict=True):
            np.testing.assert_allclose(found[replica], expected, rtol=rtol, atol=rtol / 10)


def check_gradients(
    build: Build,
    reference: Reference,
    *arrays: np.ndarray,
    wrt: Sequence[int] | None = None,
    rtol: float = RTOL,
    atol: float = ATOL,
    seed: int = 0,
) -> None:
    """Gradients by all floating-point inputs (or those ``wrt``) agree with torch's."""
    if wrt is None:
        wrt = [i for i, array in enumerate(arrays) if is_float(array)]
    rng = np.random.default_rng(seed)
    outputs, upstream, grads = popxl_gradients(build, arrays, wrt, rng)
    wanted_outputs, wanted = torch_gradients(reference, arrays, wrt, upstream)
    for found, expected in zip(outputs, wanted_outputs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
    for index, found, expected in zip(wrt, grads, wanted, strict=True):
        assert found.dtype == arrays[index].dtype
        assert found.shape == arrays[index].shape
        assert np.any(expected != 0), "a gradient of zeros tests nothing"
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=f"input {index}")
