"""Backends that stand for a GPU where there is none.

``OwnMemory`` computes on the CPU as if that had memory of its own: weights come over a link that
copies as late as it may, entries of the host's must not change before work that reads them has been
waited for, and parts of runs are recorded by something that replays.
``Rehearsal`` besides runs each part that would be recorded with tensors of PyTorch that claim to
lie on a CUDA device and have no contents: a kernel that needs a value on the host fails, and so
does one that mixes devices.
"""

from __future__ import annotations

import inspect
import itertools
import mmap
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from popxl_torch.backends.cuda_graph import WARM_UP, Recorded
from popxl_torch.backends.cuda_link import leased
from popxl_torch.backends.torch_backend import TorchBackend
from popxl_torch.executor import engine, placement
from popxl_torch.executor.trace import Trace
from popxl_torch.kernels import attention, linalg, rotary
from popxl_torch.settings import Settings
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Work:
    """What the work that is queued reads of the host's memory. It must find what was there when it
    was queued."""

    def __init__(self) -> None:
        self._reads: list[tuple[torch.Tensor, bytes]] = []

    def queue(self, source: torch.Tensor) -> None:
        self._reads.append((source, source.numpy().tobytes()))

    def wait(self) -> None:
        for source, expected in self._reads:
            assert source.numpy().tobytes() == expected, "written before it was read"
        self._reads.clear()


class LateLink:
    """Copies run when work waits for them. Work runs at once."""

    def __init__(self, work: Work | None = None, most_pinned: int = 1 << 62) -> None:
        self.memory_bytes = 0
        self.copied_bytes = 0
        self.pinned_bytes = 0
        self.closed = False
        self._work = work or Work()
        self._most_pinned = most_pinned
        self._queue: list[Callable[[], None]] = []
        self._ran = 0
        self.lease = leased

    def memory(self, num_bytes: int) -> torch.Tensor:
        self.memory_bytes += num_bytes
        with torch.inference_mode(False):
            return torch.full((num_bytes,), 0xEE, dtype=torch.uint8)

    def pin(self, pages: mmap.mmap) -> None:
        if self.pinned_bytes + len(pages) > self._most_pinned:
            raise RuntimeError("CUDA error: out of memory")
        self.pinned_bytes += len(pages)

    def copy(self, memory: torch.Tensor, place: int, source: mmap.mmap, size: int) -> None:
        def run() -> None:
            memory[place : place + size] = torch.frombuffer(source, dtype=torch.uint8, count=size)
            self.copied_bytes += size

        self._queue.append(run)

    def copied(self) -> int:
        return len(self._queue)

    def computed(self) -> Callable[[], None]:
        return self._work.wait

    def copy_after(self, mark: Any) -> None:
        pass

    def compute_after(self, mark: int) -> None:
        while self._ran < mark:
            self._queue[self._ran]()
            self._ran += 1

    def reach(self, mark: int | Callable[[], None]) -> None:
        if callable(mark):
            mark()
        else:
            self.compute_after(mark)

    def close(self) -> None:
        self.compute_after(len(self._queue))
        self._work.wait()
        self.closed = True


