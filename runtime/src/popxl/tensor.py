"""Tensors, variables, constants, and graph inputs and outputs."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from popart._internal import ir as _ir
from popxl import dtypes
from popxl.context import get_current_context
from popxl.errors import UndefinedValue
from popxl.replica_grouping import ReplicaGrouping
from popxl.typing_ import NewAliasAnnotation
from popxl.utils import to_numpy
from popxl_torch.ir import records

if TYPE_CHECKING:
    from popxl.ir import Ir

ScalarType = Union[int, builtins.float, builtins.bool]
HostTensor = Union[np.ndarray, Iterable[Any]]
host_tensor_types = (np.ndarray, np.generic, Iterable)
HostScalarTensor = Union[HostTensor, ScalarType]
TILE_SET_MAP = {"compute": "Compute", "io": "IO"}


class TensorSpec(Mapping):
    """Shape, dtype and meta shape of a tensor, usable as keyword arguments of ``graph_input``."""

    def __init__(
        self, shape: tuple[int, ...], dtype: dtypes.dtype, meta_shape: tuple[int, ...] = ()
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.meta_shape = meta_shape

    def to_dict(self) -> dict[str, Any]:
        """Field name to value."""
        return {"shape": self.shape, "dtype": self.dtype, "meta_shape": self.meta_shape}

    def to_tuple(self) -> tuple[Any, ...]:
        """The values in order."""
        return self.shape, self.dtype, self.meta_shape

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Any:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return 3

    def __hash__(self) -> int:
        return hash(self.to_tuple())

    def __repr__(self) -> str:
        return f"TensorSpec(shape={self.shape}, dtype={self.dtype}, meta_shape={self.meta_shape})"


def _ops() -> Any:
    import popxl.ops

    return popxl.ops


class Tensor:
    """A value of a graph. Ops and the functions of this module make them."""

    _value: records.Value
    __array_ufunc__ = None
    __iter__ = None
    __contains__ = None

    def __init__(self) -> None:
        raise RuntimeError(f"{type(self).__name__} cannot be constructed directly.")

    @classmethod
    def _from_value(cls, value: records.Value) -> Tensor:
        """The one Tensor object of an IR value."""
        cache = value.graph.program.frontend._tensors
        found = cache.get(value)
        if found is None:
            kind = {"variable": Variable, "constant": Constant}.get(value.kind, Tensor)
            found = kind.__new__(kind)
            found._value = value
            cache[value] = found
        return found

    @classmethod
    def _from_pb_tensor(cls, pb_tensor: Any) -> Tensor:
        return cls._from_value(pb_tensor._record)

    @property
    def _pb_tensor(self) -> Any:
        return _ir.Tensor(self._value)

    @property
    def id(self) -> str:
        """Full id, graph scope included."""
        return self._value.id

    @property
    def name(self) -> str:
        """Id without the graph's scope; name scopes stay."""
        return self._value.name

    @property
    def scope(self) -> str:
        """The graph's scope."""
        return self._value.graph.id

    @property
    def dtype(self) -> dtypes.dtype:
        """Data type."""
        return dtypes.dtype.from_name(self._value.spec.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on one replica."""
        return self._value.spec.shape

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nelms(self) -> int:
        """Number of elements."""
        return self._value.spec.nelms

    @property
    def meta_shape(self) -> tuple[int, ...]:
        """Shape of the unsharded tensor if this is a shard, else ()."""
        return self._value.spec.meta_shape

    @property
    def spec(self) -> TensorSpec:
        """Shape, dtype and meta shape."""
        return TensorSpec(self.shape, self.dtype, self.meta_shape)

    @property
    def ir(self) -> Ir:
        """The Ir that holds this tensor; RuntimeError if nothing keeps it any more."""
        return self._value.graph.program.frontend

    @property
    def ipu(self) -> int:
        """Virtual IPU of the producer; UndefinedValue if unknown."""
        if self._value.ipu is None:
            raise UndefinedValue(f"The IPU of {self} is not known.")
        return self._value.ipu

    @property
    def tile_set(self) -> Literal["compute", "io"]:
        """Tile set of the producer; UndefinedValue if unknown."""
        if self._value.tile_set is None:
            raise UndefinedValue(f"The tile set of {self} is not known.")
        return self._value.tile_set  # type: ignore[return-value]

    def _get_ipu_and_tile_set(
        self,
        raise_on_undefined_tile_set: builtins.bool = True,
        raise_on_undefined_ipu: builtins.bool = True,
    ) -> tuple[Any, str]:
        """(IPU, tile set); "undefined" for what is not known and need not be."""
        ipu = self.ipu if raise_on_undefined_ipu else self._value.ipu
        tile_set = self.tile_set if raise_on_undefined_tile_set else self._value.tile_set
        return "undefined" if ipu is None else ipu, tile_set or "undefined"

    @property
    def in_sync_with_ipu(self) -> builtins.bool:
        """Whether the host's copy of a variable is current."""
        return not self.ir._stale

    @property
    def location_info(self) -> Any:
        """Remote location of a variable: ``isRemote()`` and ``getRemoteBufferInfo()``."""
        return self._pb_tensor.tensorLocationInfo

    def strides(self, shape: Iterable[int] | None = None) -> tuple[int, ...]:
        """Byte strides of a row-major tensor of ``shape`` (default: its own)."""
        sizes = tuple(self.shape if shape is None else shape)
        step = self.dtype.as_numpy().itemsize
        result = []
        for size in reversed(sizes):
            result.append(step)
            step *= size
        return tuple(reversed(result))

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{self.id} {self.dtype} {self.shape}]"

    def __eq__(self, other: Any) -> builtins.bool:
        return isinstance(other, Tensor) and other._value is self._value

    def __hash__(self) -> int:
        return hash((self._value.graph.program.id, self.id))

    def __len__(self) -> int:
        if not self.shape:
            raise ValueError("Cannot get the length of a scalar.")
        return self.shape[0]

    def _operand(self, value: Any, dtype: dtypes.dtype | None = None) -> Tensor:
        return Tensor._ensure_tensor(value, dtype or self.dtype)

    @staticmethod
    def _ensure_tensor(
        value: Any, dtype: dtypes.dtype | None = None, raise_on_empty: builtins.bool = True
    ) -> Tensor:
        """``value`` itself if it is a Tensor, else a constant of it in the current graph."""
        if isinstance(value, Tensor):
            return value
        data = to_numpy(value, dtype)
        if raise_on_empty and data.size == 0:
            raise ValueError("The value has 0 elements.")
        return constant(data, dtype, downcast=dtype is None)

    def __add__(self, other: Any) -> Tensor:
        return _ops().add(self, self._operand(other))

    def __radd__(self, other: Any) -> Tensor:
        return _ops().add(self._operand(other), self)

    def __iadd__(self, other: Any) -> Tensor:
        _ops().add_(self, self._operand(other))
        return self

    def __sub__(self, other: Any) -> Tensor:
        return _ops().sub(self, self._operand(other))

    def __rsub__(self, other: Any) -> Tensor:
        return _ops().sub(self._operand(other), self)

    def __mul__(self, other: Any) -> Tensor:
        return _ops().mul(self, self._operand(other))

    def __rmul__(self, other: Any) -> Tensor:
        return _ops().mul(self._operand(other), self)

    def __truediv__(self, other: Any) -> Tensor:
        return _ops().div(self, self._operand(other))

    def __rtruediv__(self, other: Any) -> Tensor:
        return _ops().div(self._operand(other), self)

    def __mod__(self, other: Any) -> Tensor:
        return _ops().fmod(self, self._operand(other))

    def __rmod__(self, other: Any) -> Tensor:
        return _ops().fmod(self._operand(other), self)

    def __pow__(self, other: Any) -> Tensor:
        return _ops().pow(self, Tensor._ensure_tensor(other))

    def __rpow__(self, other: Any) -> Tensor:
        return _ops().pow(Tensor._ensure_tensor(other), self)

    def __matmul__(self, other: Any) -> Tensor:
        return _ops().matmul(self, self._operand(other))

    def __rmatmul__(self, other: Any) -> Tensor:
        return _ops().matmul(self._operand(other), self)

    def __and__(self, other: Any) -> Tensor:
        return _ops().logical_and(self, self._operand(other))

    def __rand__(self, other: Any) -> Tensor:
        return _ops().logical_and(self._operand(other), self)

    def __or__(self, other: Any) -> Tensor:
        return _ops().logical_or(self, self._operand(other))

    def __ror__(self, other: Any) -> Tensor:
        return _ops().logical_or(self._operand(other), self)

    def __invert__(self) -> Tensor:
        return _ops().logical_not(self)

    def __neg__(self) -> Tensor:
        return _ops().negate(self)

    def __getitem__(self, key: Any) -> Tensor:
        """Ints and slices slice, int tensors gather rows, bool tensors zero what is not chosen."""
        from popxl._indexing import index

        return index(self, key)

    @property
    def T(self) -> Tensor:
        """All axes reversed, as a new tensor."""
        return _ops().transpose(self)

    @property
    def T_(self) -> Tensor:
        """All axes reversed, as an alias."""
        return _ops().transpose_(self)

    def transpose(self, permutation: Iterable[int] | None = None) -> Tensor:
        """See ``ops.transpose``."""
        return _ops().transpose(self, permutation)

    def transpose_(self, permutation: Iterable[int] | None = None) -> Tensor:
        """See ``ops.transpose_``."""
        return _ops().transpose_(self, permutation)

    def reshape(self, shape: Iterable[int]) -> Tensor:
        """See ``ops.reshape``."""
        return _ops().reshape(self, shape)

    def reshape_(self, shape: Iterable[int]) -> Tensor:
        """See ``ops.reshape_``."""
        return _ops().reshape_(self, shape)

    def flatten(self) -> Tensor:
        """See ``ops.flatten``."""
        return _ops().flatten(self)

    def flatten_(self) -> Tensor:
        """See ``ops.flatten_``."""
        return _ops().flatten_(self)

    def detach(self) -> Tensor:
        """See ``ops.detach``."""
        return _ops().detach(self)

    def detach_(self) -> Tensor:
        """See ``ops.detach_``."""
        return _ops().detach_(self)

    def diag(self) -> Tensor:
        """``flatten()[::columns + 1]`` (quirk: too long for matrices taller than columns + 1)."""
        if self.rank != 2:
            raise ValueError(f"diag needs a tensor of rank 2, {self} has rank {self.rank}.")
        return self.flatten()[:: self.shape[1] + 1]

    def copy_to_ipu(self, destination: int, source: int | None = None) -> Tensor:
        """See ``ops.ipu_copy``."""
        return _ops().ipu_copy(self, destination, source)


