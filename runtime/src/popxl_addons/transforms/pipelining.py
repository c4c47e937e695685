"""Pipelines: each stage works on the micro-batch that the stage before had a cycle earlier.

Stage s works on micro-batch m in cycle m + s, one stage after the other within a cycle. A tensor
that one stage makes and another one takes is handed over at the end of a cycle.
"""

# No `from __future__ import annotations`: popxl reads the annotation TensorByRef.

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import popxl
from popart._internal import ir as _ir
from popxl import Tensor, ops
from popxl.ops.call import CallSiteInfo
from popxl.tensor import Constant
from popxl.transforms import GradGraphInfo
from popxl_addons._moving import clone_ops, input_for, replace_ops, sources
from popxl_addons.graph import BoundGraph
from popxl_addons.module import Module

__all__ = ["pipelined_execution"]

_Ops = dict[int, list[_ir.Op]]


def get_op_pipeline_stage(op: _ir.Op, op_dict: _Ops) -> int:
    """The stage whose list holds an op.

    Raises:
        RuntimeError: none does.
    """
    for stage, members in op_dict.items():
        if op in members:
            return stage
    raise RuntimeError(f"{op.debugName()} is in no stage of the pipeline")


class PipelineBoundGraph(BoundGraph):
    """The graph of one stage. Its tensors go by the ids that they had before they were moved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tensors: dict[str, Tensor] = {}
        self._outputs: list[str] = []

    def call(  # type: ignore[override]
        self, *args: Tensor, inputs_dict: Mapping[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Call the graph; `inputs_dict` comes before what is bound."""
        return ops.call(self.graph, *args, inputs_dict={**self.args, **(inputs_dict or {})})

    @property
    def original_output_ids(self) -> tuple[str, ...]:
        """What the outputs were before they were moved."""
        return tuple(self._outputs)

    def add_variable_input(self, tensor: Tensor) -> Tensor:
        """An input for a tensor from outside of the pipeline, by reference; binds it."""
        with self.graph:
            inner = input_for(tensor, by_ref=not isinstance(tensor, Constant))
        self._tensors[tensor.id] = inner
        self.args[inner] = tensor
        return inner

    def add_output_tensor(self, tensor: Tensor, original_id: str) -> None:
        """Make a tensor of the graph an output."""
        with self.graph:
            popxl.graph_output(tensor)
        self._outputs.append(original_id)

    def reconnect_input(self, original_id: str, new: Tensor) -> None:
        """Bind another tensor to an input."""
        self.args[self._tensors[original_id]] = new

    def __contains__(self, value: Any) -> bool:
        return getattr(value, "id", value) in self._tensors


