"""Module: a layer that registers its variables by name and can be made a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, Literal

import popxl
from popxl import Tensor, dtypes
from popxl.context import get_current_context
from popxl.tensor import HostTensor
from popxl_addons._build_grad import create_grad_graph, create_grad_graph_info
from popxl_addons.dot_tree import DotTree
from popxl_addons.graph import BoundGraph, GraphWithNamedArgs
from popxl_addons.graph_cache import GraphCache
from popxl_addons.graph_common import called_graphs_info, grad_info_of, graph_of
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.utils import OrderedDict, overrides
from popxl_addons.variable_factory import (
    DataIter,
    NamedVariableFactories,
    VariableFactory,
    add_replica_sharded_variable_input,
    add_variable_input,
)

__all__ = [
    "BoundGraph",
    "GraphWithNamedArgs",
    "HostTensor",
    "Module",
    "NameScopeMeta",
    "NamedTensors",
    "NamedVariableFactories",
    "OrderedDict",
    "VariableFactory",
    "add_replica_sharded_variable_input",
    "add_variable_input",
    "create_grad_graph_info",
]

_INLINING_ERRORS = ("error", "warning", "none")
_INLINING_MESSAGE = (
    "`build_grad` has been implemented for {name}, but the module is called inline, where it has"
    " no effect. Use `call_module` or `create_graph`."
)


def _in_name_scope(build: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(build)
    def scoped_build(self: Module, *args: Any, **kwargs: Any) -> Any:
        scope = getattr(self, "_name_scope", None)
        if scope is None:
            return build(self, *args, **kwargs)
        # Not popxl.name_scope: that one stays active when its block raises.
        context = get_current_context()
        context.push_name_scope(scope)
        try:
            return build(self, *args, **kwargs)
        finally:
            context.pop_name_scope()

    return scoped_build


class NameScopeMeta(type):
    """Makes `build` run inside the module's name scope, if it has one."""

    def __new__(cls, name: str, bases: tuple[type, ...], dct: dict[str, Any]) -> type:
        """The class, with the `build` of its body wrapped."""
        if "build" in dct:
            dct = {**dct, "build": _in_name_scope(dct["build"])}
        return super().__new__(cls, name, bases, dct)


