"""Memory of a plan before any run: bytes that are live at the same time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from popxl_torch.ir.opdef import kinds, opdef
from popxl_torch.ir.records import Spec
from popxl_torch.plan.steps import Body, Operand, Plan, Step

_VIEWS = frozenset({"Expand", "JoinColumns", "JoinRows", "RemoteLoad", "RemoteUpdate", "ReadState"})
_ITEM_BYTES = {"bool": 1, "float8_143": 1, "float8_152": 1, "uint32": 8, "uint16": 4}


def spec_bytes(spec: Spec) -> int:
    """Bytes of one replica's tensor as the engine stores it."""
    size = _ITEM_BYTES.get(spec.dtype)
    return spec.nelms * (size if size is not None else np.dtype(spec.dtype).itemsize)


def peak_bytes(plan: Plan, wide: bool = False, shares_host: bool = True) -> int:
    """Most bytes of intermediate values live at once.

    Loads of weights and other views are not counted: they address memory that is counted elsewhere.
    An upper bound: a kernel that returns a view of its input is counted as if it had copied.

    Args:
        plan: the plan.
        wide: whether values of float16 are kept in float32 (fast arithmetic).
        shares_host: whether the host's inputs are views of its memory.
    """
    known = frozenset(kinds())

    def is_view(step: Step) -> bool:
        if step.kind == "HostLoad":
            return shares_host
        return step.kind in _VIEWS or (
            step.kind in known and opdef(step.kind).moves_data and step.kind == "Reshape"
        )

    def size(operand: Operand) -> int:
        copies = plan.replicas if operand.varying else 1
        widened = 2 if wide and operand.spec.dtype == "float16" else 1
        return spec_bytes(operand.spec) * copies * widened

    return _peak(plan.body, size, is_view, 0)[0]


def _peak(
    body: Body, size: Callable[[Operand], int], is_view: Callable[[Step], bool], base: int
) -> tuple[int, int]:
    """(peak, bytes left at the end) of a body that starts with ``base`` bytes live."""
    sizes: dict[int, int] = {}
    now = peak = base
    for step in body.steps:
        for inner in step.bodies:
            peak = max(peak, _peak(inner, size, is_view, now)[0])
        for out in step.outs:
            sizes[out.slot] = 0 if is_view(step) else size(out)
            now += sizes[out.slot]
        peak = max(peak, now)
        for slot in step.frees:
            now -= sizes.pop(slot, 0)
    return peak, now