class Pipelining:
    """Turns the ops of a graph into a pipeline, in place.

    Args:
        graph: holds the ops.
        steps: micro-batches.
    """

    def __init__(self, graph: popxl.Graph, steps: int) -> None:
        self.ir, self.graph, self.original_graph = graph.ir, graph, graph
        self.steps = steps
        self.stages: dict[int, PipelineBoundGraph] = {}
        self.external_inputs: dict[str, Tensor] = {}
        self.original_tid_to_graph: dict[str, PipelineBoundGraph] = {}
        # What stands for an original tensor where the current cycle is built.
        self.original_tid_to_cloned_tensor: dict[str, Tensor] = {}
        self._handed_over: dict[str, Tensor] = {}
        self._made: list[tuple[list[str], tuple[Tensor, ...]]] = []
        self._clones: dict[_ir.Op, _ir.Op] = {}

    def apply(self, include_ops: _Ops | None = None) -> None:
        """Build the pipeline.

        Args:
            include_ops: ops by stage (default: each IPU is a stage).

        Raises:
            ValueError: stages are not 0, 1, ..., or there are fewer steps than twice the stages.
        """
        if include_ops is None:
            include_ops = {}
            for op in self.graph._pb_graph.getOpSchedule():
                include_ops.setdefault(op.getVirtualGraphId(), []).append(op)
        count = len(include_ops)
        if sorted(include_ops) != list(range(count)):
            raise ValueError(f"Pipeline stages must be 0, 1, ..., got {sorted(include_ops)}")
        if self.steps < 2 * count:
            raise ValueError(
                f"A pipeline of {count} stages needs at least {2 * count} steps, got {self.steps}"
            )
        self.construct_graphs(include_ops)
        before = len(self.graph._pb_graph.getOps())
        self.build()
        if count:
            replace_ops(self.graph._pb_graph.getOps()[before], self._clones)

    def required_for_host_load(self, op: _ir.Op) -> bool:
        """Whether an op loads from the host, or makes the tensor for it."""
        if op.opType() == "HostLoad":
            return True
        users = [user for tensor in op.getOutputTensors() for user in tensor.consumers.getOps()]
        return op.opType() == "Init" and {user.opType() for user in users} == {"HostLoad"}

    def construct_graphs(self, include_ops: _Ops) -> None:
        """Move the ops of each stage to a graph of its own."""
        taken = {stage: sources(members) for stage, members in include_ops.items()}
        made = {t.id for m in include_ops.values() for op in m for t in op.getOutputTensors()}
        for stage in sorted(include_ops):
            graph = PipelineBoundGraph(self.ir.create_empty_graph(f"pipeline_stage_{stage}"))
            self.stages[stage] = graph
            for tid, tensor in taken[stage].items():
                if tid not in made:
                    graph.add_variable_input(tensor)
                    self.external_inputs[tid] = tensor
                    continue
                with graph.graph:
                    graph._tensors[tid] = input_for(tensor, by_ref=False)
                self._handed_over[tid] = tensor
        for stage, members in include_ops.items():
            for op in members:
                self.move_op_into_graph(self.stages[stage], op)
        for tid in self._handed_over:
            maker = self.original_tid_to_graph[tid]
            maker.add_output_tensor(maker._tensors[tid], tid)

    def move_op_into_graph(self, graph: PipelineBoundGraph, op: _ir.Op) -> None:
        """Clone one op; the graph has to hold what stands for its inputs. `apply` erases it."""
        self._clones |= clone_ops([op], graph.graph, graph._tensors)
        made = [tensor.id for tensor in op.getOutputTensors()]
        self.original_tid_to_graph.update(dict.fromkeys(made, graph))

    def build(self) -> None:
        """Ramp-up, main loop and ramp-down."""
        last = len(self.stages) - 1
        with self.graph, popxl.in_sequence():
            first = {
                tid: ops.init(t.shape, t.dtype, meta_shape=t.meta_shape)
                for tid, t in self._handed_over.items()
            }
            self.original_tid_to_cloned_tensor = {**first, **self.external_inputs}
            for end in range(last):
                self.cycle(0, end)
            self.main_cycle()
            for start in range(1, last + 1):
                self.cycle(start, last)

    def cycle(self, start: int, end: int) -> None:
        """One cycle of the stages `start` to `end`, which is included."""
        self.compute(start, end)
        self.copy()

    def remap_tensors(self, original_ids: Iterable[str], new_outputs: Iterable[Tensor]) -> None:
        """Let tensors stand for original ones from here on."""
        self.original_tid_to_cloned_tensor.update(zip(original_ids, new_outputs, strict=True))

    def move_copied_tensor_out_of_nested_repeat_graph(
        self, op_in_index: int, original: str, repeat_op: _ir.Op
    ) -> None:
        """Not applicable off an IPU: there, a copy between IPUs must not lie in a nested loop;
        here, a loop hands on what it made like every op."""

    def repeat_graph(self) -> popxl.Graph:
        """A graph of one cycle of all stages: (handed over, external) -> (handed over)."""
        outside = self.original_tid_to_cloned_tensor
        graph = self.ir.create_empty_graph("pipeline_main_cycle")
        with graph, popxl.in_sequence():
            self.original_tid_to_cloned_tensor = {
                tid: input_for(t, tid in self.external_inputs and not isinstance(t, Constant))
                for tid, t in outside.items()
            }
            self.cycle(0, len(self.stages) - 1)
            for tid in self._handed_over:
                popxl.graph_output(self.original_tid_to_cloned_tensor[tid])
        self.original_tid_to_cloned_tensor = outside
        return graph

    def main_cycle(self) -> None:
        """The cycles in which all stages work, as a loop."""
        count = self.steps - len(self.stages) + 1
        current = self.original_tid_to_cloned_tensor
        found = ops.repeat(self.repeat_graph(), count, *current.values())
        self.remap_tensors(self._handed_over, found)

    def load(self, start: int, end: int) -> None:
        """Not applicable off an IPU: a stage loads for itself, nothing runs beside compute."""

    def compute(self, start: int, end: int) -> None:
        """Call the stages `start` to `end` on what was handed over in the cycle before."""
        for stage in range(start, end + 1):
            graph = self.stages[stage]
            for tid, inner in graph._tensors.items():
                if inner in graph.graph.inputs:
                    graph.reconnect_input(tid, self.original_tid_to_cloned_tensor[tid])
            self._made.append((graph._outputs, graph.call()))

    def store(self, start: int, end: int) -> None:
        """Not applicable off an IPU: a stage stores for itself, nothing runs beside compute."""

    def copy(self) -> None:
        """Hand over what the stages of this cycle made."""
        for original_ids, outputs in self._made:
            self.remap_tensors(original_ids, outputs)
        self._made.clear()