class _Aux:
    """What a forward graph keeps for a hand-written gradient."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[key] = value

    def __getitem__(self, key: Any) -> Tensor:
        raise RuntimeError(
            "Aux: you can only get items within the `build_graph` method of the gradient"
            " (`build_grad`)"
        )

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return f"Aux({self._values!r})"

    def copy(self) -> _Aux:
        """The same values in a new object."""
        new = _Aux()
        new._values = dict(self._values)
        return new


class _VarGrads:
    """Gradients of the forward graph's variables, by flat key.

    Args:
        grads_required_vars_with_names: the variables; None outside of `build_grad`.
    """

    def __init__(self, grads_required_vars_with_names: dict[str, Tensor] | None = None) -> None:
        self._variables = grads_required_vars_with_names
        self._grads: dict[str, Tensor] = {}

    def _known_variables(self) -> dict[str, Tensor]:
        if self._variables is None:
            raise RuntimeError("var_grad can only be used within the `build_graph` method")
        return self._variables

    def __getitem__(self, key: str) -> Tensor:
        self._known_variables()
        return self._grads[key]

    def __setitem__(self, key: str, tensor: Tensor) -> None:
        variables = self._known_variables()
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Not a tensor: {tensor!r}")
        if key not in variables:
            raise KeyError(f"Not a variable: {key!r}. Variables: {', '.join(variables)}")
        variable = variables[key]
        if (tensor.shape, tensor.meta_shape) != (variable.shape, variable.meta_shape):
            raise ValueError(
                "Shape or meta-shape of Tensor does not match variable."
                f" {key}: {tensor!r} for {variable!r}"
            )
        self._grads[key] = tensor

    def __contains__(self, key: str) -> bool:
        return key in self._grads

    def __repr__(self) -> str:
        return f"VarGrads({self._grads!r})"


class _CalledGraphsGradInfoRefs:
    """Gradients of the graphs that a module calls, its own and its sub-modules'.

    Args:
        map: forward graph to gradient information.
    """

    def __init__(self, map: Mapping[Any, Any] | None = None) -> None:
        self.map: dict[popxl.Graph, Any] = {}
        self.submaps: list[Any] = []
        for graph, info in (map or {}).items():
            self.add(graph, info)

    def consolidate(self) -> dict[popxl.Graph, Any]:
        """All of it in one dict; nearer entries win."""
        merged: dict[popxl.Graph, Any] = {}
        for submap in self.submaps:
            if isinstance(submap, _CalledGraphsGradInfoRefs):
                merged.update(submap.consolidate())
            else:
                merged.update(called_graphs_info(submap))
        merged.update(self.map)
        return merged

    def add(self, fwd_graph: Any, grad_graph: Any) -> None:
        """Record the gradient of a called graph."""
        self.map[graph_of(fwd_graph)] = grad_info_of(grad_graph)

    def add_submap(self, called_graphs_grad_info: Any) -> None:
        """Link the records of a sub-module or called graph."""
        self.submaps.append(called_graphs_grad_info)

    def clear(self) -> None:
        """Forget the records of this module and what was linked as a plain mapping."""
        self.map.clear()
        self.submaps[:] = [s for s in self.submaps if isinstance(s, _CalledGraphsGradInfoRefs)]


_Nodes = dict[str, "_Nodes"]


def _nodes(tree: DotTree[Any]) -> _Nodes:
    return {k: _nodes(v) for k, v in tree._map.items() if isinstance(v, DotTree)}


def _clear_to(tree: DotTree[Any], nodes: _Nodes) -> None:
    """Empty a tree in place down to the nodes that it had before a build: those are held by
    sub-modules. Nodes made by the build go, so that another build can make them again."""
    for key, value in list(tree._map.items()):
        if isinstance(value, DotTree):
            _clear_to(value, nodes.get(key, {}))
        if not isinstance(value, DotTree) or key not in nodes:
            del tree._map[key]


class Module(popxl.Module, metaclass=NameScopeMeta):
    """A layer. Called, it runs `build` in the current graph; `create_graph` makes a graph of it.

    Sub-modules assigned as attributes register their variables under the attribute's name.

    Args:
        cache: make one graph for equal arguments of `create_graph`.
        grad_inlining_error: what to do when a module with `build_grad` is called inline.

    Raises:
        ValueError: an unknown `grad_inlining_error`, or `cache` together with `build_grad`.
    """

    grad_inlining_error: str = "error"
    _name_scope: str | None = None
    _building = False
    _list_length: int

    def __init__(
        self,
        cache: bool = False,
        grad_inlining_error: Literal["error", "warning", "none"] = "error",
    ) -> None:
        self._variable_factories = NamedVariableFactories()
        self._named_inputs = NamedTensors()
        if cache and self.implements_grad_graph:
            raise ValueError("You cannot use graph caching if you have implemented `build_grad`")
        if grad_inlining_error not in _INLINING_ERRORS:
            raise ValueError(
                f"grad_inlining_error should be one of {_INLINING_ERRORS},"
                f" got {grad_inlining_error!r}"
            )
        self._graph_cache = GraphCache() if cache else None
        self._args_cache: dict[popxl.Graph, tuple[NamedVariableFactories, NamedTensors]] = {}
        self.aux = _Aux()
        self.var_grad = _VarGrads()
        self.grad_inlining_error = grad_inlining_error
        self.called_graphs_grad_info = _CalledGraphsGradInfoRefs()

    def __call__(self, *args: Any, **kwargs: Any) -> None | Tensor | Iterable[Tensor]:
        """Run `build` in the current graph."""
        if self.implements_grad_graph and not self._building:
            message = _INLINING_MESSAGE.format(name=type(self).__name__)
            if self.grad_inlining_error == "error":
                raise RuntimeError(message)
            if self.grad_inlining_error == "warning":
                warnings.warn(message, UserWarning, stacklevel=2)
        return self.build(*args, **kwargs)

    def build_grad(self, *args: Any, **kwargs: Any) -> None | Tensor | Iterable[Tensor]:
        """Override to write the gradient by hand: upstream gradients in, gradients out."""
        raise NotImplementedError(f"{type(self).__name__} does not implement build_grad")

    @property
    def implements_grad_graph(self) -> bool:
        """Whether the class overrides `build_grad`."""
        return overrides(type(self), Module, "build_grad")

    def create_graph(
        self, *args: Any, **kwargs: Any
    ) -> tuple[NamedVariableFactories, GraphWithNamedArgs]:
        """A graph of this module.

        Args:
            args: arguments of `build`. Tensors and specs become graph inputs.
            kwargs: the same.

        Returns:
            Factories of the variables, and the graph with its inputs for them under the same
            flat keys.
        """
        nodes = (_nodes(self._variable_factories), _nodes(self._named_inputs))
        self.aux = _Aux()
        self._building = True
        try:
            graph = self._create_popxl_graph(*args, **kwargs)
            factories, inputs = self._variable_factories.copy(), self._named_inputs.copy()
            if self._graph_cache is not None:
                # A graph from the cache registered nothing this time.
                factories, inputs = self._args_cache.setdefault(graph, (factories, inputs))
            named_graph = GraphWithNamedArgs(
                graph,
                inputs.copy(),
                from_module=self,
                aux=self.aux.copy(),
                called_graphs_grad_info=self.called_graphs_grad_info.consolidate(),
            )
            return factories.copy(), named_graph
        finally:
            self._building = False
            self._reset(*nodes)

    def _create_popxl_graph(self, *args: Any, **kwargs: Any) -> popxl.Graph:
        if self._graph_cache is not None:
            return self._graph_cache.create_graph(self, *args, **kwargs)
        graph = popxl.gcg().ir.create_graph(self, *args, **kwargs)
        if self.implements_grad_graph:
            graph._pb_graph.setCanBeRecursivelyAutodiffed(False)
        return graph

    def _reset(self, factory_nodes: _Nodes, input_nodes: _Nodes) -> None:
        _clear_to(self._variable_factories, factory_nodes)
        _clear_to(self._named_inputs, input_nodes)
        self.aux = _Aux()
        self.var_grad = _VarGrads()
        self.called_graphs_grad_info.clear()

    def create_grad_graph(
        self,
        fwd_graph: GraphWithNamedArgs,
        grads_provided: Iterable[Tensor] | None = None,
        grads_required: Iterable[Tensor] | None = None,
    ) -> GraphWithNamedArgs:
        """The gradient graph that `build_grad` makes; appends `aux` to the forward graph's outputs.

        It cannot be run twice on one forward graph.

        Args:
            fwd_graph: a graph of this module.
            grads_provided: outputs with an upstream gradient (default all), one input each.
            grads_required: inputs to differentiate by (default all).

        Returns:
            A graph whose inputs are the upstream gradients, then what `build_grad` read of `aux`.
            Its outputs are what `build_grad` returned, then the variables' gradients; (mended) its
            gradient information pairs them with their inputs whatever the order required.

        Raises:
            TypeError: `build_grad` takes other than fixed positional parameters.
            ValueError: tensors that are no outputs or inputs, or named twice; an upstream gradient
                too many or too few; gradients missing, too many or of another shape.
        """
        return create_grad_graph(self, fwd_graph, grads_provided, grads_required, _VarGrads)

    def add_variable_factory(self, variable_f: VariableFactory, name: str | None = None) -> Tensor:
        """Register a factory under `name` (default its own) with an input of the current graph."""
        key = name or variable_f.name
        if key is None:
            raise ValueError("add_variable_factory: neither a name nor a factory with one")
        tensor = variable_f.create_input()
        self._register(key, variable_f, tensor)
        return tensor

    def _register(
        self, key: str, factory: VariableFactory, tensor: Tensor, overwrite: bool = False
    ) -> None:
        self._variable_factories.insert(key, factory, overwrite)
        self._named_inputs.insert(key, tensor, overwrite)

    def add_variable_input(
        self,
        name: str,
        data_iter: DataIter,
        dtype: dtypes.dtype | None = None,
        by_ref: bool = False,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """An input of the current graph that stands for a variable of this module.

        Args:
            name: key of the variable; dots make nested names.
            data_iter: callable or iterable that gives the initial data.
            dtype: default that of the data.
            by_ref: the graph may change the variable.
            replica_grouping: default all replicas in one group.
            overwrite: as in `DotTree.insert`.
        """
        tensor, factory = add_variable_input(name, data_iter, dtype, by_ref, replica_grouping)
        self._register(name, factory, tensor, overwrite)
        return tensor

    def add_replica_sharded_variable_input(
        self,
        name: str,
        data_iter: DataIter,
        dtype: dtypes.dtype | None = None,
        by_ref: bool = False,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        shard_over: int | None = None,
    ) -> Tensor:
        """As `add_variable_input` for a variable cut over its replica group; the input is 1-D
        and carries the whole shape as meta shape."""
        tensor, factory = add_replica_sharded_variable_input(
            name, data_iter, dtype, by_ref, replica_grouping, shard_over
        )
        self._register(name, factory, tensor)
        return tensor

    def set_name_scope(self, name: str) -> None:
        """Make `build` run in this name scope."""
        self._name_scope = name

    def __setattr__(self, key: str, value: Any) -> None:
        """Set an attribute; a Module is also registered under `key`.

        Raises:
            ValueError: `key` was used for another module.
        """
        if isinstance(value, Module):
            value.set_name_scope(key)
            self._variable_factories.insert(key, value._variable_factories)
            self._named_inputs.insert(key, value._named_inputs)
            self.called_graphs_grad_info.add_submap(value.called_graphs_grad_info)
        super().__setattr__(key, value)

    def add_variable_inputs(
        self, name: str | int, variable_f: NamedVariableFactories, overwrite: bool = False
    ) -> NamedTensors:
        """Inputs of the current graph for the variables of a graph that was made before.

        Args:
            name: where to register them; an integer (not negative) or a flat key.
            variable_f: that graph's factories.
            overwrite: as in `DotTree.insert`.

        Returns:
            The inputs, to be bound to that graph. The tree is emptied when `create_graph` of
            this module ends.

        Raises:
            ValueError: a negative `name`, or one that exists.
        """
        inputs = NamedTensors.from_dict(
            {key: factory.create_input() for key, factory in variable_f.to_dict().items()}
        )
        self._variable_factories.insert(name, variable_f.copy(), overwrite)
        self._named_inputs.insert(name, inputs, overwrite)
        return inputs

    @classmethod
    def from_list(cls, sub_modules: list[Module]) -> Module:
        """A module that holds others under "0", "1", ...; it can be iterated and indexed."""
        module = cls()
        for i, sub_module in enumerate(sub_modules):
            setattr(module, str(i), sub_module)
        module._list_length = len(sub_modules)
        return module

    @classmethod
    def from_variable_factories(cls, inputs: list[VariableFactory]) -> Module:
        """A module that holds inputs of the current graph under "0", "1", ..."""
        module = cls()
        for i, factory in enumerate(inputs):
            setattr(module, str(i), module.add_variable_factory(factory, str(i)))
        module._list_length = len(inputs)
        return module

    def get(self, key: str | int) -> Any:
        """The attribute of this name or number."""
        return getattr(self, str(key))

    def __getitem__(self, item: str | int) -> Any:
        return self.get(item)

    def __iter__(self) -> Iterator[Any]:
        length = self._list_length  # AttributeError for a module that is no list
        return iter([self.get(i) for i in range(length)])

    def call_module(
        self,
        module: Module,
        name: str | None = None,
        autodiff: Literal["auto", "build_grad", "autodiff", "none"] = "auto",
        grads_provided: Callable[[GraphWithNamedArgs], Iterable[Tensor]] | None = None,
        grads_required: Callable[[GraphWithNamedArgs], Iterable[Tensor]] | None = None,
    ) -> _CallModule:
        """A callable that makes a graph of `module`, registers its variables here, calls it.

        Args:
            module: the module to outline.
            name: key of its variables (default its class name).
            autodiff: whether and how to differentiate it at once.
            grads_provided: from the graph to the outputs with an upstream gradient.
            grads_required: from the graph to the inputs to differentiate by.
        """
        return _CallModule(self, module, name, autodiff, grads_provided, grads_required)


class _CallModule:
    """See `Module.call_module`. Called with tensors, it returns the outputs of the graph."""

    def __init__(
        self,
        caller: Module,
        callee: Module,
        name: str | None,
        autodiff: Literal["auto", "build_grad", "autodiff", "none"],
        grads_provided: Callable[[GraphWithNamedArgs], Iterable[Tensor]] | None = None,
        grads_required: Callable[[GraphWithNamedArgs], Iterable[Tensor]] | None = None,
    ) -> None:
        self.caller = caller
        self.callee = callee
        self.name = name or type(callee).__name__
        self.autodiff = autodiff
        self.grads_provided = grads_provided
        self.grads_required = grads_required

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        self.var_factories, self.graph = self.callee.create_graph(*args, **kwargs)
        named_args = self.caller.add_variable_inputs(self.name, self.var_factories)
        self.n_outputs_pre_autodiff = len(self.graph.graph.outputs)
        self.caller.called_graphs_grad_info.add_submap(self.graph.called_graphs_grad_info)
        if self._differentiates():
            self._differentiate()
        outputs = self.graph.bind(named_args).call(*args, **kwargs)
        return outputs[: self.n_outputs_pre_autodiff]

    def _differentiates(self) -> bool:
        if self.autodiff == "auto":
            return self.callee.implements_grad_graph
        return self.autodiff != "none"

    def _differentiate(self) -> None:
        assert self.autodiff != "none"
        grad_graph = self.graph.autodiff(
            self.grads_provided and self.grads_provided(self.graph),
            self.grads_required and self.grads_required(self.graph),
            method=self.autodiff,
        )
        self.caller.called_graphs_grad_info.add(self.graph, grad_graph)
