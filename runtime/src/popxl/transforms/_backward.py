"""Builds the gradient graph of one graph, by walking its ops backwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from popxl import dtypes
from popxl.context import ExecutionContext, get_current_context
from popxl.graph import Graph
from popxl.ops.add import add_all
from popxl.ops.gradients import GradSite, gradient_rule, sum_to
from popxl.ops.utils import _create_op, cast_if_needed
from popxl.tensor import Tensor, _add_value, graph_input
from popxl_torch.ir import records
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import opdef
from popxl_torch.ir.records import Op, Value

if TYPE_CHECKING:
    from popxl.transforms.autodiff import GradGraphInfo

_logger = logging.getLogger("popxl")

Subgraphs = Callable[["Backward", Op, Sequence[Tensor | None]], dict[int, Tensor]]
"""Gradients of a calling op's inputs, by index, from those of its outputs."""

# Computing these again would do more than compute.
_ONCE = frozenset({"HostLoad", "RemoteLoad", "RemoteLoadInplace", "Loop"})


def gradient_name(name: str) -> str:
    """The name of the gradient of the tensor called ``name``."""
    return f"Gradient___{name}"


def is_float(value: Value) -> bool:
    """Whether a tensor can have a gradient."""
    return dtypes.dtype.as_dtype(value.spec.dtype).is_floating_point


@contextmanager
def entered(graph: Graph) -> Iterator[None]:
    """``graph`` as the current one, without the settings that the program has around autodiff."""
    context = get_current_context()
    names = ("_name_scopes", "_hooks", "_ipu_id", "_io_tiles", "_execution", "_in_sequence")
    saved = {name: getattr(context, name) for name in names}
    context._name_scopes, context._hooks, context._in_sequence = [], {}, None
    context._execution = ExecutionContext.Normal
    context.push_graph(graph)
    try:
        yield
    finally:
        context.pop_graph()
        for name, value in saved.items():
            setattr(context, name, value)