class StageContext:
    """Which ops belong to which stage of a pipeline."""

    def __init__(self) -> None:
        self.ops: _Ops = {}
        self._stage: int | None = None

    def hook(self, op: _ir.Op) -> None:
        """Note the stage of a new op.

        Raises:
            RuntimeError: no stage is active.
        """
        if self._stage is None:
            raise RuntimeError(f"{op.debugName()} was created outside of the pipeline's stages")
        self.ops.setdefault(self._stage, []).append(op)

    @contextmanager
    def stage(self, i: int) -> Iterator[None]:
        """Ops of the block belong to stage `i`."""
        before, self._stage = self._stage, i
        try:
            yield
        finally:
            self._stage = before

    def stash_and_restore_tensor(self, t: Tensor, from_stage: int | None = None) -> Tensor:
        """The value that a tensor had for the micro-batch at hand.

        Args:
            t: a tensor of an earlier stage.
            from_stage: the stage in which to keep it (default: that of the op that made it).

        Returns:
            A tensor of the current stage of t's shape, (1,) for a scalar.

        Raises:
            RuntimeError: there is no current stage, or no op of the pipeline made the tensor.
            TypeError: it is of the current stage.
        """
        if self._stage is None:
            raise RuntimeError("stash_and_restore_tensor: no stage of the pipeline is active")
        if from_stage is None:
            if not t._pb_tensor.hasProducer():
                raise RuntimeError(f"{t} was made by no op: specify from_stage")
            from_stage = get_op_pipeline_stage(t._pb_tensor.getProducer(), self.ops)
        size = self._stage - from_stage + 1
        with self.stage(from_stage):
            factories, stash = Stash().create_graph(t, size)
            variables = factories.init(f"{t.name}_stash")
            stash.bind(variables).call(t)
        factories, restore = Restore().create_graph(variables.stash)
        (restored,) = restore.bind(factories.init(f"{t.name}_restore")).call(variables.stash)
        return restored

    def stash_and_restore_activations(
        self, call_info: CallSiteInfo, grad_info: GradGraphInfo
    ) -> dict[Tensor, Tensor]:
        """As `grad_info.inputs_dict(call_info)`, with the values of the micro-batch at hand for
        what earlier stages made."""
        found: dict[Tensor, Tensor] = {}
        restored: dict[Tensor, Tensor] = {}
        for grad_input, t in grad_info.inputs_dict(call_info).items():
            if t not in restored:
                stage = self._stage_of(t)
                here = stage is None or stage == self._stage
                restored[t] = t if here else self.stash_and_restore_tensor(t, stage)
            found[grad_input] = restored[t]
        return found

    def _stage_of(self, t: Tensor) -> int | None:
        """The stage whose op made a tensor; None if it comes from outside of the pipeline."""
        if not t._pb_tensor.hasProducer():
            return None
        try:
            return get_op_pipeline_stage(t._pb_tensor.getProducer(), self.ops)
        except RuntimeError:
            return None


@contextmanager
def pipelined_execution(steps: int) -> Iterator[StageContext]:
    """Run the ops of the block as a pipeline, each `steps` times.

    Every op of the block has to be made in a stage. Without variables that one stage writes and
    another one reads, the results are those of running the stages one after the other for each
    micro-batch.

    Args:
        steps: micro-batches, at least twice the number of stages.

    Yields:
        What marks stages (`stage`) and keeps tensors for later ones (`stash_and_restore_tensor`).

    Raises:
        RuntimeError: an op is made outside of the stages.
        ValueError: on leaving: stages are not 0, 1, ..., or there are too few steps.
    """
    graph, context = popxl.gcg(), StageContext()
    handle = graph.register_op_created_hook(context.hook)
    try:
        yield context
    finally:
        graph.remove_op_created_hook(handle)
    Pipelining(graph, steps).apply(context.ops)


class Stash(Module):
    """Keeps the last values of a tensor, in turn."""

    @popxl.in_sequence()
    def build(self, t: Tensor, stash_size: int) -> None:
        """Keep a value.

        Args:
            t: any shape.
            stash_size: number of slots.

        Raises:
            TypeError: fewer than two slots.
        """
        if stash_size < 2:
            raise TypeError(f"A stash needs two slots or more, got {stash_size}: {t}")
        slots = (stash_size, *(t.shape or (1,)))
        stash = self.add_variable_input("stash", _zeros(slots, t.dtype), by_ref=True)
        counter = self.add_variable_input("counter", _zeros((1,), popxl.uint32), by_ref=True)
        ops.dynamic_update_(stash, counter, t.reshape((1, *slots[1:])), [0], [1], True)
        ops.increment_mod_(counter, 1, stash_size)


class Restore(Module):
    """Reads the values that a stash keeps, in turn."""

    @popxl.in_sequence()
    def build(self, stash: popxl.TensorByRef) -> Tensor:  # type: ignore[valid-type]
        """The next value: the shape of a slot."""
        counter = self.add_variable_input("counter", _zeros((1,), popxl.uint32), by_ref=True)
        slots: Tensor = stash
        value = ops.dynamic_slice(slots, counter, [0], [1], True)
        ops.increment_mod_(counter, 1, slots.shape[0])
        return value.reshape(slots.shape[1:])


def _zeros(shape: tuple[int, ...], dtype: popxl.dtype) -> popxl.tensor.HostTensor:
    return lambda: np.zeros(shape, dtype.as_numpy())  # type: ignore[return-value]
