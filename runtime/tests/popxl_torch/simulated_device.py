"""A device with two queues, of which anything may run at any time that the marks allow.

What is queued runs as late as a random choice makes it, at the latest when the host waits for it.
So a missing mark shows as wrong bytes sooner or later.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

Action = Callable[[], None]
COPIES, WORK = "copies", "work"


class Mark:
    """A place in a queue."""

    def __init__(self) -> None:
        self.reached = False


class SimulatedLink:
    """See :class:`popxl_torch.executor.device_slots.Link`.

    Attributes:
        log: what was queued, in order: "copy", "compute", and what waits for what.
        copied_bytes: by all copies that ran.
        memories: that were taken.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.log: list[tuple[str, Any]] = []
        self.copied_bytes = 0
        self.memories: list[np.ndarray] = []
        self.pinned = 0
        self.closed = False
        self._rng = rng
        self._lock = threading.RLock()
        self._queues: dict[str, deque[Action | Mark | tuple[Mark]]] = {
            COPIES: deque(),
            WORK: deque(),
        }

    # -- the device -------------------------------------------------------------------------

    def compute(self, what: Any, action: Action) -> None:
        """Queue work."""
        with self._lock:
            self.log.append(("compute", what))
            self._queues[WORK].append(action)
            self._run_some()

    def _step(self, name: str) -> bool:
        """Runs the head of a queue, if it may run."""
        queue = self._queues[name]
        if not queue:
            return False
        head = queue[0]
        if isinstance(head, tuple) and not head[0].reached:
            return False
        queue.popleft()
        if isinstance(head, Mark):
            head.reached = True
        elif not isinstance(head, tuple):
            head()
        return True

    def _run_some(self) -> None:
        for _ in range(self._rng.integers(0, 4)):
            self._step((COPIES, WORK)[self._rng.integers(2)])

    def _mark(self, name: str) -> Mark:
        with self._lock:
            mark = Mark()
            self._queues[name].append(mark)
            return mark

    # -- the link ---------------------------------------------------------------------------

    def memory(self, num_bytes: int) -> np.ndarray:
        self.memories.append(np.full(num_bytes, 0xEE, np.uint8))
        return self.memories[-1]

    def lease(self, memory: np.ndarray) -> tuple[np.ndarray, Callable[[], bool]]:
        # An array of its own: views of it refer to it.
        lease = np.frombuffer(memoryview(memory), np.uint8)
        held = weakref.ref(lease)
        return lease, lambda: held() is not None

    def pin(self, pages: mmap.mmap) -> None:
        self.pinned += len(pages)

    def copy(self, memory: np.ndarray, place: int, source: mmap.mmap, size: int) -> None:
        def run() -> None:
            memory[place : place + size] = np.frombuffer(source, np.uint8, size)
            self.copied_bytes += size

        with self._lock:
            number = next(n for n, other in enumerate(self.memories) if other is memory)
            self.log.append(("copy", number))
            self._queues[COPIES].append(run)
            self._run_some()

    def copied(self) -> Mark:
        return self._mark(COPIES)

    def computed(self) -> Mark:
        return self._mark(WORK)

    def copy_after(self, mark: Mark) -> None:
        with self._lock:
            self._queues[COPIES].append((mark,))

    def compute_after(self, mark: Mark) -> None:
        with self._lock:
            self.log.append(("wait", None))
            self._queues[WORK].append((mark,))

    def reach(self, mark: Mark) -> None:
        with self._lock:
            while not mark.reached:
                assert self._step(COPIES) or self._step(WORK), "a mark that is never reached"

    def finish(self) -> None:
        """Run everything."""
        with self._lock:
            while self._step(COPIES) or self._step(WORK):
                pass
            assert not any(self._queues.values())

    def close(self) -> None:
        self.finish()
        self.closed = True