TensorLike = Union[Tensor, HostScalarTensor]
TensorByRef = NewAliasAnnotation("TensorByRef", Tensor)


class Constant(Tensor):
    """A tensor whose value is part of the graph."""

    def copy_to_ipu(self, dst: int, src: int) -> Tensor:  # type: ignore[override]
        """See ``ops.ipu_copy``."""
        return _ops().ipu_copy(self, dst, src)


class Variable(Tensor):
    """A tensor whose value lives across runs."""

    def __init__(self) -> None:
        raise RuntimeError("Variable cannot be constructed directly; use popxl.variable.")

    @property
    def replica_grouping(self) -> ReplicaGrouping:
        """Which replicas share a value."""
        return ReplicaGrouping._make(self.ir, list(self._value.data.assignment))

    @property
    def _replica_grouping(self) -> ReplicaGrouping:
        return self.replica_grouping

    @property
    def retrieval_mode(self) -> Literal["one_per_group", "all_replicas"]:
        """What reading the variable returns."""
        return "all_replicas" if self._value.data.all_replicas else "one_per_group"

    @property
    def shape_on_host(self) -> tuple[int, ...]:
        """(groups, \\*shape) if there are several replica groups, else the shape."""
        groups = self._value.data.num_groups
        return (groups, *self.shape) if groups > 1 else self.shape

    @property
    def shape_on_replica(self) -> tuple[int, ...]:
        """Same as :attr:`shape`."""
        return self.shape

    def copy_to_ipu(self, dst: int, src: int) -> Tensor:  # type: ignore[override]
        """See ``ops.ipu_copy``."""
        return _ops().ipu_copy(self, dst, src)


