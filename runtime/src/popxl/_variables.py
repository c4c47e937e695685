"""How variables come to be: on the device, in remote memory, or as shards of both."""

from __future__ import annotations

import builtins
import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from popxl import dtypes
from popxl.context import get_current_context
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import HostScalarTensor, Tensor, Variable, _add_value, _is_fp8_array, _ops
from popxl.utils import downcast_np_dtypes, to_numpy
from popxl_torch.ir import records
from popxl_torch.ir.errors import popart_exception

if TYPE_CHECKING:
    from popxl.remote_buffer import RemoteBuffer

_LOG = logging.getLogger("popxl")


def _host_copy(
    data: Any,
    dtype: dtypes.dtype | None,
    downcast: builtins.bool,
    log2_scale: int | None,
    nan_on_overflow: builtins.bool | None,
) -> tuple[np.ndarray, dtypes.dtype]:
    """Data for a variable: memory maps and frozen arrays are adopted, others are copied."""
    if _is_fp8_array(data) and dtype is None:
        raise TypeError("A float8 array needs an explicit dtype.")
    if _is_frozen(data) and not isinstance(data, np.memmap):
        wanted = dtype.as_numpy() if dtype is not None else data.dtype
        if data.dtype == wanted and (dtype is not None or not _would_downcast(data, downcast)):
            return data, dtype or dtypes.dtype.as_dtype(data.dtype)
    keep = isinstance(data, np.memmap)
    array = to_numpy(data, dtype, downcast, not keep, log2_scale, nan_on_overflow)
    return array, dtype or dtypes.dtype.as_dtype(array.dtype)


def _is_frozen(data: Any) -> builtins.bool:
    """Whether ``data`` is an array that nobody can write: it and all that it is a view of."""
    if not isinstance(data, np.ndarray):
        return False
    while isinstance(data, np.ndarray):
        if data.flags.writeable:
            return False
        data = data.base
    return True


def _would_downcast(data: np.ndarray, downcast: builtins.bool) -> builtins.bool:
    return downcast and data.dtype in downcast_np_dtypes


def _check_main_graph(what: str) -> Any:
    graph = get_current_context().graph
    if graph.id != "":
        raise ValueError(
            f"You cannot initialise a {what} tensor within a graph. It must be created in the main"
            " graph of the Ir."
        )
    return graph


_RETRIEVAL = {None: False, "one_per_group": False, "all_replicas": True}


def _new_variable(
    array: np.ndarray,
    dtype: dtypes.dtype,
    name: str | None,
    grouping: ReplicaGrouping | None,
    retrieval_mode: str | None,
) -> Variable:
    graph = _check_main_graph("variable")
    if retrieval_mode not in _RETRIEVAL:
        raise ValueError(
            f"Not a valid retrieval_mode: {retrieval_mode!r}; use 'one_per_group' or 'all_replicas'"
        )
    grouping = graph.ir.replica_grouping() if grouping is None else grouping
    grouping._check_tiling(popart_exception)
    if isinstance(array, np.memmap) and not grouping.is_const:
        _LOG.warning("Variable %s: its data are rearranged, so its np.memmap is copied", name)
        array = np.array(array)
    if isinstance(array, np.memmap) and not array.flags.writeable:
        graph.ir._read_only = True
    shape = tuple(array.shape)
    groups = grouping.num_groups
    if groups > 1:
        if not shape or shape[0] != groups:
            raise popart_exception(
                f"Variable {name or 't'}: its data need a leading axis of {groups}, one per replica"
                f" group, but have shape {shape}"
            )
        shape = shape[1:]
    data = records.VariableData(
        host=array,
        assignment=tuple(grouping.assignment),
        num_groups=groups,
        all_replicas=_RETRIEVAL[retrieval_mode],
        group_size=grouping.group_size,
        memmap=array if isinstance(array, np.memmap) else None,
    )
    tensor = _add_value(graph, name or "t", records.Spec(shape, dtype.name), "variable", data)
    assert isinstance(tensor, Variable)
    return tensor


def variable(
    data: HostScalarTensor,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: builtins.bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: Literal["one_per_group", "all_replicas"] | None = None,
    log2_scale: int = None,  # type: ignore[assignment]
    nan_on_overflow: builtins.bool = None,  # type: ignore[assignment]
) -> Variable:
    """A variable of the main graph.

    Args:
        data: initial value, with a leading axis of one element per replica group if there are
            several groups. Memory maps are used in place; arrays that nobody can write are
            adopted; others are copied.
        dtype: data type; inferred (and downcast to 32 bit) if not given.
        name: debug name.
        downcast: see ``to_numpy``.
        replica_grouping: which replicas share a value; default all.
        retrieval_mode: whether reading returns one value per group or per replica.
        log2_scale: see ``to_numpy``.
        nan_on_overflow: see ``to_numpy``.

    Raises:
        ValueError: the current graph is not the main graph, or a bad retrieval mode.
        popart_exception: the leading axis does not match the grouping.
    """
    array, dtype = _host_copy(data, dtype, downcast, log2_scale, nan_on_overflow)
    return _new_variable(array, dtype, name, replica_grouping, retrieval_mode)


