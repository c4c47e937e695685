"""Memory of a plan before any run: bytes that are live at the same time.

A value that is a view keeps the memory alive that it is a view of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from popxl_torch.ir.records import Buffer, Spec
from popxl_torch.plan.steps import Body, Operand, Plan, Step

_HOST = frozenset(
    {"HostLoad", "JoinColumns", "JoinRows", "ReadState", "RemoteLoad", "RemoteUpdate"}
)
"""Kinds whose results are in memory that is there anyway."""

_REORDERED = frozenset({"Expand", "Slice", "Split", "Subsample", "Transpose"})
"""Kinds whose results are views of the first input, other than as one row of elements."""

_SAME = frozenset({"Detach", "Identity", "IoTileCopy", "IpuCopy", "Reshape"})
_STORES = frozenset({"RemoteStore", "RemoteUpdate"})
_ITEM_BYTES = {"bool": 1, "float8_143": 1, "float8_152": 1, "uint32": 8, "uint16": 4}


def spec_bytes(spec: Spec) -> int:
    """Bytes of one replica's tensor as the engine stores it."""
    size = _ITEM_BYTES.get(spec.dtype)
    return spec.nelms * (size if size is not None else np.dtype(spec.dtype).itemsize)


def peak_bytes(
    plan: Plan, wide: bool = False, shares_host: bool = True, all_stay: bool = True
) -> int:
    """Most bytes of intermediate values live at once, but for what kernels need while they run.

    Loads are not counted, but for those that copy what the run may store to: they address memory
    that is counted elsewhere.

    Args:
        plan: the plan.
        wide: whether values of float16 are kept in float32 (fast arithmetic).
        shares_host: whether the host's inputs are views of its memory.
        all_stay: whether all entries that the run may store to stay on the device.
    """

    def size(operand: Operand) -> int:
        copies = plan.replicas if operand.varying else 1
        widened = 2 if wide and operand.spec.dtype == "float16" else 1
        return spec_bytes(operand.spec) * copies * widened

    stored = {step.attrs["buffer"] for step in plan.steps() if step.kind in _STORES}
    live = _Live(size, stored, shares_host, all_stay)
    live.run(plan.body)
    return live.peak


class _Live:
    """What is live while a plan is gone through."""

    def __init__(
        self,
        size: Callable[[Operand], int],
        stored: set[Buffer],
        shares_host: bool,
        all_stay: bool,
    ) -> None:
        self.peak = 0
        self._size, self._stored = size, stored
        self._shares_host, self._all_stay = shares_host, all_stay
        self._now = 0
        self._owners: dict[int, int] = {}  # of slots, the slot that got the memory
        self._uses: dict[int, int] = {}  # of owners, how many slots are in their memory
        self._bytes: dict[int, int] = {}
        self._reordered: set[int] = set()

    def run(self, body: Body) -> None:
        """Go through a body; what it made is gone then."""
        made = []
        for param, result in zip(body.params, body.results, strict=False):
            # From the second turn of a loop on, what the turn before made.
            if param.slot != result.slot:
                self._make(param)
                made.append(param.slot)
        for step in body.steps:
            for inner in step.bodies:
                self.run(inner)
            for number, out in enumerate(step.outs):
                self._add(step, number, out)
                made.append(out.slot)
            self.peak = max(self.peak, self._now)
            for slot in step.frees:
                self._free(slot)
        for slot in made:
            self._free(slot)

    def _add(self, step: Step, number: int, out: Operand) -> None:
        """A result of a step."""
        if step.kind in _HOST and not self._is_copied(step):
            return
        if step.kind == "RotarySplit":
            first, count = step.attrs["rotated"]
            reordered = not first <= number < first + count
        else:
            reordered = step.kind in _REORDERED
        if not reordered and step.kind not in _SAME:
            self._make(out)
            return
        source = step.ins[0].slot
        if step.kind == "Reshape" and source in self._reordered:
            self._make(out)  # torch may have to copy
            return
        if reordered or source in self._reordered:
            self._reordered.add(out.slot)
        if source in self._owners:
            owner = self._owners[out.slot] = self._owners[source]
            self._uses[owner] += 1

    def _is_copied(self, step: Step) -> bool:
        """Whether what is there anyway is copied."""
        if step.kind == "RemoteLoad" and step.attrs["buffer"] in self._stored:
            return "view" not in step.attrs or not self._shares_host
        if step.kind == "RemoteUpdate":
            return not self._all_stay and not self._shares_host
        return step.kind == "HostLoad" and not self._shares_host

    def _make(self, out: Operand) -> None:
        self._owners[out.slot], self._uses[out.slot] = out.slot, 1
        self._bytes[out.slot] = self._size(out)
        self._now += self._bytes[out.slot]

    def _free(self, slot: int) -> None:
        self._reordered.discard(slot)
        owner = self._owners.pop(slot, None)
        if owner is not None:
            self._uses[owner] -= 1
            if not self._uses[owner]:
                self._now -= self._bytes[owner]
