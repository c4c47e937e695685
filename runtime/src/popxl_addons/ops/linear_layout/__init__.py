"""A copy in another memory layout."""

from popxl_addons.ops.linear_layout.linear_layout import linear_layout

__all__ = [
    "linear_layout",
]
