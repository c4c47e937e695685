"""``popart.session``: the exception for programs that do not fit a device."""

from popxl_torch.ir.errors import OutOfMemoryException

__all__ = ["OutOfMemoryException"]
