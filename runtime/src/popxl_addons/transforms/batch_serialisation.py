"""Graphs run in a loop over micro-batches that are loaded and stored. Mostly signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import popxl
from popxl import ReplicaGrouping
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.remote import create_remote_buffer

__all__ = [
    "RemoteHandle",
    "batch_serial_buffer",
    "batch_serialise",
    "batch_serialise_fwd_and_grad",
]

IoMode = Literal["compute", "io", "io_overlapped"]


@dataclass
class RemoteHandle:
    """Where micro-batches of a tensor lie.

    Attributes:
        buffer: entry row*steps + i holds micro-batch i of a row.
        row_offset: added to the row index; None for row 0; or a function of the row index.
        shard_group: replicas that the tensor is cut over.
    """

    buffer: popxl.RemoteBuffer
    row_offset: int | Callable[[popxl.Tensor], popxl.Tensor] | None = 0
    shard_group: popxl.ReplicaGrouping | None = None


RemoteBufferWithOffset = tuple[popxl.RemoteBuffer, int | None]
Handles = dict[popxl.Tensor, Any]


@contextmanager
def null_context() -> Iterator[None]:
    """A context manager without effect."""
    yield


@dataclass
class BatchSerialResult:
    """A serialised graph.

    Attributes:
        graph: the graph.
        stored_buffers: tensor of the original graph to where its micro-batches lie.
    """

    graph: GraphWithNamedArgs
    stored_buffers: dict[popxl.Tensor, RemoteHandle]
    _remap_dict: dict[popxl.Tensor, popxl.Tensor]

    def remap_tensors(self, ts: NamedTensors) -> NamedTensors:
        """Passed-through tensors of the original graph as those of the new one."""
        return ts.remap(self._remap_dict)


def batch_serial_buffer(
    t: popxl.Tensor, steps: int = 1, rows: int = 1, shard_group: ReplicaGrouping | None = None
) -> popxl.RemoteBuffer:
    """A buffer for `steps` micro-batches of `rows` rows of a tensor, cut over a group if given."""
    shard_over = 1 if shard_group is None else shard_group.group_size
    return create_remote_buffer(t, steps * rows, shard_group, shard_over)


def batch_serialise_non_overlapped(
    graph: GraphWithNamedArgs,
    steps: int,
    load_handles: Handles,
    store_streams: dict[popxl.Tensor, popxl.DeviceToHostStream],
    store_buffers: dict[popxl.Tensor, RemoteHandle],
    seed_input: popxl.Tensor | None = None,
    rows: int = 1,
    use_io_tiles: bool = False,
) -> BatchSerialResult:
    """`batch_serialise` without overlap. Not implemented yet."""
    raise NotImplementedError("popxl_addons.batch_serialise_non_overlapped: not implemented yet")


def batch_serialise_overlapped(
    graph: GraphWithNamedArgs,
    steps: int,
    load_handles: Handles,
    store_streams: dict[popxl.Tensor, popxl.DeviceToHostStream],
    store_buffers: dict[popxl.Tensor, RemoteHandle],
    seed_input: popxl.Tensor | None = None,
    rows: int = 1,
) -> BatchSerialResult:
    """`batch_serialise` with transfers beside compute. Not implemented yet."""
    raise NotImplementedError("popxl_addons.batch_serialise_overlapped: not implemented yet")


def batch_serialise(
    graph: GraphWithNamedArgs,
    steps: int,
    load_handles: Handles,
    store_streams: dict[popxl.Tensor, popxl.DeviceToHostStream],
    store_buffers: Handles,
    seed_input: popxl.Tensor | None = None,
    rows: int = 1,
    io_mode: IoMode = "io",
) -> BatchSerialResult:
    """A graph that runs `graph` for each micro-batch. Not implemented yet."""
    raise NotImplementedError("popxl_addons.batch_serialise is not implemented yet")


def batch_serialise_fwd_and_grad(
    forward_graph: GraphWithNamedArgs,
    gradient_graph: GraphWithNamedArgs,
    named_inputs_for_grad_graph: NamedTensors,
    steps: int,
    load_handles: Handles,
    store_streams: dict[popxl.Tensor, popxl.DeviceToHostStream],
    store_buffers: Handles,
    seed_input: popxl.Tensor | None = None,
    rows: int = 1,
    io_mode: IoMode = "io",
) -> tuple[BatchSerialResult, BatchSerialResult]:
    """`batch_serialise` of a graph and its gradient. Not implemented yet."""
    raise NotImplementedError("popxl_addons.batch_serialise_fwd_and_grad is not implemented yet")
