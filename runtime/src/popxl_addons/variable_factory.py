"""VariableFactory: what a variable is made from, and the graph input that stands for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import popdist
import popxl
from popxl import ReplicaGrouping, dtypes, ops
from popxl.tensor import HostTensor
from popxl.utils import to_numpy
from popxl_addons._initialisers import LazyInitialiser
from popxl_addons.dot_tree import DotTree
from popxl_addons.named_replica_grouping import NamedReplicaGrouping
from popxl_addons.named_tensors import NamedTensors

if TYPE_CHECKING:
    from popxl_addons.remote import NamedRemoteBuffers

# torch tensors and lists are iterables.
host_scalar_tensor_types = (np.ndarray, np.generic, Iterable, float, int, bool)

DataIter = Callable[[], HostTensor] | Iterable[HostTensor]


class _LookAhead:
    """An iterator whose next element can be seen without being taken."""

    def __init__(self, data: Iterable[Any]) -> None:
        self._iterator = iter(data)
        self._seen: list[Any] = []

    def peek(self) -> Any:
        if not self._seen:
            self._seen.append(next(self._iterator))
        return self._seen[0]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._seen.pop() if self._seen else next(self._iterator)


def _calls(fn: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield fn()


def _as_iterable(data_iter: Any) -> Iterable[Any]:
    if isinstance(data_iter, LazyInitialiser):
        return _calls(data_iter)
    if callable(data_iter):
        try:
            data_iter()
        except Exception as e:
            raise ValueError(f"VariableFactory: calling {data_iter!r} failed: {e}") from e
        return _calls(data_iter)
    if not isinstance(data_iter, Iterable):
        raise ValueError(
            f"VariableFactory: data_iter is a callable or an iterable, got {data_iter!r}"
        )
    return data_iter


def _spec_of(data_iter: Any, elements: _LookAhead) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of the data: of a lazy initialiser without drawing it, else of the first
    element."""
    if isinstance(data_iter, LazyInitialiser):
        return data_iter.shape, data_iter.dtype
    element: Any = elements.peek()
    of_use = isinstance(element, host_scalar_tensor_types)
    if not of_use:
        raise ValueError(
            f"VariableFactory: data are arrays or numbers, got {type(element).__name__}"
        )
    return tuple(element.shape), element


def _is_first_instance() -> bool:
    return not popdist.isPopdistEnvSet() or popdist.getInstanceIndex() == 0


def _barrier() -> None:
    """Wait for the other instances, if there are any."""
    if popdist.isPopdistEnvSet() and popdist.getNumInstances() > 1:
        from mpi4py import MPI  # type: ignore[import-not-found]

        MPI.COMM_WORLD.Barrier()


