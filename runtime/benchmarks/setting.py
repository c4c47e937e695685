"""What a benchmark of kernels ran with."""

import os
from typing import Any

from popxl_torch.kernels.native import native


def native_name() -> str:
    """The instruction set of the native kernels in use, or "not built"."""
    library = native()
    return library.name if library else "not built"


def setting(rounds: int) -> dict[str, Any]:
    """What a benchmark of kernels keeps of its circumstances."""
    return {
        "instruction set": native_name(),
        "rounds": rounds,
        "load average": os.getloadavg()[0],
    }
