"""Tensors and kernels of PyTorch, on a CPU or a CUDA device."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from popxl_torch.backends.cuda_graph import Recorded, Recorder
from popxl_torch.backends.cuda_link import CudaLink
from popxl_torch.ir.opdef import kinds, opdef
from popxl_torch.ir.records import Spec
from popxl_torch.kernels import KernelEntry, Site, kernel_entry, kernel_kinds
from popxl_torch.kernels.indexing import write_window
from popxl_torch.kernels.native import native
from popxl_torch.kernels.quantised import QuantisedTensor, from_storage
from popxl_torch.kernels.storage import storage_dtype
from popxl_torch.plan.steps import Operand, Step
from popxl_torch.plan.windows import Window, pieces
from popxl_torch.settings import Settings

if TYPE_CHECKING:
    from popxl_torch.executor.device_slots import Link
    from popxl_torch.executor.trace import Trace

_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
_LIMITS: dict[torch.device, weakref.WeakKeyDictionary[TorchBackend, int]] = {}
"""Bytes of each GPU that sessions may take."""

_WRAP = {"uint16": 0xFFFF, "uint32": 0xFFFFFFFF}


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype([(name, "u1")]) if name.startswith("float8") else np.dtype(name)


with warnings.catch_warnings():
    # Torch warns once a process of read-only arrays. The engine never writes to host data.
    warnings.simplefilter("ignore")
    torch.from_numpy(np.broadcast_to(np.float32(0), 2))


def pick_device(wanted: str) -> torch.device:
    """The device asked for, else a GPU if there is one, else the CPU.

    Raises:
        RuntimeError: no such device on this machine, or one of a kind that has no kernels here.
    """
    if not wanted:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise RuntimeError(f"Device {wanted!r} was asked for; there are 'cpu', 'cuda' and 'cuda:N'")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise RuntimeError(f"Device {wanted!r} was asked for; there are {count} CUDA devices")
    if kind == "cuda":
        return torch.device(kind, int(index or torch.cuda.current_device()))
    return torch.device(kind)


class TorchBackend:
    """See :class:`popxl_torch.backends.base.Backend`."""

    name = "torch"

    def __init__(self, settings: Settings, replicas: int) -> None:
        self.device = pick_device(settings.device)
        native()  # now rather than in a run: it may refuse what the environment asks for
        self.shares_host = self.device.type == "cpu"
        self.fast = settings.arithmetic == "fast"
        self.replicas = replicas
        self._recorder: Recorder | None = None

    # -- data -------------------------------------------------------------------------------

    def from_host(self, array: np.ndarray, spec: Spec) -> torch.Tensor:
        """On a CPU a view of the array where dtype and strides allow it, else a copy."""
        return self.fetch(self.remote_view(array, spec))

    def remote_view(self, array: np.ndarray, spec: Spec) -> torch.Tensor:
        """Remote memory is the host's: a view of the array where dtype and strides allow it.

        An array that names its storage stays as it is stored, if its format is known.
        """
        storage = getattr(array, "popxl_storage", None)
        if storage is not None:
            tensor = from_storage(storage, storage_dtype(spec.dtype))
            if tensor is not None:
                return tensor
            array = np.asarray(array)
        if spec.dtype.startswith("float8"):
            array = np.ascontiguousarray(array).view(np.uint8)
        elif spec.dtype in _WIDER:
            array = array.astype(_WIDER[spec.dtype])
        elif any(stride < 0 for stride in array.strides):
            array = array.copy()
        return torch.from_numpy(np.asarray(array))

    def remote_zeros(
        self, spec: Spec, lead: bool, memory: np.ndarray | None = None
    ) -> torch.Tensor:
        """Zeros on the device, where what runs write stays, or the memory that is given."""
        shape, dtype = (self.replicas,) * lead + spec.shape, storage_dtype(spec.dtype)
        if memory is None:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)

    def remote_copy(
        self, tensor: torch.Tensor, spec: Spec, memory: np.ndarray | None = None
    ) -> torch.Tensor:
        """A contiguous copy: on the device, or in the memory that is given."""
        if memory is None:
            return self.stored(tensor, spec)
        place = torch.frombuffer(memory, dtype=storage_dtype(spec.dtype), count=tensor.numel())
        return place.view(tensor.shape).copy_(tensor)

    def remote_window(
        self,
        tensor: torch.Tensor,
        axes: tuple[int, ...],
        starts: torch.Tensor,
        window: torch.Tensor,
        lead: int,
    ) -> None:
        """Copy a window into a tensor in place; the same one for all replicas if it has no axis."""
        write_window(tensor, [axis + lead - tensor.dim() for axis in axes], starts, window)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device."""
        if self.shares_host:
            return tensor
        if isinstance(tensor, QuantisedTensor):
            return tensor.moved(self.device)
        return tensor.to(self.device)

    def to_host(self, tensor: torch.Tensor, spec: Spec) -> np.ndarray:
        """Host data in the spec's dtype."""
        if isinstance(tensor, QuantisedTensor):
            tensor = tensor.numbers()
        array = tensor.to("cpu", storage_dtype(spec.dtype)).numpy()
        if spec.dtype.startswith("float8"):
            return np.ascontiguousarray(array).view(_numpy_dtype(spec.dtype))
        return array.astype(_numpy_dtype(spec.dtype), copy=False)

    def stored(self, tensor: torch.Tensor, spec: Spec) -> torch.Tensor:
        """A contiguous copy in storage dtype."""
        result = torch.empty(tensor.shape, dtype=storage_dtype(spec.dtype), device=self.device)
        return result.copy_(tensor)

    def expand(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view with a leading replica axis of stride 0."""
        return tensor.expand(self.replicas, *tensor.shape)

    def replica(self, tensor: torch.Tensor, index: int) -> torch.Tensor:
        """A view of one replica's part."""
        return tensor[index]

    def stack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """A new tensor with a leading replica axis."""
        return torch.stack(list(tensors))

    def arrays(self, tensor: torch.Tensor) -> list[np.ndarray]:
        """Codes and scales of quantised matrices, else one array."""
        if isinstance(tensor, QuantisedTensor):
            return [part.numpy() for part in tensor.parts]
        return [tensor.numpy()]

    def moved(self, tensor: torch.Tensor, memory: Any, places: Sequence[int]) -> torch.Tensor:
        """The same strides over other bytes: an array of the host's or a tensor of the device's."""
        # As all tensors of remote memory, not one of inference mode.
        with torch.inference_mode(False):
            if isinstance(tensor, QuantisedTensor):
                parts = zip(tensor.parts, places, strict=True)
                return tensor.with_parts([_seen_at(part, memory, place) for part, place in parts])
            return _seen_at(tensor, memory, places[0])

    def bring(self, tensor: torch.Tensor, window: Window) -> torch.Tensor:
        """Laid out as the tensor is, so that kernels do the same with it. A copy is of what lies in
        a piece: others go through further memory of the host, which is filled before its turn."""
        result = torch.empty_like(tensor, device=self.device)
        lead = tensor.shape[: tensor.dim() - len(window)]
        starts, length = pieces(tensor.shape, (*((0, size) for size in lead), *window))
        target, source = result.view(-1), tensor.view(-1)
        for start in starts:
            target.narrow(0, start, length).copy_(
                source.narrow(0, start, length), non_blocking=True
            )
        return result

    def has_lead(self, tensor: torch.Tensor, spec: Spec) -> bool:
        """Whether there is one more axis than in the spec."""
        return tensor.dim() > len(spec.shape)

    def is_view(self, tensor: torch.Tensor, of: torch.Tensor) -> bool:
        """Whether they have one storage."""
        if isinstance(of, QuantisedTensor):
            return isinstance(tensor, QuantisedTensor) and tensor.codes is of.codes
        return tensor.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()

    def same(self, tensor: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether address, dtype, shape and strides are equal."""
        return _layout(tensor) == _layout(other)

    def running(self) -> AbstractContextManager[object]:
        """No gradients are recorded, which makes every call cheaper."""
        return torch.inference_mode()

    def select(self, condition: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
        """Replica by replica."""
        shape = (self.replicas,) + (1,) * (yes.dim() - 1)
        return torch.where(condition.reshape(shape), yes, no)

    def integer(self, tensor: torch.Tensor) -> int:
        """The value as a Python int."""
        return int(tensor.item())

    def nbytes(self, tensor: torch.Tensor) -> int:
        """Bytes of the distinct elements."""
        if isinstance(tensor, QuantisedTensor):
            return tensor.stored_bytes
        count = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            count *= size if stride else 1
        return count * tensor.element_size()

    def synchronise(self) -> None:
        """Wait for a GPU; CPU work is done when a call returns."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -- a device with memory of its own ----------------------------------------------------

    def link(self) -> Link:
        """Copies to a GPU."""
        return CudaLink(self.device)

    def memory_used(self) -> int:
        """What PyTorch has given out on the GPU."""
        return int(torch.cuda.memory_allocated(self.device))

    def memory_free(self) -> int:
        """What is free on the GPU, with what PyTorch holds and has not given out."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0] + kept)

    def limit_memory(self, num_bytes: int) -> None:
        """PyTorch has one limit for a process: what its sessions on the GPU may take together."""
        limits = _LIMITS.setdefault(self.device, weakref.WeakKeyDictionary())
        limits.pop(self, None)
        if num_bytes:
            limits[self] = num_bytes
        whole = torch.cuda.get_device_properties(self.device).total_memory
        share = min(1.0, sum(limits.values()) / whole) if limits else 1.0
        torch.cuda.set_per_process_memory_fraction(share, self.device)

    def recorded(
        self, part: Callable[..., Any], places: Callable[[], object], trace: Trace
    ) -> Callable[..., Any]:
        """The part as a CUDA graph."""
        if self._recorder is None:
            self._recorder = Recorder(self.device)
        return Recorded(part, places, trace, self._recorder)

    # -- kernels ----------------------------------------------------------------------------

    def bind(self, step: Step) -> Callable[..., Any]:
        """The step's kernel with everything around it resolved once."""
        if step.kind == "Init":  # the only kernel without a tensor to tell the device
            (out,) = step.outs
            dtype, device = storage_dtype(out.spec.dtype), self.device
            return lambda: torch.zeros(out.spec.shape, dtype=dtype, device=device)
        entry = kernel_entry(step.kind)
        lead = int(any(operand.varying for operand in (*step.ins, *step.outs)))
        site = self._site(step)
        if entry.replicated:
            return self._finish(entry.factory(site, 0), step)
        if lead and not entry.batched:
            one = self._wrap(entry, site, step, 0)
            return self._per_replica(one, step)
        return self._wrap(entry, site, step, lead)

    def prepare(self, step: Step, known: Sequence[Any]) -> Callable[..., Any] | None:
        """What the kernel prepares, its results rounded."""
        make = kernel_entry(step.kind).prepare if step.kind in kernel_kinds() else None
        function = make(self._site(step), known) if make is not None else None
        return None if function is None else self._finish(function, step)

    def _site(self, step: Step) -> Site:
        return Site(
            step.kind,
            step.attrs,
            [operand.spec for operand in step.ins],
            [operand.spec for operand in step.outs],
            self.replicas,
            step.where,
            tuple(operand.varying for operand in step.ins),
            tuple(operand.varying for operand in step.outs),
        )

    def _wrap(self, entry: KernelEntry, site: Site, step: Step, lead: int) -> Callable[..., Any]:
        moves = _moves_data(step.kind)
        function = entry.factory(site, lead)
        widen = not moves and not entry.raw
        rank = max((len(operand.spec.shape) for operand in step.ins), default=0)
        adapt = [self._adapter(operand, entry, lead, rank, widen) for operand in step.ins]
        if moves and self.fast and sum(o.spec.dtype == "float16" for o in step.ins) > 1:
            function = _same_dtype(function, [o.spec.dtype == "float16" for o in step.ins])
        return self._finish(_adapted(function, adapt), step)

    def _adapter(
        self, operand: Operand, entry: KernelEntry, lead: int, rank: int, widen: bool
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What to do with one input before the kernel, or None."""
        steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
        shape = operand.spec.shape
        if lead and entry.broadcast and operand.varying and len(shape) < rank:
            padded = (self.replicas, *(1,) * (rank - len(shape)), *shape)
            steps.append(lambda t: t.reshape(padded))
        elif lead and not entry.broadcast and not operand.varying:
            steps.append(self.expand)
        if widen and operand.spec.dtype == "float16":
            steps.append(torch.Tensor.float)
        if len(steps) == 2:
            first, second = steps
            return lambda t: second(first(t))
        return steps[0] if steps else None

    def _finish(self, function: Callable[..., Any], step: Step) -> Callable[..., Any]:
        """Round results to the dtypes of the step's outputs."""
        if _moves_data(step.kind) or _keeps_float32(step):
            return function
        casts = [self._rounding(operand.spec.dtype) for operand in step.outs]
        if all(cast is None for cast in casts):
            return function
        if len(casts) == 1:
            (cast,) = casts
            assert cast is not None
            return lambda *tensors: cast(function(*tensors))

        def several(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            results = function(*tensors)
            return tuple(
                result if cast is None else cast(result)
                for cast, result in zip(casts, results, strict=True)
            )

        return several

    def _rounding(self, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        if name == "float16" and self.fast:
            return None
        wanted = storage_dtype(name)
        if name in _WRAP:
            mask = _WRAP[name]
            return lambda t: t.to(wanted) & mask
        return lambda t: t if t.dtype == wanted else t.to(wanted)

    def _per_replica(self, one: Callable[..., Any], step: Step) -> Callable[..., Any]:
        varying = [operand.varying for operand in step.ins]
        several = len(step.outs) != 1

        def run(*tensors: torch.Tensor) -> Any:
            results = [
                one(*(t[r] if v else t for t, v in zip(tensors, varying, strict=True)))
                for r in range(self.replicas)
            ]
            if not several:
                return torch.stack(results)
            return tuple(torch.stack(parts) for parts in zip(*results, strict=True))

        return run


def _seen_at(tensor: torch.Tensor, memory: Any, place: int) -> torch.Tensor:
    """Dtype, shape and strides of a tensor of the host over other bytes, from ``place`` on."""
    if isinstance(memory, np.ndarray):
        array = tensor.numpy()
        return torch.from_numpy(np.ndarray(array.shape, array.dtype, memory, place, array.strides))
    last = sum((size - 1) * s for size, s in zip(tensor.shape, tensor.stride(), strict=True))
    end = place + (max(last, 0) + 1) * tensor.element_size()
    elements: torch.Tensor = memory[place:end].view(tensor.dtype)
    return elements.as_strided(tensor.shape, tensor.stride())


def _layout(tensor: torch.Tensor) -> tuple[object, ...]:
    if isinstance(tensor, QuantisedTensor):
        return (*map(_layout, tensor.parts), tensor.shape, tensor.stride())
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def _keeps_float32(step: Step) -> bool:
    """Whether a kernel's result needs no rounding: float32, of float32 alone."""
    return all(operand.spec.dtype == "float32" for operand in (*step.ins, *step.outs))


def _moves_data(kind: str) -> bool:
    return kind == "SliceUpdate" or (kind in kinds() and opdef(kind).moves_data)


def _adapted(
    function: Callable[..., Any], adapt: list[Callable[[torch.Tensor], torch.Tensor] | None]
) -> Callable[..., Any]:
    """``function`` behind its adapters; the common arities without a loop."""
    if not any(adapt):
        return function
    if len(adapt) == 1:
        (a,) = adapt
        return lambda x: function(a(x))  # type: ignore[misc]
    if len(adapt) == 2:
        a, b = adapt
        if b is None:
            return lambda x, y: function(a(x), y)  # type: ignore[misc]
        if a is None:
            return lambda x, y: function(x, b(y))
        return lambda x, y: function(a(x), b(y))
    return lambda *ts: function(*(t if f is None else f(t) for f, t in zip(adapt, ts, strict=True)))


def _same_dtype(function: Callable[..., Any], halves: list[bool]) -> Callable[..., Any]:
    """In fast arithmetic a float16 tensor may be stored as float32: widen if stored differently."""

    def run(*tensors: torch.Tensor) -> Any:
        stored = {t.dtype for t, half in zip(tensors, halves, strict=True) if half}
        if len(stored) > 1:
            tensors = tuple(
                t.float() if half else t for t, half in zip(tensors, halves, strict=True)
            )
        return function(*tensors)

    return run
