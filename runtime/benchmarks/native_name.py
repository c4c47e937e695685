"""Which native kernels a measurement ran with."""

from popxl_torch.kernels.native import native


def native_name() -> str:
    """The instruction set of the native kernels in use, or "not built"."""
    library = native()
    return library.name if library else "not built"
