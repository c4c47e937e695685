"""Lists of dtypes."""

from __future__ import annotations

from popxl import dtypes

__all__ = ["get_all_dtypes", "get_all_int_dtypes"]


def get_all_dtypes() -> list[dtypes.dtype]:
    """All dtypes except bool."""
    return [found for name, found in dtypes.dtype._instances.items() if name != "bool"]


def get_all_int_dtypes(
    include_signed: bool = True, include_unsigned: bool = True
) -> list[dtypes.dtype]:
    """The integer dtypes, signed and unsigned as asked."""
    return [
        found
        for found in get_all_dtypes()
        if found.is_int and (include_signed if found.is_signed else include_unsigned)
    ]
