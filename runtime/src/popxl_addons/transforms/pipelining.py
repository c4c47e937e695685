"""Pipelines over IPUs. Signatures only."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from popxl.errors import _not_implemented
from popxl_addons.graph import BoundGraph
from popxl_addons.module import Module

__all__ = ["pipelined_execution"]


def pipelined_execution(steps: int) -> AbstractContextManager[Any]:
    """Run the ops of the block as a pipeline. Not implemented yet."""
    _not_implemented("popxl_addons.pipelined_execution")


def get_op_pipeline_stage(op: Any, op_dict: dict[int, list[Any]]) -> int:
    """Stage of an op. Not implemented yet."""
    _not_implemented("popxl_addons.transforms.pipelining.get_op_pipeline_stage")


class PipelineBoundGraph(BoundGraph):
    """A graph of one stage, with its inputs and outputs. Not implemented yet."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.PipelineBoundGraph.__init__")

    def call(self, *args: Any, inputs_dict: Any = None) -> Any:  # type: ignore[override]
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.PipelineBoundGraph.call")

    @property
    def original_output_ids(self) -> Any:
        """Not implemented yet."""
        _not_implemented(
            "popxl_addons.transforms.pipelining.PipelineBoundGraph.original_output_ids"
        )

    def add_variable_input(self, tensor: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.PipelineBoundGraph.add_variable_input")

    def add_output_tensor(self, tensor: Any, original_id: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.PipelineBoundGraph.add_output_tensor")

    def reconnect_input(self, original_id: Any, new: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.PipelineBoundGraph.reconnect_input")

    def __contains__(self, value: Any) -> bool:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.PipelineBoundGraph.__contains__")


class Pipelining:
    """Turns the ops of a graph into a pipeline. Not implemented yet."""

    def __init__(self, graph: Any, steps: Any) -> None:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.__init__")

    def apply(self, include_ops: Any = None) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.apply")

    def required_for_host_load(self, op: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.required_for_host_load")

    def construct_graphs(self, include_ops: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.construct_graphs")

    def move_op_into_graph(self, graph: Any, op: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.move_op_into_graph")

    def build(self) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.build")

    def cycle(self, start: Any, end: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.cycle")

    def remap_tensors(self, original_ids: Any, new_outputs: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.remap_tensors")

    def move_copied_tensor_out_of_nested_repeat_graph(
        self, op_in_index: Any, original: Any, repeat_op: Any
    ) -> Any:
        """Not implemented yet."""
        _not_implemented(
            "popxl_addons.transforms.pipelining.Pipelining.move_copied_tensor_out_of_nested_repeat_graph"
        )

    def repeat_graph(self) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.repeat_graph")

    def main_cycle(self) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.main_cycle")

    def load(self, start: Any, end: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.load")

    def compute(self, start: Any, end: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.compute")

    def store(self, start: Any, end: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.store")

    def copy(self) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Pipelining.copy")


class StageContext:
    """The stage that ops are being made for. Not implemented yet."""

    def __init__(self) -> None:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.StageContext.__init__")

    def hook(self, op: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.StageContext.hook")

    def stage(self, i: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.StageContext.stage")

    def stash_and_restore_tensor(self, t: Any, from_stage: Any = None) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.StageContext.stash_and_restore_tensor")

    def stash_and_restore_activations(self, call_info: Any, grad_info: Any) -> Any:
        """Not implemented yet."""
        _not_implemented(
            "popxl_addons.transforms.pipelining.StageContext.stash_and_restore_activations"
        )


class Stash(Module):
    """Keeps the values of one tensor for later stages. Not implemented yet."""

    def build(self, t: Any, stash_size: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Stash.build")


class Restore(Module):
    """Reads back what a stash kept. Not implemented yet."""

    def build(self, stash: Any) -> Any:
        """Not implemented yet."""
        _not_implemented("popxl_addons.transforms.pipelining.Restore.build")