def _is_fp8_array(data: Any) -> builtins.bool:
    return isinstance(data, np.ndarray) and data.dtype in (
        dtypes.np_dtype_float8_143,
        dtypes.np_dtype_float8_152,
    )


def constant(
    data: HostScalarTensor,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: builtins.bool = True,
    log2_scale: int = None,  # type: ignore[assignment]
    nan_on_overflow: builtins.bool = None,  # type: ignore[assignment]
) -> Constant:
    """A constant of the current graph.

    Args:
        data: see :func:`popxl.utils.to_numpy`.
        dtype: data type; inferred (and downcast to 32 bit) if not given.
        name: debug name.
        downcast: see ``to_numpy``.
        log2_scale: see ``to_numpy``.
        nan_on_overflow: see ``to_numpy``.
    """
    if _is_fp8_array(data) and dtype is None:
        raise TypeError("A float8 array needs an explicit dtype.")
    array = to_numpy(data, dtype, downcast, True, log2_scale, nan_on_overflow)
    dtype = dtype or dtypes.dtype.as_dtype(array.dtype)
    graph = get_current_context().graph
    spec = records.Spec(tuple(array.shape), dtype.name)
    array.flags.writeable = False
    return _add_value(graph, name or "t", spec, "constant", array)  # type: ignore[return-value]


