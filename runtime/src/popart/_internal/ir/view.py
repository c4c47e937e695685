"""Parts of tensors."""

from popart._internal.ir._records import Region

__all__ = ["Region"]
