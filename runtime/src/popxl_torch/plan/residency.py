"""Which weights stay in memory within a budget, and which are read anew for each use.

A *slab* is what is loaded together: the entries of some remote buffers at one offset. A program
goes through its slabs in the same order again and again. A cache that evicts what was used longest
ago never hits then, so what stays is planned: whole slabs, spread evenly over the order, so that
reads never come in bursts. The others pass through slots of the size of the largest of them.

Slabs that runs store to, such as keys and values, would have to be written back as well. So they
stay first, as far as they fit beside the slots that the weights need at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from popxl_torch.ir.records import Buffer


@dataclass(frozen=True, slots=True)
class Slab:
    """Entries that are loaded together.

    Attributes:
        phase: what they belong to, such as a name scope.
        num_bytes: memory that they need.
        places: of the program that load them. More places count as more often.
        entries: what it consists of, buffer and number.
    """

    phase: str
    num_bytes: int
    places: int = 1
    entries: tuple[tuple[Buffer, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Residency:
    """A plan.

    Attributes:
        resident: numbers of the slabs that stay, in the order of execution.
        slots: through which the others pass; none if there are no others.
        slot_bytes: of each.
        peak_bytes: all that is in memory at a time.
        stored: numbers of the slabs that runs store to and that stay.
    """

    resident: tuple[int, ...]
    slots: int
    slot_bytes: int
    peak_bytes: int
    stored: tuple[int, ...] = ()


class BudgetError(Exception):
    """A budget that is too small. The message says what is needed."""


def plan_residency(
    slabs: Sequence[Slab],
    fixed: Mapping[str, int],
    budget: int,
    prefetch: int,
    stored: Sequence[Slab] = (),
) -> Residency:
    """The plan within a budget.

    Args:
        slabs: in the order of execution.
        fixed: bytes that are needed anyway, by what for.
        budget: in bytes; 0 for no limit.
        prefetch: reads ahead of the slab in use, each into a slot of its own. Where the memory for
            them is lacking, there are fewer.
        stored: what runs store to, in the order of execution.

    Raises:
        BudgetError: not even one slab fits at a time.
    """
    rooms = (budget - sum(fixed.values()) - _least(slabs, 1 + n) for n in range(prefetch, -1, -1))
    room = next((room for room in rooms if room >= 0), 0)
    staying = _fitting(stored, range(len(stored)), room) if budget else range(len(stored))
    size = sum(stored[n].num_bytes for n in staying)
    # Without any, it would not be said of them what is needed.
    needs = {**fixed, "stored buffers": size} if size else fixed
    weights = _plan_weights(slabs, needs, budget, prefetch)
    return replace(weights, stored=tuple(sorted(staying)))


def _least(slabs: Sequence[Slab], slots: int) -> int:
    """The least bytes that slabs need with so many slots, or all of them."""
    sizes = [slab.num_bytes for slab in slabs]
    ways = [slots * most + sum(size for size in sizes if size > most) for most in set(sizes)]
    return min(sum(sizes), *ways) if ways else 0


def _plan_weights(
    slabs: Sequence[Slab], fixed: Mapping[str, int], budget: int, prefetch: int
) -> Residency:
    needed, everything = sum(fixed.values()), sum(slab.num_bytes for slab in slabs)
    room = budget - needed
    if not budget or everything <= room:
        return Residency(tuple(range(len(slabs))), 0, 0, needed + everything)
    for slots in range(1 + prefetch, 0, -1):
        plans = [
            (resident, size)
            for size in sorted({slab.num_bytes for slab in slabs})
            if (resident := _resident(slabs, room - slots * size, size)) is not None
        ]
        if plans:
            resident, size = max(plans, key=lambda plan: _avoided(slabs, plan[0]))
            kept = sum(slabs[n].num_bytes for n in resident)
            return Residency(resident, slots, size, needed + kept + slots * size)
    raise BudgetError(_too_small(slabs, fixed, budget))


def _resident(slabs: Sequence[Slab], room: int, most: int) -> tuple[int, ...] | None:
    """The slabs that stay in ``room`` if the others are of ``most`` bytes at most; None if that
    cannot be."""
    chosen = {n for n, slab in enumerate(slabs) if slab.num_bytes > most}
    room -= sum(slabs[n].num_bytes for n in chosen)
    if room < 0:
        return None
    for places in sorted({slab.places for slab in slabs}, reverse=True):
        alike = [n for n, s in enumerate(slabs) if s.places == places and n not in chosen]
        more = _fitting(slabs, alike, room)
        chosen.update(more)
        room -= sum(slabs[n].num_bytes for n in more)
    return tuple(sorted(chosen))


def _fitting(slabs: Sequence[Slab], numbers: Sequence[int], room: int) -> list[int]:
    """As many of ``numbers`` as there is room for, at distances as even as may be."""
    chosen: dict[int, None] = {}
    for n in [*_spread(slabs, numbers, room), *numbers]:
        if n not in chosen and slabs[n].num_bytes <= room:
            chosen[n] = None
            room -= slabs[n].num_bytes
    return list(chosen)


def _spread(slabs: Sequence[Slab], numbers: Sequence[int], room: int) -> list[int]:
    """Some of ``numbers`` at even distances, of ``room`` bytes at most."""
    total = sum(slabs[n].num_bytes for n in numbers)
    if total <= room:
        return list(numbers)
    chosen, credit = [], 0
    for n in numbers:
        # The share of its bytes for which there is room; a whole slab's worth buys a slab.
        credit += slabs[n].num_bytes * room
        if credit >= slabs[n].num_bytes * total:
            credit -= slabs[n].num_bytes * total
            chosen.append(n)
    return chosen


def _avoided(slabs: Sequence[Slab], resident: Sequence[int]) -> int:
    """Bytes that need not be read, of all places."""
    return sum(slabs[n].num_bytes * slabs[n].places for n in resident)


def _too_small(slabs: Sequence[Slab], fixed: Mapping[str, int], budget: int) -> str:
    largest = max((slab for slab in slabs), key=lambda slab: slab.num_bytes, default=None)
    parts = [f"{size:,} for {what}" for what, size in fixed.items() if size]
    needed = sum(fixed.values())
    if largest is not None:
        parts.append(f"{largest.num_bytes:,} for the largest phase, {largest.phase or 'unnamed'}")
        needed += largest.num_bytes
    return (
        f"device_memory is {budget:,} bytes, but at least {needed:,} are needed"
        f" ({_mebibytes(needed)}): {', '.join(parts)}"
    )


def _mebibytes(size: int) -> str:
    return f"{-(-size // (1 << 20))}MiB"