class VariableFactory:
    """Describes a variable: its data, shape, dtype and replica grouping.

    Args:
        data_iter: a callable that returns the data, or an iterable of data. A callable is
            called twice here (once as a test, once to see shape and dtype); the second result
            is the one first used.
        dtype: default the dtype of the data, as they are.
        name: name of the graph input and, without another one, of the variable.
        by_ref: graphs may change the variable.
        replica_grouping: default all replicas in one group.
        shard_over: cut the variable in that many shards over its replica group.

    Raises:
        ValueError: data_iter is of no use, or calling it raises.
    """

    def __init__(
        self,
        data_iter: DataIter,
        dtype: dtypes.dtype | None = None,
        name: str | None = None,
        by_ref: bool = False,
        replica_grouping: ReplicaGrouping | None = None,
        shard_over: int = 1,
    ) -> None:
        self.data_iter = _LookAhead(_as_iterable(data_iter))
        self.name = name
        self.by_ref = by_ref
        self.replica_sharded = shard_over > 1
        if replica_grouping is None:
            replica_grouping = popxl.gcg().ir.replica_grouping()
        self.replica_grouping = replica_grouping
        shape, element = _spec_of(data_iter, self.data_iter)
        self.dtype = dtype or popxl.dtype.as_dtype(element)
        self.shape = shape
        self.meta_shape: tuple[int, ...] | None = None
        if self.replica_sharded:
            assert shard_over <= replica_grouping.group_size, (
                f"{name}: {shard_over} shards in a group of {replica_grouping.group_size}"
            )
            self.meta_shape = shape
            self.shape = (math.prod(shape) // shard_over,)

    def create_input(self, prefix: str | None = None) -> popxl.Tensor:
        """An input of the current graph that stands for the variable."""
        name = self.name if prefix is None else f"{prefix}.{self.name}"
        return popxl.graph_input(self.shape, self.dtype, name, self.by_ref, self.meta_shape)

    def _data(
        self, name: str | None, empty: bool, memmap_dir: str | None, read_only_if_exists: bool
    ) -> HostTensor:
        if memmap_dir is None:
            return self.next_data(empty)
        return self.next_memmap(memmap_dir, name or self.name or "t", empty, read_only_if_exists)

    def create_tensor(
        self,
        name: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> popxl.tensor.Variable:
        """A variable of the main graph. A sharded factory gives the whole variable.

        Args:
            name: default the factory's.
            empty: don't draw data; the contents are arbitrary.
            memmap_dir: keep the data in a file of this folder.
            read_only_if_exists: open an existing file read-only.
        """
        data = self._data(name, empty, memmap_dir, read_only_if_exists)
        return popxl.variable(
            data, self.dtype, name or self.name, replica_grouping=self.replica_grouping
        )

    def create_remote_tensor(
        self,
        buffer: popxl.RemoteBuffer,
        entry: int,
        name: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> popxl.tensor.Variable:
        """A variable in entry `entry` of a remote buffer; otherwise as `create_tensor`."""
        create = (
            popxl.remote_replica_sharded_variable if buffer.meta_shape else popxl.remote_variable
        )
        data = self._data(name, empty, memmap_dir, read_only_if_exists)
        return create(
            data,
            buffer,
            entry,
            self.dtype,
            name or self.name,
            replica_grouping=self.replica_grouping,
        )

    @property
    def _host_shape(self) -> tuple[int, ...]:
        shape = self.meta_shape or self.shape
        groups = self.replica_grouping.num_groups
        return (groups, *shape) if groups > 1 else tuple(shape)

    def next_data(self, empty: bool = False) -> HostTensor:
        """Data for one variable: one element, or one for each replica group on a new axis.

        Args:
            empty: take no element. The result is of zeros that occupy no memory.
        """
        if empty:
            zero = np.zeros((), self.dtype.as_numpy())
            zero.flags.writeable = False  # popxl keeps what nobody can write, and copies the rest
            return np.broadcast_to(zero, self._host_shape)
        groups = self.replica_grouping.num_groups
        if groups == 1:
            return next(self.data_iter)
        elements = (next(self.data_iter) for _ in range(groups))
        return np.stack([to_numpy(x, downcast=False, copy=False) for x in elements])

    def next_memmap(
        self,
        memmap_dir: str,
        name: str,
        empty: bool = False,
        read_only_if_exists: bool = False,
    ) -> np.memmap:
        """Data for one variable in `<memmap_dir>/<name>.npy`, a raw map without a header.

        A file that is missing is made by the first instance, and filled unless `empty`.
        """
        path = Path(memmap_dir) / f"{name}.npy"
        dtype = self.dtype.as_numpy()
        if _is_first_instance() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            data = np.memmap(path, dtype, "w+", shape=self._host_shape)
            if not empty:
                data[...] = self.next_data()
                data.flush()
            _barrier()
            return data
        _barrier()
        mode = "r" if read_only_if_exists else "r+"
        return np.memmap(path, dtype, mode, shape=self._host_shape)  # type: ignore[call-overload]


class NamedVariableFactories(DotTree[VariableFactory]):
    """A tree of factories. Copies share the factories, and so their data iterators."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def init(
        self,
        prefix: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> NamedTensors:
        """A variable for each factory, in the order of sorted flat keys.

        Args:
            prefix: variables are called `prefix.<flat key>`.
            empty: don't draw data.
            memmap_dir: keep the data in files of this folder.
            read_only_if_exists: open existing files read-only.
        """
        options = (empty, memmap_dir, read_only_if_exists)
        return NamedTensors.from_dict(
            {
                key: factory.create_tensor(_prefixed(prefix, key), *options)
                for key, factory in self._sorted()
            }
        )

    def init_remote(
        self,
        buffers: NamedRemoteBuffers,
        entry: int = 0,
        prefix: str | None = None,
        empty: bool = False,
        memmap_dir: str | None = None,
        read_only_if_exists: bool = False,
    ) -> NamedTensors:
        """A variable for each factory in entry `entry` of the buffer with the same flat key.

        Raises:
            KeyError: a factory has no buffer.
        """
        options = (empty, memmap_dir, read_only_if_exists)
        remote = buffers.to_dict()
        return NamedTensors.from_dict(
            {
                key: factory.create_remote_tensor(
                    remote[key], entry, _prefixed(prefix, key), *options
                )
                for key, factory in self._sorted()
            }
        )

    def init_zero(self) -> NamedTensors:
        """A tensor of zeros in the current graph for each factory."""
        return self._init_tensors("zero")

    def init_undef(self) -> NamedTensors:
        """A tensor of undefined contents in the current graph for each factory."""
        return self._init_tensors("undef")

    def _init_tensors(self, init_type: str) -> NamedTensors:
        return NamedTensors.from_dict(
            {
                key: ops.init(factory.shape, factory.dtype, key, init_type)
                for key, factory in self.to_dict().items()
            }
        )

    def _sorted(self) -> list[tuple[str, VariableFactory]]:
        return sorted(self.to_dict().items(), key=lambda item: item[0])

    @property
    def replica_groupings(self) -> NamedReplicaGrouping:
        """The factories' groupings, in a new tree."""
        return NamedReplicaGrouping.from_dict(
            {key: factory.replica_grouping for key, factory in self.to_dict().items()}
        )


def _prefixed(prefix: str | None, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def add_variable_input(
    name: str,
    data_iter: DataIter,
    dtype: dtypes.dtype | None = None,
    by_ref: bool = False,
    replica_grouping: ReplicaGrouping | None = None,
) -> tuple[popxl.Tensor, VariableFactory]:
    """A factory and its input in the current graph."""
    factory = VariableFactory(data_iter, dtype, name, by_ref, replica_grouping)
    return factory.create_input(), factory


def add_replica_sharded_variable_input(
    name: str,
    data_iter: DataIter,
    dtype: dtypes.dtype | None = None,
    by_ref: bool = False,
    replica_grouping: ReplicaGrouping | None = None,
    shard_over: int | None = None,
) -> tuple[popxl.Tensor, VariableFactory]:
    """`add_variable_input` for a variable that is cut over its group, or `shard_over` of it."""
    if replica_grouping is None:
        replica_grouping = popxl.gcg().ir.replica_grouping()
    shard_over = replica_grouping.group_size if shard_over is None else shard_over
    factory = VariableFactory(data_iter, dtype, name, by_ref, replica_grouping, shard_over)
    return factory.create_input(), factory
