"""GraphCache: one graph for equal arguments."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any

import popxl
from popxl import ops
from popxl.context import get_current_context
from popxl_addons.graph import BoundGraph, GraphWithNamedArgs


def bound_arguments(fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of `fn` by name.

    It is `fn.__call__` whose names these are, for functions and modules alike: defaults are
    not filled in, so leaving a value out and giving it are two different calls (quirk).
    """
    arguments = {"args": args, "kwargs": kwargs}
    return {"self": fn, **arguments} if isinstance(fn, popxl.Module) else arguments


def tensor_hash(t: popxl.Tensor | popxl.TensorSpec) -> int:
    """Hash of what a tensor contributes: shape, dtype, meta shape."""
    return hash((tuple(t.shape), t.dtype, tuple(t.meta_shape or ())))


def argument_hash(arg: Any) -> int:
    """Hash of an argument. Tensors and specs count by their spec; containers by their items.

    Raises:
        TypeError: the argument is not hashable.
    """
    if isinstance(arg, popxl.Tensor | popxl.TensorSpec):
        return tensor_hash(arg)
    if isinstance(arg, GraphWithNamedArgs):
        return hash(arg.graph)
    if isinstance(arg, BoundGraph):
        return hash((arg.graph, tuple(arg.args.items())))
    if isinstance(arg, tuple | list):
        return hash(tuple(argument_hash(item) for item in arg))
    if isinstance(arg, dict):
        return hash(tuple((key, argument_hash(value)) for key, value in arg.items()))
    return hash(arg)


def get_function_hash(fn: Any, *args: Any, **kwargs: Any) -> int:
    """Hash of a function, where it is placed, and its arguments."""
    context = get_current_context()
    arguments = bound_arguments(fn, *args, **kwargs)
    arguments.pop("self", None)
    return hash((fn, context.ipu_id, context.io_tile_set, argument_hash(arguments)))


class GraphCache:
    """Makes a graph once for each Ir, function, placement and arguments.

    An Ir owns its graphs, and each graph refers to its Ir: a cache that held graphs would keep
    every program alive.
    """

    def __init__(self) -> None:
        self._graphs: weakref.WeakKeyDictionary[
            popxl.Ir, weakref.WeakValueDictionary[int, popxl.Graph]
        ] = weakref.WeakKeyDictionary()

    def create_graph(self, fn: Any, *args: Any, **kwargs: Any) -> popxl.Graph:
        """The graph of `fn` for these arguments, made if there is none yet.

        Raises:
            TypeError: an argument is not hashable.
        """
        ir = popxl.gcg().ir
        graphs = self._graphs.setdefault(ir, weakref.WeakValueDictionary())
        key = get_function_hash(fn, *args, **kwargs)
        graph = graphs.get(key)
        if graph is None:
            graph = graphs[key] = ir.create_graph(fn, *args, **kwargs)
        return graph


def function(fn: Callable[..., Any]) -> Callable[..., tuple[popxl.Tensor, ...]]:
    """Decorator: each call finds or makes the graph of `fn` and calls it with the tensors."""
    cache = GraphCache()

    @wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> tuple[popxl.Tensor, ...]:
        graph = cache.create_graph(fn, *args, **kwargs)
        return ops.call(graph, *args, **kwargs)

    return wrapper
