"""Choice between two sub-graphs at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from popxl.context import get_current_context
from popxl.graph import Graph
from popxl.ops.call import CallSiteInfo, _bind_inputs
from popxl.ops.utils import _create_op
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define

define(OpDef("If", lambda ins, attrs: [], effect=True))


class ConditionalSiteInfo(CallSiteInfo):
    """A conditional and how its tensors map to those of both branches.

    Op inputs are the condition, then the then-branch's inputs, then the else-branch's.
    """

    @property
    def _num_then(self) -> int:
        return self._op_record.attrs["num_then"]

    @property
    def called_graph(self) -> tuple[Graph, Graph]:  # type: ignore[override]
        """(then graph, else graph)."""
        then, other = (g.program.frontend._graph(g) for g in self._op_record.graphs)
        return then, other

    def is_parent_index_in_then_branch(self, idx: int) -> bool:
        """Whether op input ``idx`` feeds the then-branch; IndexError for the condition."""
        if not 1 <= idx < len(self._op_record.inputs):
            raise IndexError(f"Op input {idx} feeds no branch.")
        return idx <= self._num_then

    def graph_to_parent_input_index(self, idx: int, then_branch: bool = True) -> int:
        """Op input index of a branch's input ``idx``."""
        graph = self.called_graph[0 if then_branch else 1]
        if not 0 <= idx < len(graph.inputs):
            raise IndexError(f"Graph {graph.id} has no input {idx}.")
        return 1 + idx + (0 if then_branch else self._num_then)

    def parent_to_graph_input_index(self, idx: int) -> int:
        """Input index in whichever branch op input ``idx`` belongs to."""
        then = self.is_parent_index_in_then_branch(idx)
        return idx - 1 - (0 if then else self._num_then)

    def graph_to_parent_output_index(self, idx: int, then_branch: bool = True) -> int:
        """Op output index of a branch's output ``idx``; IndexError when out of range."""
        return self._checked_output(idx)

    def parent_to_graph_output_index(self, idx: int, then_branch: bool = True) -> int:
        """A branch's output index of op output ``idx``; IndexError when out of range."""
        return self._checked_output(idx)

    def _checked_output(self, idx: int) -> int:
        if not 0 <= idx < len(self._op_record.outputs):
            raise IndexError(f"The conditional has no output {idx}.")
        return idx

    def graph_to_parent(self, graph_tensor: Tensor) -> Tensor:
        """The caller's tensor for an input or output of either branch, then-branch first."""
        for then, graph in zip((True, False), self.called_graph, strict=True):
            if graph_tensor in graph.inputs:
                index = graph.inputs.index(graph_tensor)
                return self.parent_input(self.graph_to_parent_input_index(index, then))
            if graph_tensor in graph.outputs:
                return self.parent_output(graph.outputs.index(graph_tensor))
        raise ValueError(f"{graph_tensor} is not an input or output of the called graphs.")

    def parent_to_graph(self, parent_tensor: Tensor) -> Tensor:
        """The (first) branch input that ``parent_tensor`` feeds."""
        for index, value in enumerate(self._op_record.inputs[1:], start=1):
            if value is parent_tensor._value:
                then = self.is_parent_index_in_then_branch(index)
                graph = self.called_graph[0 if then else 1]
                return graph.inputs[self.parent_to_graph_input_index(index)]
        raise ValueError(f"{parent_tensor} is not an input of a branch.")

    def set_parent_input_modified(
        self, parent_tensor: Tensor, infer_modified_regions: bool = True
    ) -> None:
        """Not possible for conditionals."""
        raise NotImplementedError("A conditional cannot modify its inputs.")


def conditional(
    cond: Tensor,
    then_branch: Graph,
    else_branch: Graph,
    then_inputs: Iterable[Tensor | Iterable[Tensor]] | None = None,
    else_inputs: Iterable[Tensor | Iterable[Tensor]] | None = None,
    then_inputs_dict: Mapping[Tensor, Tensor] | None = None,
    else_inputs_dict: Mapping[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Outputs of ``then_branch`` where ``cond`` (one bool) is true, else of ``else_branch``.

    Args:
        cond: bool, one element; evaluated when the op runs, on each replica.
        then_branch: a sub-graph, whose outputs give the results their shapes.
        else_branch: a sub-graph with as many outputs.
        then_inputs: inputs of ``then_branch`` by position, as those of :func:`popxl.ops.call`.
        else_inputs: inputs of ``else_branch`` by position.
        then_inputs_dict: inputs of ``then_branch`` by its input tensors.
        else_inputs_dict: inputs of ``else_branch`` by its input tensors.

    Raises:
        ValueError: the branches have different numbers of outputs, or input binding problems.
        NotImplementedError: a branch takes an input by reference.
    """
    return conditional_with_info(
        cond, then_branch, else_branch, then_inputs, else_inputs, then_inputs_dict, else_inputs_dict
    ).outputs


def conditional_with_info(
    cond: Tensor,
    then_branch: Graph,
    else_branch: Graph,
    then_inputs: Iterable[Tensor | Iterable[Tensor]] | None = None,
    else_inputs: Iterable[Tensor | Iterable[Tensor]] | None = None,
    then_inputs_dict: Mapping[Tensor, Tensor] | None = None,
    else_inputs_dict: Mapping[Tensor, Tensor] | None = None,
    check_inputs: bool = True,
) -> ConditionalSiteInfo:
    """As :func:`conditional`, but returns the site. With ``check_inputs=False`` inputs may be
    missing, as long as the branch that is taken does not use them."""
    then_outputs, else_outputs = then_branch._record.outputs, else_branch._record.outputs
    if len(then_outputs) != len(else_outputs):
        raise ValueError(
            f"The branches must have the same number of outputs: {then_branch.id} has"
            f" {len(then_outputs)}, {else_branch.id} has {len(else_outputs)}."
        )
    current = get_current_context().graph
    if cond._value.graph is not current._record:
        raise popart_exception(f"The condition {cond} is not in graph {current.id!r}.")
    then = _bind_inputs(
        then_branch, then_inputs or (), then_inputs_dict, check_inputs, "then_branch"
    )
    other = _bind_inputs(
        else_branch, else_inputs or (), else_inputs_dict, check_inputs, "else_branch"
    )
    _create_op(
        "If",
        [cond, *then, *other],
        {"num_then": len(then)},
        names=[f"{a.name}_or_{b.name}" for a, b in zip(then_outputs, else_outputs, strict=True)],
        graphs=(then_branch._record, else_branch._record),
        specs=[value.spec for value in then_outputs],
    )
    for graph in (then_branch, else_branch):
        if any(t._value.by_ref for t in graph.inputs):
            raise NotImplementedError(f"Branch {graph.id} takes an input by reference.")
    return ConditionalSiteInfo._of(current._record.ops[-1])  # type: ignore[return-value]
