"""Cutting checkpoint tensors into the host arrays of PopXL variables: views, except where noted.

A checkpoint keeps linear weights as (out, in); PopXL computes ``x @ w`` with w as (in, out). A cut
variable has a leading axis with one entry for each of its r shards, which PopXL leaves out when r
is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from utils.errors import UserError
from utils.quantise import QuantisedWeight

Arrays = Mapping[str, np.ndarray]


def take(
    tensors: Arrays,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    spare_rows: bool = False,
) -> np.ndarray:
    """Reads one tensor of a checkpoint, as the dtype of the model.

    Args:
        tensors: The checkpoint, by canonical name.
        name: The tensor's name.
        shape: The shape it must have.
        dtype: The result's dtype; a tensor that has it already is not copied.
        spare_rows: Whether it may have more rows than the shape says.

    Raises:
        UserError: The tensor is absent or has another shape.
    """
    if name not in tensors:
        raise UserError(
            f"tensor {name} is missing from the checkpoint (expected shape {shape}); "
            "choose the configuration that this checkpoint was trained with"
        )
    array = tensors[name]
    wanted = (max(shape[0], array.shape[0]), *shape[1:]) if spare_rows and array.ndim else shape
    if array.shape != wanted:
        raise UserError(
            f"tensor {name} has shape {array.shape}, but the configuration needs {shape}; "
            "choose the configuration that this checkpoint was trained with"
        )
    if array.dtype == dtype:
        return array
    converted = array.astype(dtype)
    return converted if isinstance(array, QuantisedWeight) else frozen(converted)


def frozen(array: np.ndarray) -> np.ndarray:
    """Makes a new array read-only: an engine may keep it then, instead of a copy.

    What it is a view of becomes read-only with it, or a write there could still change it.
    """
    owner = array
    while isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        owner = owner.base
    return array


def prefixed(prefix: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """The same arrays with ``prefix.`` before each key."""
    return {f"{prefix}.{key}": array for key, array in arrays.items()}


def column_shards(weight: np.ndarray, r: int) -> np.ndarray:
    """Cuts the outputs of a linear: (out, in) to (r, in, out/r)."""
    if isinstance(weight, QuantisedWeight):
        return weight.cut_into("columns", r)
    out, inner = weight.shape
    return _drop_single(weight.reshape(r, out // r, inner).transpose(0, 2, 1))


def row_shards(weight: np.ndarray, r: int) -> np.ndarray:
    """Cuts the inputs of a linear: (out, in) to (r, in/r, out)."""
    if isinstance(weight, QuantisedWeight):
        return weight.cut_into("rows", r)
    out, inner = weight.shape
    return _drop_single(weight.reshape(out, r, inner // r).transpose(1, 2, 0))


def vector_shards(vector: np.ndarray, r: int) -> np.ndarray:
    """Cuts a vector that belongs to cut columns: (out,) to (r, out/r)."""
    return _drop_single(vector.reshape(r, -1))


def vocabulary_shards(table: np.ndarray, rows: int, r: int) -> np.ndarray:
    """Cuts an embedding table: (v, h) to (r, rows, h); zero rows fill the end of the table.

    Copies the table, unless it has enough rows already.
    """
    missing = r * rows - table.shape[0]
    if missing > 0:
        filling = np.zeros((missing, table.shape[1]), table.dtype)
        table = frozen(np.concatenate([table, filling]))
    return _drop_single(table[: r * rows].reshape(r, rows, -1))


def _drop_single(shards: np.ndarray) -> np.ndarray:
    return shards[0] if shards.shape[0] == 1 else shards