def remote_variable(
    data: HostScalarTensor,
    remote_buffer: RemoteBuffer,
    offset: int = 0,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: builtins.bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: Literal["one_per_group", "all_replicas"] | None = "one_per_group",
    log2_scale: int = None,  # type: ignore[assignment]
    nan_on_overflow: builtins.bool = None,  # type: ignore[assignment]
) -> Variable:
    """A variable that lives in entry ``offset`` of a remote buffer; see :func:`variable`."""
    array, dtype = _host_copy(data, dtype, downcast, log2_scale, nan_on_overflow)
    result = _new_variable(array, dtype, name, replica_grouping, retrieval_mode)
    result._value.data.buffer = remote_buffer._record
    result._value.data.entry = offset
    return result


def remote_replica_sharded_variable(
    data: HostScalarTensor,
    remote_buffer: RemoteBuffer,
    offset: int = 0,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: builtins.bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: Literal["one_per_group", "all_replicas"] | None = "one_per_group",
    log2_scale: int = None,  # type: ignore[assignment]
    nan_on_overflow: builtins.bool = None,  # type: ignore[assignment]
) -> Variable:
    """A remote variable of which each replica's entry holds one shard.

    Raises:
        ValueError: fewer than two replicas, or the buffer's meta shape differs from the data's.
    """
    ir = get_current_context().ir
    if ir.replication_factor <= 1:
        raise ValueError(
            f"The replication factor is {ir.replication_factor}. It must be greater than 1 to"
            " create a replica sharded variable."
        )
    array, dtype = _host_copy(data, dtype, downcast, log2_scale, nan_on_overflow)
    groups = replica_grouping.num_groups if replica_grouping is not None else 1
    full = tuple(array.shape[1:] if groups > 1 else array.shape)
    if remote_buffer.meta_shape == ():
        remote_buffer.meta_shape = full
    elif tuple(remote_buffer.meta_shape) != full:
        raise ValueError(
            f"The remote buffer's meta_shape {remote_buffer.meta_shape} is not the data's {full}."
        )
    result = _new_variable(array, dtype, name, replica_grouping, retrieval_mode)
    store = result._value.data
    store.buffer = remote_buffer._record
    store.entry = offset
    store.shard_over = remote_buffer._shard_over or _num_shards(
        result.nelms, remote_buffer.tensor_shape[0], store.group_size
    )
    store.ranks = _shard_ranks(result.replica_grouping, store.shard_over)
    return result


def _num_shards(nelms: int, length: int, group_size: int) -> int:
    """The largest divisor n of the group size for which ceil(nelms / n) is ``length``."""
    for count in range(group_size, 0, -1):
        if group_size % count == 0 and -(-nelms // count) == length:
            return count
    raise ValueError(
        f"A remote buffer of {length} elements fits no shard of {nelms} over {group_size} replicas."
    )


def _shard_ranks(grouping: ReplicaGrouping, shard_over: int) -> tuple[int, ...]:
    """Shard index of each replica: members of a group hold shards 0..n-1 in turn."""
    seen: dict[int, int] = {}
    ranks = []
    for group in grouping.assignment:
        position = seen.get(group, 0)
        seen[group] = position + 1
        ranks.append(position % shard_over)
    return tuple(ranks)


def replica_sharded_buffer(
    shape: tuple[int, ...],
    dtype: dtypes.dtype,
    replica_grouping: ReplicaGrouping | None = None,
    shard_over: int | None = None,
    entries: int = 1,
) -> RemoteBuffer:
    """A remote buffer of shards: (ceil(elements / shard_over),) with the full meta shape.

    Args:
        shape: host shape, with the group axis if the grouping has several groups.
        dtype: data type.
        replica_grouping: which replicas share a value; default all.
        shard_over: number of shards; default the group size.
        entries: number of entries.

    Raises:
        ValueError: more shards than group members, or a group size that is not a multiple.
    """
    from popxl.remote_buffer import RemoteBuffer

    grouping = replica_grouping or get_current_context().ir.replica_grouping()
    grouping = grouping.const_rg
    size = grouping.group_size
    count = size if shard_over is None else shard_over
    if count > size:
        raise ValueError(f"shard_over {count} must be less than or equal to the replica group size")
    if size % count:
        raise ValueError(f"The replica group size {size} must be divisible by shard_over {count}")
    full = tuple(shape[1:]) if grouping.num_groups > 1 else tuple(shape)
    nelms = int(np.prod(full, dtype=np.int64))
    buffer = RemoteBuffer((-(-nelms // count),), dtype, entries)
    buffer.meta_shape = full
    buffer._shard_over = count
    return buffer


def replica_sharded_variable(
    data: HostScalarTensor,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: builtins.bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    shard_over: int | None = None,
    retrieval_mode: Literal["one_per_group", "all_replicas"] | None = "one_per_group",
    log2_scale: int = None,  # type: ignore[assignment]
    nan_on_overflow: builtins.bool = None,  # type: ignore[assignment]
) -> tuple[Variable, Tensor]:
    """A sharded remote variable and its shard on the device, kept in step with the host."""
    from popxl.context import _execution_context, in_sequence
    from popxl.tensorlocation import ExecutionContext

    array, dtype = _host_copy(data, dtype, downcast, log2_scale, nan_on_overflow)
    buffer = replica_sharded_buffer(array.shape, dtype, replica_grouping, shard_over, 1)
    held = remote_replica_sharded_variable(
        array, buffer, 0, dtype, name, downcast, replica_grouping, retrieval_mode
    )
    ops = _ops()
    with in_sequence(True):
        with _execution_context(ExecutionContext.WeightsFromHostFragment):
            shard = ops.remote_load(buffer, 0, f"{held.name}_rts")
        with _execution_context(ExecutionContext.WeightsToHostFragment):
            ops.remote_store(buffer, 0, shard)
    return held, shard
