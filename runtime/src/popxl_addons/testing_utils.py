"""Run one module, for tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import popxl
from popxl import ops
from popxl.tensor import Variable
from popxl_addons.module import Module
from popxl_addons.named_tensors import NamedTensors


def ops_of_type(ops: Iterable[Any], op_type: type) -> int:
    """How many of the ops are instances of `op_type`."""
    return sum(isinstance(op, op_type) for op in ops)


class TensorInput:
    """Data that a module gets as a tensor.

    Args:
        data: the value.
        dtype: default that of the data.
    """

    def __init__(self, data: np.ndarray, dtype: popxl.dtype | None = None) -> None:
        self.data = data
        self.dtype = dtype


def _as_variable(value: Any) -> Any:
    return popxl.variable(value.data, value.dtype) if isinstance(value, TensorInput) else value


def run_module(
    module: Module,
    *args: Any,
    weights: Callable[[NamedTensors], Mapping[Variable, np.ndarray]] | None = None,
    **kwargs: Any,
) -> list[np.ndarray]:
    """Outputs of a module, run once in a program of its own.

    Args:
        module: makes the graph; its variables get their initial values.
        args: arguments of `build`; TensorInput becomes a tensor.
        weights: data for the variables, or a function from the variables to them.
        kwargs: more arguments of `build`.
    """
    ir = popxl.Ir()
    with ir.main_graph:
        args = tuple(_as_variable(value) for value in args)
        kwargs = {key: _as_variable(value) for key, value in kwargs.items()}
        factories, graph = module.create_graph(*args, **kwargs)
        variables = factories.init()
        # Graph inputs are in the order of the signature, not of the call.
        bound = inspect.signature(module.build).bind(*args, **kwargs)
        values = [*bound.args, *bound.kwargs.values()]
        tensors = [value for value in values if isinstance(value, popxl.Tensor)]
        outputs = graph.bind(variables).call(*tensors)
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in outputs]
        for stream, tensor in zip(streams, outputs, strict=True):
            ops.host_store(stream, tensor)
    session = popxl.Session(ir, "ipu_hw")
    with session:
        if weights is not None:
            data = weights(variables) if callable(weights) else weights
            session.write_variables_data(dict(data))
        results = session.run()
    return [results[stream] for stream in streams]
