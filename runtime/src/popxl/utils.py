"""Conversion of host data and small helpers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import popart

if TYPE_CHECKING:
    from popxl import dtypes

DEVICES = ("cpu", "ipu_model", "ipu_hw")
"""Device descriptions of a session."""

HW_DEVICE_CONNECTION_TIMEOUT = 10000
"""Seconds that an IPU system would be waited for."""

downcast_np_dtypes = {
    np.dtype("int64"): np.dtype("int32"),
    np.dtype("uint64"): np.dtype("uint32"),
    np.dtype("float64"): np.dtype("float32"),
}


def to_numpy(
    x: Any,
    dtype: dtypes.dtype | None = None,
    downcast: bool = True,
    copy: bool = True,
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> np.ndarray:
    """Host data as a C-contiguous array: the one conversion of all host input.

    Args:
        x: array, torch tensor, number, or nested lists of numbers.
        dtype: convert to exactly this type. Without it NumPy infers the type and, with
            ``downcast``, 64-bit types become 32-bit ones.
        downcast: see ``dtype``.
        copy: guarantee fresh memory. Without it the caller's array may be returned.
        log2_scale: for float8: multiply by ``2**log2_scale`` before encoding (default 0).
        nan_on_overflow: for float8: out of range becomes NaN instead of saturating.

    Raises:
        ValueError: a memory map that would have to be converted.
        TypeError: float8 from a type other than float16/32/64.
        RuntimeError: float8 options for another dtype.
    """
    is_fp8 = dtype is not None and dtype.name.startswith("float8")
    if not is_fp8 and (log2_scale is not None or nan_on_overflow is not None):
        raise RuntimeError("log2_scale and nan_on_overflow can only be used with float8 dtypes.")
    if isinstance(x, np.memmap):
        return _checked_memmap(x, dtype, copy)
    if hasattr(x, "detach") and hasattr(x, "numpy"):
        x = x.detach().cpu().numpy()
    if is_fp8:
        assert dtype is not None
        return _to_float8(x, dtype, log2_scale or 0, nan_on_overflow is not False, copy)
    array = np.asarray(x)
    wanted = dtype.as_numpy() if dtype is not None else array.dtype
    if dtype is None and downcast:
        wanted = downcast_np_dtypes.get(array.dtype, array.dtype)
    if copy:
        return np.array(array, dtype=wanted, order="C", copy=True)
    return np.asarray(array, dtype=wanted, order="C")


def _checked_memmap(x: np.memmap, dtype: dtypes.dtype | None, copy: bool) -> np.ndarray:
    if dtype is not None and x.dtype != dtype.as_numpy():
        raise ValueError(f"A np.memmap is never converted: its dtype {x.dtype} is not {dtype}.")
    if not (x.flags.c_contiguous and x.flags.aligned):
        raise ValueError("A np.memmap must be C-contiguous and aligned.")
    if x.dtype in downcast_np_dtypes:
        raise ValueError(f"A np.memmap of dtype {x.dtype} would need downcasting.")
    return np.array(x) if copy else x


def _to_float8(
    x: Any, dtype: dtypes.dtype, log2_scale: int, nan_on_overflow: bool, copy: bool
) -> np.ndarray:
    from popxl.fp8_utils import host_pow2scale_cast_to_fp8

    array = np.asarray(x)
    if array.dtype == dtype.as_numpy():
        return np.array(array, order="C") if copy else np.asarray(array, order="C")
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"Conversion from {array.dtype} is not supported for float8 tensors.")
    return host_pow2scale_cast_to_fp8(array, dtype, log2_scale, nan_on_overflow)


def _popxl_to_numpy(t: Any) -> np.ndarray:
    """The host value of a constant or variable; TypeError for other tensors."""
    value = t._value
    if value.kind == "constant":
        return np.array(value.data)
    if value.kind == "variable":
        return np.array(value.data.host)
    raise TypeError(f"{t} is neither a constant nor a variable: it has no value on the host.")


def _to_device_info(device_desc: Any, *args: Any, **kwargs: Any) -> popart.DeviceInfo:
    """A device for a description; numbers of devices are not needed, since there is one."""
    if isinstance(device_desc, popart.DeviceInfo):
        return device_desc
    if device_desc not in DEVICES:
        raise ValueError(f"Incorrect device type provided: {device_desc!r}; use one of {DEVICES}.")
    return popart.DeviceInfo()


def table_to_string(rows: Sequence[Sequence], delimiter: str = " | ", header: bool = True) -> str:
    """Left-aligned columns, one line per row, a line of dashes below the header."""
    if not rows:
        return ""
    text = [[str(cell) for cell in row] for row in rows]
    columns = max(len(row) for row in text)
    widths = [max((len(row[i]) for row in text if i < len(row)), default=0) for i in range(columns)]
    lines = []
    for index, row in enumerate(text):
        line = delimiter.join(cell.ljust(widths[i]) for i, cell in enumerate(row)) + "\n"
        lines.append(line)
        if header and index == 0 and len(text) > 1:
            lines.append("-" * len(line) + "\n")
    return "".join(lines)


def host_pow2scale_cast_to_fp8(*args: Any, **kwargs: Any) -> np.ndarray:
    """See :func:`popxl.fp8_utils.host_pow2scale_cast_to_fp8`."""
    from popxl import fp8_utils

    return fp8_utils.host_pow2scale_cast_to_fp8(*args, **kwargs)
