"""What runs the steps of a plan: torch on a CPU or GPU, or nothing at all."""

from __future__ import annotations

from popxl_torch.backends.base import Backend
from popxl_torch.settings import Settings


def make_backend(settings: Settings, replicas: int) -> Backend:
    """The backend that the settings ask for."""
    if settings.backend == "null":
        from popxl_torch.backends.null_backend import NullBackend

        return NullBackend(replicas, settings.device)
    from popxl_torch.backends.torch_backend import TorchBackend

    return TorchBackend(settings, replicas)
