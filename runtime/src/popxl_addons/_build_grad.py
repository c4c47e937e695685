"""Gradient graphs from a module's own `build_grad`."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import popxl
from popxl import Tensor
from popxl.tensor import graph_output
from popxl.transforms import GradGraphInfo
from popxl_addons._grad_info import grad_info
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.utils import duplicate_items

if TYPE_CHECKING:
    from popxl_addons.module import Module


class GradAux:
    """`aux` inside `build_grad`: what the forward graph kept.

    Args:
        values: by key; tensors are those of the forward graph.
        graph: the forward graph.
    """

    def __init__(self, values: dict[Any, Any], graph: popxl.Graph) -> None:
        self._values = values
        self._graph = graph
        self._inputs: dict[Any, Tensor] = {}

    def __getitem__(self, key: Any) -> Any:
        """The value of `key`; for a tensor an input of the gradient graph, made on first use."""
        value = self._values[key]
        if not isinstance(value, Tensor):
            return value
        if key not in self._inputs:
            self._inputs[key] = popxl.graph_input(
                value.shape, value.dtype, str(key), meta_shape=value.meta_shape
            )
        return self._inputs[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def read(self) -> list[tuple[Tensor, Tensor]]:
        """(input of the gradient graph, tensor of the forward graph), in order of first use."""
        return [(tensor, self._values[key]) for key, tensor in self._inputs.items()]

    def tensors(self) -> list[Tensor]:
        """All recorded tensors of the forward graph."""
        return [value for value in self._values.values() if isinstance(value, Tensor)]


def create_grad_graph(
    module: Module,
    fwd_graph: GraphWithNamedArgs,
    grads_provided: Iterable[Tensor] | None,
    grads_required: Iterable[Tensor] | None,
    var_grads: Callable[[dict[str, Tensor]], Any],
) -> GraphWithNamedArgs:
    """See `Module.create_grad_graph`. `var_grads` makes the recorder of variables' gradients."""
    _check_signature(module)
    graph = fwd_graph.graph
    provided = _members(grads_provided, graph.outputs, "grads_provided", "output")
    required = _members(grads_required, graph.inputs, "grads_required", "input")
    names = {tensor: key for key, tensor in fwd_graph.args.to_dict().items()}
    others = [tensor for tensor in required if tensor not in names]
    variables = {names[tensor]: tensor for tensor in required if tensor in names}
    kept = fwd_graph._aux._values if fwd_graph._aux is not None else {}
    aux = GradAux(kept, graph)
    recorder = var_grads(dict(fwd_graph.args.to_dict()))
    with _recording(module, aux, recorder):
        grad_graph = graph.ir.create_graph(module.build_grad, *provided)
    _check_outputs(grad_graph.outputs, others)
    missing = [name for name in variables if name not in recorder]
    if missing:
        raise ValueError(f"Not all variable gradients have been specified: {', '.join(missing)}")
    with grad_graph:
        for name in variables:
            graph_output(recorder[name])
    with graph:
        for tensor in aux.tensors():
            graph_output(tensor)
    info = grad_info(
        graph,
        grad_graph,
        [(tensor, "FwdGrad") for tensor in provided] + [(value, "Fwd") for _, value in aux.read()],
        [*others, *variables.values()],
    )
    return GraphWithNamedArgs.from_grad_graph(info)


@contextmanager
def _recording(module: Module, aux: Any, recorder: Any) -> Iterator[None]:
    before = module.aux, module.var_grad
    module.aux, module.var_grad = aux, recorder
    try:
        yield
    finally:
        module.aux, module.var_grad = before


def _check_signature(module: Module) -> None:
    fixed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.build_grad).parameters.values()
    if any(parameter.kind not in fixed for parameter in parameters):
        raise TypeError(
            f"{type(module).__name__}.build_grad: the method signature must only have a fixed"
            " number of positional parameters as inputs."
        )


def _members(
    given: Iterable[Tensor] | None, members: Sequence[Tensor], argument: str, what: str
) -> list[Tensor]:
    tensors = list(members if given is None else given)
    for tensor in tensors:
        if tensor not in members:
            raise ValueError(
                f"A Tensor specified in `{argument}` is not a {what} of `fwd_graph`: {tensor!r}"
            )
    if given is not None and duplicate_items(tensors):
        raise ValueError(f"`{argument}` names a tensor twice: {duplicate_items(tensors)}")
    return tensors


def _check_outputs(outputs: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    counts = f"{len(outputs)} for {len(others)} inputs that are no variables"
    if len(outputs) > len(others):
        raise ValueError(f"Too many outputs in the grad graph: {counts}")
    if len(outputs) < len(others):
        raise ValueError(f"Not all forward graph inputs have been specified: {counts}")
    for position, (output, tensor) in enumerate(zip(outputs, others, strict=True)):
        if (output.shape, output.meta_shape) != (tensor.shape, tensor.meta_shape):
            raise ValueError(
                f"Shape or meta-shape of output Tensor at position {position} does not match the"
                f" forward graph's input: {output!r} for {tensor!r}"
            )


def create_grad_graph_info(
    ir: popxl.Ir,
    fwd_graph: popxl.Graph,
    grad_graph: popxl.Graph,
    grad_input_to_fwd_output: OrderedDict[Tensor, Tensor],
    grad_output_to_fwd_input: OrderedDict[Tensor, Tensor],
    fwd_tensors: set[Tensor],
) -> GradGraphInfo:
    """popxl's gradient information from mappings.

    Args:
        ir: of both graphs.
        fwd_graph: the forward graph.
        grad_graph: the gradient graph.
        grad_input_to_fwd_output: its inputs in order, each to the forward tensor that it is, or
            is the gradient of.
        grad_output_to_fwd_input: its outputs in order to the forward graph's inputs.
        fwd_tensors: forward tensors that are inputs as they are, not as gradients.
    """
    inputs = [
        (tensor, "Fwd" if tensor in fwd_tensors else "FwdGrad")
        for tensor in grad_input_to_fwd_output.values()
    ]
    return grad_info(fwd_graph, grad_graph, inputs, list(grad_output_to_fwd_input.values()))
