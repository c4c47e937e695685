"""Weights that are brought into memory of a session's own, slab by slab.

A slab that stays has memory for itself and is brought once. The others pass through slots: while
one is in use, those that followed it the last time are brought into the slots that are free. A
wrong guess costs time, never correctness. A slot is free when no tensor refers to its memory any
more; if a program keeps tensors of more slabs than there are slots, further slots are taken.

What a slot is depends on the device: see executor/host_slots.py and executor/device_slots.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from popxl_torch.backends.base import Backend
from popxl_torch.executor.slabs import HostSlab
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Buffer


class Slot(Protocol):
    """Memory for one slab at a time.

    Attributes:
        num_bytes: of the memory.
        holds: the slab that is there, or on its way.
    """

    num_bytes: int
    holds: HostSlab | None

    @property
    def in_use(self) -> bool:
        """Whether some tensor refers to its memory."""
        ...

    @property
    def arrived(self) -> bool:
        """Whether :meth:`wait` has been called for what it holds, or need not be."""
        ...

    @property
    def busy(self) -> bool:
        """Whether threads still fill it."""
        ...

    def lease(self) -> Any:
        """The memory, for ``Backend.moved``. It is in use as long as there are views of this."""
        ...

    def bring(self, slab: HostSlab) -> None:
        """Begin to fill it with a slab."""
        ...

    def wait(self) -> None:
        """From here on the slab may be computed with.

        Raises:
            OSError: a file cannot be read.
        """
        ...

    def forget(self) -> None:
        """Hold nothing; no thread writes to the memory afterwards."""
        ...


class SlotMaker(Protocol):
    """Makes the slots of one session.

    Attributes:
        copied: whether slabs are copied from the host's memory to the device's.
    """

    copied: bool

    def slot(self, num_bytes: int) -> Slot:
        """A slot that holds nothing."""
        ...

    def read_bytes(self, slab: HostSlab) -> int:
        """What is read from files whenever the slab is brought."""
        ...

    def close(self) -> None:
        """Let go of threads and files. No slot is used afterwards."""
        ...


class Streamer:
    """The slabs of one session in memory of its own."""

    def __init__(
        self,
        slabs: Sequence[HostSlab],
        resident: Sequence[int],
        slots: int,
        prefetch: int,
        maker: SlotMaker,
        backend: Backend,
        trace: Trace,
    ) -> None:
        """Nothing is brought yet.

        Args:
            slabs: in the order of execution.
            resident: numbers of those that stay.
            slots: through which the others pass.
            prefetch: 0 to bring nothing before it is asked for.
            maker: makes slots, and is closed with the streamer.
            backend: makes the tensors.
            trace: counts bytes and waits.
        """
        self.maker = maker
        self.backend = backend
        self.trace = trace
        self.buffers = {buffer for slab in slabs for buffer, _ in slab.tensors}
        self._slab_of = {entry: slab for slab in slabs for entry in slab.tensors}
        self._resident = {slabs[n] for n in resident}
        self._homes: dict[HostSlab, Slot] = {}
        self._pool: list[Slot] = []
        self._planned_slots = slots
        self._prefetch = prefetch
        streamed = [slab.num_bytes for slab in slabs if slab not in self._resident]
        self._slot_bytes = max(streamed, default=0)
        self._follows = dict(zip(slabs, (*slabs[1:], *slabs[:1]), strict=True))
        self._current: HostSlab | None = None
        self._lease: Any = None

    @property
    def extra_slots(self) -> int:
        """Slots beyond the plan, taken because tensors were kept for long."""
        return max(0, len(self._pool) - self._planned_slots)

    def load(self, buffer: Buffer, entry: int, ahead: bool = True) -> Any | None:
        """The tensor of an entry; None if it is of no slab.

        Args:
            buffer: where it is.
            entry: its number.
            ahead: whether the slabs behind it are brought meanwhile.

        Raises:
            OSError: it cannot be read. A later load tries again.
        """
        slab = self._slab_of.get((buffer, entry))
        if slab is None:
            return None
        if slab is not self._current:
            self._enter(slab, ahead)
        assert self._lease is not None
        key = (buffer, entry)
        return self.backend.moved(slab.tensors[key], self._lease, slab.places[key])

    def close(self) -> None:
        """End the threads and let go of the memory."""
        self._current = self._lease = None
        for slot in (*self._homes.values(), *self._pool):
            slot.forget()
        self._homes.clear()
        self._pool.clear()
        self.maker.close()

    # -- slabs ------------------------------------------------------------------------------

    def _enter(self, slab: HostSlab, ahead: bool) -> None:
        """Have a slab in memory, and the next ones under way if they may be."""
        if self._current is not None:
            self._follows[self._current] = slab
        self._current = self._lease = None
        slot = self._find(slab)
        if slot is None:
            slot = self._slot_for(slab)
            slot.bring(slab)
        # From here on the slot is in use: what is brought ahead does not touch it.
        lease = slot.lease()
        if self._prefetch and ahead:
            self._look_ahead(slab)
        if not slot.arrived:
            self._wait(slot, slab)
        self._current, self._lease = slab, lease

    def _wait(self, slot: Slot, slab: HostSlab) -> None:
        start = time.perf_counter()
        try:
            slot.wait()
        except BaseException:
            slot.forget()
            raise
        waited_s = time.perf_counter() - start
        copied = slab.num_bytes if self.maker.copied else 0
        self.trace.count_brought(self.maker.read_bytes(slab), copied, waited_s)

    def _find(self, slab: HostSlab) -> Slot | None:
        """The slot that holds a slab, or is being filled with it."""
        home = self._homes.get(slab)
        candidates = self._pool if home is None else (home,)
        return next((slot for slot in candidates if slot.holds is slab), None)

    def _slot_for(self, slab: HostSlab) -> Slot:
        """Memory for a slab that is needed now."""
        if slab in self._resident:
            if slab not in self._homes:
                self._homes[slab] = self.maker.slot(slab.num_bytes)
            return self._homes[slab]
        wanted = self._next(slab, len(self._pool))
        slot = self._free_slot(wanted) or self._free_slot(())
        if slot is None:
            slot = self.maker.slot(self._slot_bytes)
            self._pool.append(slot)
        return slot

    def _free_slot(self, wanted: Sequence[HostSlab]) -> Slot | None:
        """A slot that is not in use and holds none of the wanted slabs; a new one if the plan has
        more."""
        free = [s for s in self._pool if not s.in_use and s.holds not in wanted]
        # Better one whose slab has been used than one that is still being filled.
        free.sort(key=lambda slot: slot.busy)
        if free:
            return free[0]
        if len(self._pool) < self._planned_slots:
            self._pool.append(self.maker.slot(self._slot_bytes))
            return self._pool[-1]
        return None

    def _look_ahead(self, slab: HostSlab) -> None:
        """Begin to bring what comes next, as far as there are slots for it."""
        wanted = self._next(slab, max(self._planned_slots, 1))
        for number, following in enumerate(wanted):
            if self._find(following) is not None:
                continue
            if following in self._resident:
                slot: Slot | None = self._slot_for(following)
            else:
                # What is needed later makes room for what is needed sooner.
                slot = self._free_slot(wanted) or self._free_slot(wanted[:number])
            if slot is None:
                return
            slot.bring(following)

    def _next(self, slab: HostSlab, count: int) -> list[HostSlab]:
        """The slabs that are expected after one and are not in memory for good: ``count`` of
        them."""
        found: list[HostSlab] = []
        following = self._follows[slab]
        for _ in range(len(self._follows)):
            if following is slab or len(found) == count:
                break
            home = self._homes.get(following)
            if following not in found and (home is None or home.holds is not following):
                found.append(following)
            following = self._follows[following]
        return found