class Backward:
    """The gradient graph of ``graph`` while it is built.

    Args:
        graph: the forward graph.
        provided: tensors whose gradients will be given, each once.
        required: tensors to differentiate by.
        subgraphs: gradients of calling ops by kind.
        strict: a required gradient that does not exist is an error; otherwise it is left out.
    """

    def __init__(
        self,
        graph: Graph,
        provided: Sequence[Value],
        required: Sequence[Value],
        subgraphs: dict[str, Subgraphs],
        strict: bool = True,
    ) -> None:
        self.record = graph._record
        self.provided = list(provided)
        self.required = list(required)
        self.subgraphs = subgraphs
        self.strict = strict
        self.grads: dict[Value, list[Tensor]] = {}
        self.forward_inputs: dict[Value, Tensor] = {}
        self.wanted = self._dependents(required)
        self._recomputed: dict[Value, Tensor] = {}
        self._outside = {*self.record.inputs, *self.record.outputs}
        self._recompute = _called_otherwise(self.record)

    def build(self) -> GradGraphInfo | None:
        """The gradient graph, or None if no required gradient exists and that is no error.

        Raises:
            popart_exception: an op on the way has no gradient, or a required one does not exist.
        """
        from popxl.transforms.autodiff import ExpectedConnectionType, GradGraphInfo

        _check_unmodified(self.record)
        graph = _new_graph(self.record)
        try:
            with entered(graph):
                upstream = [self._provide(value) for value in self.provided]
                for op in reversed(list(self.record.ops)):
                    self._differentiate(op)
                outputs = self._outputs()
        except BaseException:
            del self.record.program.graphs[graph.id]
            raise
        if not outputs:
            del self.record.program.graphs[graph.id]
            return None
        needed = sorted(self.forward_inputs, key=lambda value: value.id)
        graph._record.inputs[:] = [t._value for t in upstream]
        graph._record.inputs += [self.forward_inputs[value]._value for value in needed]
        graph._record.outputs[:] = [t._value for _, t in outputs]
        stitch(self.record, needed)
        kinds = ExpectedConnectionType
        return GradGraphInfo._make(
            graph,
            self.record.program.frontend._graph(self.record),
            [(v, kinds.FwdGrad) for v in self.provided] + [(v, kinds.Fwd) for v in needed],
            [(v, kinds.FwdGrad) for v, _ in outputs],
        )

    def _dependents(self, sources: Iterable[Value]) -> set[Value]:
        """Floating-point values that depend on any of ``sources``, these included."""
        found = {value for value in sources if is_float(value)}
        for op in self.record.ops:
            if any(value in found for value in op.inputs if value is not None):
                found.update(value for value in op.outputs if is_float(value))
        return found

    def _provide(self, value: Value) -> Tensor:
        spec = value.spec
        t = graph_input(
            spec.shape,
            dtypes.dtype.as_dtype(spec.dtype),
            gradient_name(value.name),
            meta_shape=spec.meta_shape,
        )
        if value not in self.wanted and is_float(value):
            _logger.warning(
                "autodiff of %s: the gradient provided for %s reaches no required tensor.",
                self.record.id,
                value,
            )
        self.grads.setdefault(value, []).append(t)
        return t

    def _outputs(self) -> list[tuple[Value, Tensor]]:
        """(required value, its gradient); a tensor stands for one of them only."""
        taken: set[Tensor] = set()
        outputs: list[tuple[Value, Tensor]] = []
        for value in self.required:
            t = self.grad_of(value)
            if t is None or not is_float(value):
                if self.strict:
                    raise popart_exception(
                        "Unable to provide required gradient output: there is no gradient of"
                        f" {value} in graph {self.record.id}. It is no floating-point tensor, or"
                        " no provided gradient reaches it."
                    )
                continue
            if t in taken or t._value.kind != "op":
                t = _create_op("Identity", [t], names=[gradient_name(value.name)])[0]
            taken.add(t)
            outputs.append((value, t))
        return outputs

    # -- gradients --------------------------------------------------------------------------

    def grad_of(self, value: Value) -> Tensor | None:
        """The gradient of a forward value: the sum of what its uses gave; None without any."""
        parts = self.grads.get(value)
        if not parts:
            return None
        total = add_all(parts)
        self.grads[value] = [total]
        _rename(total, gradient_name(value.name))
        return total

    def _differentiate(self, op: Op) -> None:
        if not any(value in self.wanted for value in op.inputs if value is not None):
            return
        if not any(value in self.grads for value in op.outputs):
            return
        grads = [self.grad_of(value) for value in op.outputs]
        context = get_current_context()
        context._ipu_id, context._io_tiles = op.ipu, op.tile_set == "io"
        if op.kind in self.subgraphs:
            found = self.subgraphs[op.kind](self, op, grads)
        else:
            found = self._apply_rule(op, grads)
        for index, grad in found.items():
            value = op.inputs[index]
            assert value is not None
            grad = sum_to(grad, value.spec.shape)
            grad = cast_if_needed(grad, dtypes.dtype.as_dtype(value.spec.dtype))
            self.grads.setdefault(value, []).append(grad)

    def _apply_rule(self, op: Op, grads: Sequence[Tensor | None]) -> dict[int, Tensor]:
        facts = opdef(op.kind)
        rule = gradient_rule(op.kind) or (gradient_rule(facts.pure or "") if facts.view else None)
        site = GradSite(op, grads, self.forward)
        if rule is None:
            raise site.refusal(f"{op.kind} has no gradient")
        functions = dict(enumerate(rule(site)))
        return {
            index: function()
            for index, value in enumerate(op.inputs)
            if value in self.wanted and (function := functions.get(index)) is not None
        }

    # -- forward values ---------------------------------------------------------------------

    def forward(self, value: Value) -> Tensor:
        """The tensor of the gradient graph that holds a value of the forward graph.

        It is an input, unless a loop or conditional calls the forward graph, which cannot hand
        intermediate values out: then they are computed again.
        """
        if self._recompute and value not in self._outside:
            if value not in self._recomputed:
                self._compute_again(value)
            return self._recomputed[value]
        if value not in self.forward_inputs:
            spec = value.spec
            self.forward_inputs[value] = graph_input(
                spec.shape,
                dtypes.dtype.as_dtype(spec.dtype),
                value.name,
                meta_shape=spec.meta_shape,
            )
        return self.forward_inputs[value]

    def _compute_again(self, value: Value) -> None:
        known = {*self._recomputed, *self._outside}
        pending, missing = [value], set()
        while pending:
            found = pending.pop()
            if found in known or found in missing:
                continue
            missing.add(found)
            if found.producer is not None:
                pending += [v for v in found.producer.inputs if v is not None]
        for constant in (v for v in missing if v.producer is None):
            graph = get_current_context().graph
            self._recomputed[constant] = _add_value(
                graph, constant.name, constant.spec, constant.kind, constant.data
            )
        for op in self.record.ops:
            if not missing.isdisjoint(op.outputs):
                self._clone(op)

    def _clone(self, op: Op) -> None:
        if op.kind in _ONCE:
            raise popart_exception(f"autodiff would have to run this a second time: {op.where()}")
        inputs = [None if v is None else self.forward(v) for v in op.inputs]
        attrs = {k: set(v) if isinstance(v, set) else v for k, v in op.attrs.items()}
        outputs = _create_op(
            op.kind,
            inputs,
            attrs,
            [v.name for v in op.outputs],
            graphs=op.graphs,
            specs=[v.spec for v in op.outputs],
        )
        self._recomputed.update(zip(op.outputs, outputs, strict=True))