class Replayer:
    """Records by keeping the part: a replay calls it again and fills the same results."""

    def __init__(self) -> None:
        self.works = True
        self.records = False
        self.recorded = 0
        self.replayed = 0

    def beside(self, part: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Any:
        return part(*inputs)

    def record(
        self, part: Callable[..., Any], inputs: Sequence[torch.Tensor], in_order: bool
    ) -> Any:
        self.recorded += 1
        # Nothing is computed yet, and nothing written.
        self.records = True
        results = tuple(torch.full_like(result, 77) for result in part(*inputs))
        self.records = False
        return _Graph(self, part, inputs, results), results


class _Graph:
    def __init__(self, owner: Replayer, part: Any, inputs: Any, results: Any) -> None:
        self.owner, self.part, self.inputs, self.results = owner, part, inputs, results

    def replay(self) -> None:
        self.owner.replayed += 1
        for result, new in zip(self.results, self.part(*self.inputs), strict=True):
            result.copy_(new)


class OwnMemory(TorchBackend):
    """See the module.

    Attributes:
        brought: elements of each copy of a part of an entry.
        most_pinned: bytes of the host's memory.
    """

    most_pinned = 1 << 62

    def __init__(self, settings: Settings, replicas: int, free: int = 0) -> None:
        super().__init__(settings, replicas)
        self.shares_host = False
        self.links: list[LateLink] = []
        self.replayer = Replayer()
        self.limits: list[int] = []
        self.free = free
        self.brought: list[int] = []
        self._work = Work()

    def bring(self, tensor: torch.Tensor, window: Any) -> torch.Tensor:
        lead = (slice(None),) * (tensor.dim() - len(window))
        part = (*lead, *(slice(start, stop) for start, stop in window))
        result = torch.empty_like(tensor)
        result.view(-1).view(torch.uint8).fill_(0x7F)  # what is not copied is noticed
        result[part] = super().bring(tensor, window)[part]
        self._work.queue(tensor[part])
        self.brought.append(result[part].numel())
        return result

    def remote_window(self, *args: Any) -> None:
        if not self.replayer.records:
            super().remote_window(*args)

    def synchronise(self) -> None:
        self._work.wait()

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone() if type(tensor) is torch.Tensor else tensor

    def link(self) -> Any:
        self.links.append(LateLink(self._work, self.most_pinned))
        return self.links[-1]

    def memory_used(self) -> int:
        return 0

    def memory_free(self) -> int:
        return self.free

    def limit_memory(self, num_bytes: int) -> None:
        self.limits.append(num_bytes)

    def recorded(self, part: Any, places: Any, trace: Trace) -> Any:
        return Recorded(part, places, trace, self.replayer)  # type: ignore[arg-type]


@contextmanager
def standing_in(
    monkeypatch: pytest.MonkeyPatch, kind: type[OwnMemory] = OwnMemory, free: int = 0
) -> Iterator[list[OwnMemory]]:
    """Sessions made meanwhile run on such a device; a list of them."""
    made: list[OwnMemory] = []

    def make(settings: Settings, replicas: int) -> OwnMemory:
        made.append(kind(settings, replicas, free))
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(engine, "make_backend", make)
        patch.setattr(placement, "DEVICE_SCRATCH_BYTES", 0)
        yield made


class Rehearsal(OwnMemory):
    """See the module.

    Attributes:
        rehearsed: for each part that would be recorded, how often its kernels were called.
    """

    def __init__(self, settings: Settings, replicas: int, free: int = 0) -> None:
        super().__init__(settings, replicas, free)
        self.rehearsed: list[int] = []

    def prepare(self, step: Any, known: Any) -> None:
        """Kernels get their weights as arguments, so that those can be replaced."""

    def recorded(self, part: Any, places: Any, trace: Trace) -> Any:
        calls = itertools.count()

        def run(*inputs: torch.Tensor) -> Any:
            if next(calls) == WARM_UP:
                with torch.inference_mode(False), torch.no_grad():
                    self._rehearse(part, inputs)
            return part(*inputs)

        return run

    def _rehearse(self, part: Any, inputs: Sequence[torch.Tensor]) -> None:
        closure = inspect.getclosurevars(part).nonlocals
        emitter, name = closure["self"], closure["part"]
        memory, remote = emitter.memory, emitter.memory.remote
        states, entries, owned = dict(memory.states), remote.entries, set(remote.owned)
        device, self.device = self.device, torch.device("cuda", 0)
        with FakeTensorMode(allow_non_fake_inputs=True), _Indexing(), _Ops() as ops:
            names = {key: _on_gpu(value) for key, value in emitter.names.items()}
            for key, value in names.items():
                if isinstance(value, types.FunctionType) and value.__globals__ is emitter.names:
                    names[key] = types.FunctionType(value.__code__, names)
            remote.entries = {key: _on_gpu(value) for key, value in entries.items()}
            memory.states.update({key: _on_gpu(value) for key, value in states.items()})
            try:
                results = names[name](*map(_on_gpu, inputs))
            finally:
                self.device, remote.entries, remote.owned = device, entries, owned
                memory.states.update(states)
        assert all(result.is_cuda for result in results)
        self.rehearsed.append(ops.count)


def rehearse(monkeypatch: pytest.MonkeyPatch) -> list[Rehearsal]:
    """A list of the backends of all sessions from now on."""
    made: list[Rehearsal] = []

    def make(settings: Settings, replicas: int) -> Rehearsal:
        made.append(Rehearsal(settings, replicas))
        return made[-1]

    monkeypatch.setattr(engine, "make_backend", make)
    for module in (attention, linalg, rotary):  # C++ has no use for tensors without contents
        monkeypatch.setattr(module, "native", lambda: None)
    return made


class _Indexing(TorchFunctionMode):
    """What Python's brackets see of a tensor, without a device to ask."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        seen = torch.empty_strided(tensor.shape, tensor.stride(), device="meta")[index]
        offset = tensor.storage_offset() + seen.storage_offset()
        return tensor.as_strided(seen.shape, seen.stride(), offset)


class _Ops(TorchDispatchMode):
    """Counts what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _on_gpu(value: Any) -> Any:
    """Tensors laid out alike in as much memory of a GPU; the elements of lists too."""
    if isinstance(value, list):
        return [_on_gpu(element) for element in value]
    if not isinstance(value, torch.Tensor):
        return value
    elements = value.untyped_storage().nbytes() // value.element_size()
    whole = torch.empty(elements, dtype=value.dtype, device="cuda:0")
    return whole.as_strided(value.shape, value.stride(), value.storage_offset())
