"""Runs one module of the application in a program of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.patterns import apply_pre_alias_patterns


def run_module(
    make: Callable[[], addons.Module],
    inputs: Sequence[np.ndarray],
    weights: Mapping[str, np.ndarray],
    tensor_parallel: int = 1,
    **build_options: Any,
) -> np.ndarray:
    """Builds a module's graph, writes its weights, runs it once.

    Args:
        make: constructs the module; called inside the main graph.
        inputs: arrays with one entry per replica in front, always.
        weights: flat variable key -> host array.
        tensor_parallel: replicas.
        build_options: further arguments of the module's build.

    Returns:
        The output of every replica, the replica axis in front, always.
    """
    ir = popxl.Ir(replication=tensor_parallel)
    with ir.main_graph, popxl.in_sequence():
        kinds = [popxl.dtype.as_dtype(x) for x in inputs]
        specs = [popxl.TensorSpec(x.shape[1:], k) for x, k in zip(inputs, kinds, strict=True)]
        factories, graph = make().create_graph(*specs, **build_options)
        variables = factories.init(empty=True)
        streams = [popxl.h2d_stream(spec.shape, spec.dtype) for spec in specs]
        (y,) = graph.bind(variables).call(*[ops.host_load(stream) for stream in streams])
        out = popxl.d2h_stream(y.shape, y.dtype)
        ops.host_store(out, y)
    apply_pre_alias_patterns(ir)
    single = tensor_parallel == 1
    feeds = {s: x[0] if single else x for s, x in zip(streams, inputs, strict=True)}
    named = variables.to_dict()
    assert named.keys() == weights.keys()
    with popxl.Session(ir, "ipu_hw") as session:
        session.write_variables_data({named[key]: array for key, array in weights.items()})
        result = session.run(feeds)[out]
    return result[None] if single else result


def on_all(x: np.ndarray, tensor_parallel: int) -> np.ndarray:
    """The same array for every replica."""
    return np.broadcast_to(x, (tensor_parallel, *x.shape))


def equal_on_all(outputs: np.ndarray) -> np.ndarray:
    """The one array that all replicas gave.

    Raises:
        AssertionError: they differ.
    """
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:]), "replicas differ"
    return outputs[0]


def joined_columns(outputs: np.ndarray) -> np.ndarray:
    """The replicas' columns side by side."""
    return np.concatenate(list(outputs), axis=-1)
