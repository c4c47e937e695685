"""Graphs run in a loop over micro-batches that are loaded and stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import popxl
from popxl import ReplicaGrouping, ops
from popxl.transforms import ExpectedConnectionType
from popxl_addons._moving import input_for
from popxl_addons.graph import GraphWithNamedArgs
from popxl_addons.named_tensors import NamedTensors
from popxl_addons.remote import create_remote_buffer
from popxl_addons.rts import gather_replica_sharded_tensor
from popxl_addons.utils import suffix_graph_name

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

    @property
    def _shards(self) -> bool:
        return self.shard_group is not None and self.shard_group.group_size > 1

    def _raise_entries(self, steps: int, rows: int) -> None:
        if isinstance(self.row_offset, int):
            rows += self.row_offset
        elif self.row_offset is None:
            rows = 1
        self.buffer.entries = max(self.buffer.entries, rows * steps)

    def _entry(self, row: popxl.Tensor, step: popxl.Tensor, steps: int) -> popxl.Tensor:
        """int32 scalar: the entry of a micro-batch."""
        if self.row_offset is None:
            return step
        if callable(self.row_offset):
            row = self.row_offset(row)
        elif self.row_offset:
            row = row + self.row_offset
        return row * steps + step


RemoteBufferWithOffset = tuple[popxl.RemoteBuffer, int | None]
Handles = dict[popxl.Tensor, Any]
_Tensors = dict[popxl.Tensor, popxl.Tensor]


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
    _remap_dict: _Tensors

    def remap_tensors(self, ts: NamedTensors) -> NamedTensors:
        """Passed-through tensors of the original graph as those of the new one."""
        return ts.remap(self._remap_dict)


def batch_serial_buffer(
    t: popxl.Tensor, steps: int = 1, rows: int = 1, shard_group: ReplicaGrouping | None = None
) -> popxl.RemoteBuffer:
    """A buffer for `steps` micro-batches of `rows` rows of a tensor, cut over a group if given."""
    shard_over = 1 if shard_group is None else shard_group.group_size
    return create_remote_buffer(t, steps * rows, shard_group, shard_over)


class _Serialiser:
    """The graph of a loop over micro-batches, and the graph of one of its steps."""

    def __init__(
        self,
        graph: GraphWithNamedArgs,
        steps: int,
        loads: Handles,
        store_streams: Handles,
        store_buffers: Handles,
        seed_input: popxl.Tensor | None,
        use_io_tiles: bool,
    ) -> None:
        inner = graph.graph
        self.graph, self.steps, self.use_io_tiles = graph, steps, use_io_tiles
        self.loads = self._of(inner, loads)
        self.streams = self._of(inner, store_streams)
        self.buffers = self._of(inner, store_buffers)
        self.seed_input = seed_input
        self.passed = [t for t in inner.inputs if t not in self.loads and t != seed_input]
        # What is loaded from remote memory is there already.
        self.stored = {t: h for t, h in self.buffers.items() if not self._is_remote(t)}

    @staticmethod
    def _of(graph: popxl.Graph, handles: Handles) -> Handles:
        found = {t: handle for t, handle in handles.items() if t in graph}
        for tensor in found:
            if tensor not in (*graph.inputs, *graph.outputs):
                raise ValueError(f"{tensor} is neither an input nor an output of graph {graph.id}")
        return found

    def _is_remote(self, tensor: popxl.Tensor) -> bool:
        return isinstance(self.loads.get(tensor), RemoteHandle)

    def build(self) -> BatchSerialResult:
        name = suffix_graph_name(self.graph.graph.name, "batch_serialised")
        outer = popxl.gcg().ir.create_empty_graph(name)
        step = popxl.gcg().ir.create_empty_graph(f"{name}_step")
        with outer, popxl.in_sequence():
            state: list[popxl.Tensor] = [popxl.constant(0, popxl.int32, "step")]
            row = popxl.graph_input((), popxl.int32, "row_index")
            if self.seed_input is not None:
                state.append(popxl.graph_input((2,), popxl.uint32, "seed"))
            remap = self._pass_through()
            self._build_step(step)
            ops.repeat(step, self.steps, *state, row, *remap.values())
        found = {t: self.loads[t] if self._is_remote(t) else h for t, h in self.buffers.items()}
        args = self.graph.args.remap(remap)
        return BatchSerialResult(GraphWithNamedArgs(outer, args), found, remap)

    def _pass_through(self) -> _Tensors:
        by_ref = self.graph.graph._by_ref_inputs
        return {t: input_for(t, t in by_ref) for t in self.passed}

    def _build_step(self, graph: popxl.Graph) -> None:
        """(step, [seed], row, passed through) -> (next step, [next seed])."""
        with graph, popxl.in_sequence():
            step = popxl.graph_input((), popxl.int32, "step")
            given, state = {}, []
            if self.seed_input is not None:
                seed = popxl.graph_input((2,), popxl.uint32, "seed")
                given[self.seed_input], next_seed = ops.split_random_seed(seed)
                state.append(next_seed)
            row = popxl.graph_input((), popxl.int32, "row_index")
            given |= self._pass_through()
            given |= self._load(row, step)
            info = ops.call_with_info(self.graph.graph, inputs_dict=given)
            self._store({**given, **self._outputs(info)}, row, step)
            for tensor in (step + 1, *state):
                popxl.graph_output(tensor)

    def _outputs(self, info: ops.CallSiteInfo) -> _Tensors:
        outputs = zip(self.graph.graph.outputs, info.outputs, strict=True)
        return {t: out for t, out in outputs if t not in self.graph.graph.inputs}

    def _exchange(self) -> AbstractContextManager[Any]:
        return popxl.io_tiles() if self.use_io_tiles else null_context()

    def _to_other_tiles(self, tensor: popxl.Tensor) -> popxl.Tensor:
        return ops.io_tile_copy(tensor) if self.use_io_tiles else tensor

    def _load(self, row: popxl.Tensor, step: popxl.Tensor) -> _Tensors:
        loaded = {}
        with self._exchange():
            remote = [t for t in self.loads if self._is_remote(t)]
            entries = {t: self.loads[t]._entry(row, step, self.steps) for t in remote}
            with popxl.in_sequence(False):
                for t, handle in self.loads.items():
                    if t in entries:
                        loaded[t] = ops.remote_load(handle.buffer, entries[t], t.name)
                    else:
                        loaded[t] = ops.host_load(handle, t.name)
        loaded = {t: self._to_other_tiles(value) for t, value in loaded.items()}
        for t in remote:
            if self.loads[t]._shards:
                group = self.loads[t].shard_group
                loaded[t] = gather_replica_sharded_tensor(loaded[t], replica_group=group)
        return loaded

    def _store(self, values: _Tensors, row: popxl.Tensor, step: popxl.Tensor) -> None:
        shards = {}
        for t, handle in self.stored.items():
            value = values[t]
            if handle._shards and not value.meta_shape:
                value = ops.collectives.replica_sharded_slice(value, handle.shard_group)
            shards[t] = self._to_other_tiles(value)
        sent = {t: self._to_other_tiles(values[t]) for t in self.streams}
        with self._exchange():
            entries = {t: h._entry(row, step, self.steps) for t, h in self.stored.items()}
            with popxl.in_sequence(False):
                for t, stream in self.streams.items():
                    ops.host_store(stream, sent[t])
                for t, handle in self.stored.items():
                    ops.remote_store(handle.buffer, entries[t], shards[t])


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
    """`batch_serialise` in which each step loads, computes and stores.

    Args:
        use_io_tiles: transfer on IO tiles.
    """
    for handle in (*load_handles.values(), *store_buffers.values()):
        if isinstance(handle, RemoteHandle):
            handle._raise_entries(steps, rows)
    return _Serialiser(
        graph, steps, load_handles, store_streams, store_buffers, seed_input, use_io_tiles
    ).build()


def batch_serialise_overlapped(
    graph: GraphWithNamedArgs,
    steps: int,
    load_handles: Handles,
    store_streams: dict[popxl.Tensor, popxl.DeviceToHostStream],
    store_buffers: dict[popxl.Tensor, RemoteHandle],
    seed_input: popxl.Tensor | None = None,
    rows: int = 1,
) -> BatchSerialResult:
    """`batch_serialise` with the transfers of other steps beside the compute of one.

    Results do not depend on it, and nothing runs beside compute here, so the loop is that of
    `batch_serialise_non_overlapped`.
    """
    return batch_serialise_non_overlapped(
        graph, steps, load_handles, store_streams, store_buffers, seed_input, rows, True
    )


def _to_handles(handles: Handles) -> None:
    """Make tuples (buffer, row offset[, group]) handles, in the caller's dict."""
    for tensor, handle in handles.items():
        if isinstance(handle, tuple):
            handles[tensor] = RemoteHandle(*handle)


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
    """A graph that runs `graph` for each micro-batch of a row.

    Args:
        graph: what runs for a micro-batch.
        steps: micro-batches.
        load_handles: input of `graph` to a stream, or to where its micro-batches lie. Tuples of a
            handle's fields are replaced by handles in the dict.
        store_streams: output or input of `graph` to a stream.
        store_buffers: output or input of `graph` to where its micro-batches are kept; what is
            loaded from remote memory is not stored again. Tuples as in `load_handles`. Tensors of
            other graphs are ignored in all three.
        seed_input: input that gets a new random seed, (2,) uint32, in each step.
        rows: how many rows the buffers hold at least.
        io_mode: "compute", "io" or "io_overlapped": on which tiles an IPU transfers, and whether
            beside compute. Results do not depend on it.

    Returns:
        The result, whose graph has no outputs. Its inputs: the row (int32), a seed if there is a
        seed input, then all other inputs of `graph`, in order, which each step gets.

    Raises:
        KeyError: a named input of `graph` is loaded.
        ValueError: fewer than one row, another mode, or an IO mode without IO tiles.
    """
    if io_mode not in get_args(IoMode):
        raise ValueError(f"batch_serialise: io_mode is one of {get_args(IoMode)}, got {io_mode!r}")
    if rows < 1:
        raise ValueError(f"batch_serialise: rows must be at least 1, got {rows}")
    options = popxl.gcg().ir._pb_ir.getSessionOptions()
    if io_mode != "compute" and options.numIOTiles < 1:
        raise ValueError(
            f"batch_serialise: io_mode {io_mode!r} needs the session option numIOTiles >= 1,"
            f" got {options.numIOTiles}"
        )
    _to_handles(load_handles)
    _to_handles(store_buffers)
    if io_mode == "io_overlapped" and steps < 2:
        logging.warning("batch_serialise: %d steps do not overlap; io_mode is 'io'", steps)
        io_mode = "io"
    given = graph, steps, load_handles, store_streams, store_buffers, seed_input, rows
    if io_mode == "io_overlapped":
        return batch_serialise_overlapped(*given)
    return batch_serialise_non_overlapped(*given, use_io_tiles=io_mode == "io")


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
    """`batch_serialise` of a graph and of its gradient, with activations kept in between.

    Args:
        forward_graph: what runs for a micro-batch.
        gradient_graph: its gradient. Activations among the named inputs become named inputs of it.
        named_inputs_for_grad_graph: inputs of `forward_graph` to pass to the gradient by name,
            instead of keeping them for each micro-batch; usually `forward_graph.args`.
        load_handles: also holds the upstream gradients, by inputs of `gradient_graph`.
        store_buffers: a replica grouping cuts an activation over it.

    Other arguments are those of `batch_serialise`.

    Raises:
        ValueError: an upstream gradient has no load handle; and those of `batch_serialise`.
    """
    info = gradient_graph.grad_graph_info
    activations = {
        expected.fwd_tensor: tensor
        for expected, tensor in zip(info.expected_inputs, info.graph.inputs, strict=False)
        if expected.connection_type is ExpectedConnectionType.Fwd
    }
    names = {t: name for name, t in named_inputs_for_grad_graph.to_dict().items()}
    _to_handles(load_handles)
    _to_handles(store_buffers)
    kept = [t for t in activations if t not in names]
    buffers = _activation_buffers(kept, load_handles, store_buffers, steps, rows)
    forward = batch_serialise(
        forward_graph, steps, load_handles, store_streams, buffers, seed_input, rows, io_mode
    )
    args: dict[Any, Any] = {names[t]: inner for t, inner in activations.items() if t in names}
    args.update(gradient_graph.args.to_dict())
    gradient_graph.args = NamedTensors.from_dict(args)
    loads = dict(load_handles)
    loads |= {activations[t]: forward.stored_buffers[t] for t in kept}
    _check_upstream(info, loads)
    gradient = batch_serialise(
        gradient_graph, steps, loads, store_streams, buffers, None, rows, io_mode
    )
    gradient.graph.grad_graph_info = info
    return forward, gradient


def _activation_buffers(
    kept: Iterable[popxl.Tensor], loads: Handles, stores: Handles, steps: int, rows: int
) -> Handles:
    """`stores` with a place for each activation that the gradient loads."""
    buffers = {t: h for t, h in stores.items() if not isinstance(h, ReplicaGrouping)}
    for tensor in kept:
        if tensor in buffers:
            continue
        if isinstance(loads.get(tensor), RemoteHandle):
            buffers[tensor] = loads[tensor]
            continue
        group = stores.get(tensor)
        buffer = batch_serial_buffer(tensor, steps, rows, group)
        buffers[tensor] = RemoteHandle(buffer, 0, group)
    return buffers


def _check_upstream(info: Any, loads: Handles) -> None:
    for expected, tensor in zip(info.expected_inputs, info.graph.inputs, strict=False):
        if expected.connection_type is ExpectedConnectionType.FwdGrad and tensor not in loads:
            raise ValueError(
                f"batch_serialise_fwd_and_grad: load_handles has no entry for {tensor}, the"
                f" gradient of {expected.fwd_tensor}"
            )
