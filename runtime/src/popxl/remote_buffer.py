"""Remote memory: host RAM or disk that graphs load from and store to."""

from __future__ import annotations

from popxl import dtypes
from popxl.context import get_current_context
from popxl.tensor import Tensor
from popxl_torch.ir import records


class RemoteBuffer:
    """``entries`` tensors of one shape and dtype in remote memory, on each replica."""

    _record: records.Buffer
    _shard_over: int | None = None  # the number of shards, where the buffer was made for some

    def __init__(
        self, tensor_shape: tuple[int, ...], tensor_dtype: dtypes.dtype, entries: int
    ) -> None:
        program = get_current_context().ir._program
        spec = records.Spec(tuple(int(n) for n in tensor_shape), tensor_dtype.name)
        self._record = records.Buffer(len(program.buffers) + 1, spec, 1)
        self.entries = entries
        program.buffers.append(self._record)

    @property
    def remote_buffer_id(self) -> int:
        """1, 2, ... in each Ir."""
        return self._record.id

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of one entry on one replica."""
        return self._record.spec.shape

    @property
    def tensor_dtype(self) -> dtypes.dtype:
        """Data type of the entries."""
        return dtypes.dtype.from_name(self._record.spec.dtype)

    @property
    def entries(self) -> int:
        """Number of entries; ValueError when set below 1."""
        return self._record.entries

    @entries.setter
    def entries(self, value: int) -> None:
        if value < 1:
            raise ValueError(f"Entries must be a non-zero, positive integer, not {value}.")
        self._record.entries = int(value)

    @property
    def meta_shape(self) -> tuple[int, ...]:
        """Shape of the unsharded tensor if entries are shards, else ()."""
        return self._record.spec.meta_shape

    @meta_shape.setter
    def meta_shape(self, value: tuple[int, ...]) -> None:
        old = self._record.spec
        self._record.spec = records.Spec(old.shape, old.dtype, tuple(value))

    def set_remote_buffer_info(
        self, tensor_dtype: dtypes.dtype, tensor_shape: tuple[int, ...], entries: int
    ) -> None:
        """Redefine the buffer."""
        self._record.spec = records.Spec(tuple(tensor_shape), tensor_dtype.name, self.meta_shape)
        self._shard_over = None
        self.entries = entries

    def validate_tensor_matches_buffer(self, t: Tensor, num_shards: int = 1) -> None:
        """ValueError unless ``t`` has the entries' shape and dtype."""
        expected = self.meta_shape if num_shards != 1 else self.tensor_shape
        if tuple(t.shape) != tuple(expected) or t.dtype is not self.tensor_dtype:
            raise ValueError(
                f"Tensor {t} does not match buffer {self.remote_buffer_id} of shape {expected} and"
                f" dtype {self.tensor_dtype}."
            )

    def __hash__(self) -> int:
        return hash((type(self), id(self)))

    def __eq__(self, other: object) -> bool:
        return self is other


def remote_buffer(
    tensor_shape: tuple[int, ...], tensor_dtype: dtypes.dtype, entries: int = 1
) -> RemoteBuffer:
    """Same as :class:`RemoteBuffer`."""
    return RemoteBuffer(tensor_shape, tensor_dtype, entries)