def _rename(t: Tensor, name: str) -> None:
    """Give an op's output a name, if it is free and the tensor has no gradient's name yet."""
    value, graph = t._value, t._value.graph
    new_id = f"{graph.id}/{name}"
    if value.kind != "op" or value.name.startswith("Gradient___") or new_id in graph.values:
        return
    del graph.values[value.id]
    value.id = new_id
    graph.values[new_id] = value


def _check_unmodified(record: records.Graph) -> None:
    for op in record.ops:
        if opdef(op.kind).writes is not None or op.attrs.get("modified"):
            raise popart_exception(
                f"Cannot differentiate graph {record.id}: it contains a modifying op: {op.where()}"
            )


def _called_otherwise(record: records.Graph) -> bool:
    """Whether an op other than a call runs the graph."""
    ops: Iterator[Op] = (op for graph in record.program.graphs.values() for op in graph.ops)
    return any(record in op.graphs and op.kind != "Call" for op in ops)


def _new_graph(forward: records.Graph) -> Graph:
    program: Any = forward.program
    name, number = f"{forward.id}_bwd", 0
    while name in program.graphs:
        number += 1
        name = f"{forward.id}_bwd_{number}"
    program.graphs[name] = records.Graph(name, program)
    return program.frontend._graph(program.graphs[name])


def stitch(record: records.Graph, needed: Iterable[Value]) -> None:
    """Make values of a graph outputs of it, and of every call of it."""
    program = record.program
    outside = {*record.inputs, *record.outputs}
    inner = [value for value in needed if value not in outside]
    record.outputs += inner
    ops = (op for graph in program.graphs.values() for op in graph.ops)
    for op in [op for op in ops if op.kind == "Call" and op.graphs[0] is record]:
        scope = f"{op.graph.id}/" if op.graph.id else ""
        for value in inner:
            new_id = f"{scope}autodiff_output__t{next(program.tensor_ids)}"
            out = Value(new_id, value.spec, op.graph, "op", op)
            out.ipu, out.tile_set = op.ipu, op.tile_set
            op.graph.values[new_id] = out
            op.outputs.append(out)