def _add_value(graph: Any, name: str, spec: records.Spec, kind: str, data: Any = None) -> Tensor:
    value = records.Value(graph._create_tensor_id(name), spec, graph._record, kind, data=data)
    graph._record.values[value.id] = value
    return Tensor._from_value(value)


def graph_input(
    shape: Iterable[int],
    dtype: dtypes.dtype,
    name: str | None = None,
    by_ref: builtins.bool = False,
    meta_shape: Iterable[int] | None = None,
) -> Tensor:
    """A new input of the current graph, after the existing ones."""
    graph = get_current_context().graph
    spec = records.Spec(tuple(int(n) for n in shape), dtype.name, tuple(meta_shape or ()))
    result = _add_value(graph, name or "t", spec, "input")
    result._value.by_ref = by_ref
    graph._record.inputs.append(result._value)
    if by_ref:
        graph._by_ref_inputs.add(result)
    return result


def graph_output(t: Tensor) -> None:
    """Mark ``t`` as an output of the current graph; ValueError if it belongs to another."""
    from popxl.ops.utils import check_in_graph

    graph = get_current_context().graph
    check_in_graph(graph, t=t)
    graph._record.outputs.append(t._value)


from popxl._variables import (  # noqa: E402  (makes what this module defines)
    remote_replica_sharded_variable,
    remote_variable,
    replica_sharded_buffer,
    replica_sharded_variable,
    variable,
)

__all__ = [
    "TILE_SET_MAP",
    "Constant",
    "HostScalarTensor",
    "HostTensor",
    "ScalarType",
    "Tensor",
    "TensorByRef",
    "TensorLike",
    "TensorSpec",
    "Variable",
    "constant",
    "graph_input",
    "graph_output",
    "host_tensor_types",
    "remote_replica_sharded_variable",
    "remote_variable",
    "replica_sharded_buffer",
    "replica_sharded_variable",
    "variable",
]
