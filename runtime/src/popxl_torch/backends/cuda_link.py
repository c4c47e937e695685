"""The link of a CUDA device: see :class:`popxl_torch.executor.device_slots.Link`."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable
from contextlib import suppress

import torch
from torch.multiprocessing.reductions import StorageWeakRef


def leased(memory: torch.Tensor) -> tuple[torch.Tensor, Callable[[], bool]]:
    """The same bytes as a storage of its own, and whether that or a view of it is still held."""
    with torch.inference_mode(False):
        lease = torch.from_dlpack(memory)
    storage = StorageWeakRef(lease.untyped_storage())
    return lease, lambda: not storage.expired()


class CudaLink:
    """A stream for copies beside the current stream of the device; marks are events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device)
        self._pinned: list[mmap.mmap] = []
        self._unpin = weakref.finalize(self, _unpin, device, self._pinned)
        self.lease = leased

    def memory(self, num_bytes: int) -> torch.Tensor:
        """See :class:`Link`."""
        with torch.inference_mode(False):
            return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def pin(self, pages: mmap.mmap) -> None:
        """Registers the pages."""
        try:
            runtime = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostRegister(_address(pages), len(pages), 0))
        except RuntimeError:
            # The error stays noted, and the next kernel would report it: let this one do that.
            with suppress(RuntimeError):
                torch.ones(1, device=self.device)
            raise
        self._pinned.append(pages)

    def copy(self, memory: torch.Tensor, place: int, source: mmap.mmap, size: int) -> None:
        """See :class:`Link`."""
        pages = torch.frombuffer(source, dtype=torch.uint8, count=size)
        with torch.cuda.stream(self._copies):
            memory[place : place + size].copy_(pages, non_blocking=True)

    def copied(self) -> torch.cuda.Event:
        """See :class:`Link`."""
        return self._copies.record_event()

    def computed(self) -> torch.cuda.Event:
        """See :class:`Link`."""
        return torch.cuda.current_stream(self.device).record_event()

    def copy_after(self, mark: torch.cuda.Event) -> None:
        """See :class:`Link`."""
        self._copies.wait_event(mark)

    def compute_after(self, mark: torch.cuda.Event) -> None:
        """See :class:`Link`."""
        torch.cuda.current_stream(self.device).wait_event(mark)

    def reach(self, mark: torch.cuda.Event) -> None:
        """See :class:`Link`."""
        mark.synchronize()

    def close(self) -> None:
        """See :class:`Link`."""
        self._unpin()


def _unpin(device: torch.device, pinned: list[mmap.mmap]) -> None:
    torch.cuda.synchronize(device)
    for pages in pinned:
        torch.cuda.cudart().cudaHostUnregister(_address(pages))
    pinned.clear()


def _address(pages: mmap.mmap) -> int:
    return torch.frombuffer(pages, dtype=torch.uint8).data_ptr()
