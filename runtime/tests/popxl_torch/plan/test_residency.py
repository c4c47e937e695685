"""Which slabs stay within a budget: laws that hold for every list of slabs and every budget."""

from __future__ import annotations

import numpy as np
import pytest
from popxl_torch.plan.residency import BudgetError, Slab, plan_residency

BLOCKS = [Slab("decoder", 100, 4)] * 28
FIXED = {"activations": 30, "the process": 70}


def _streamed(slabs: list[Slab], resident: tuple[int, ...]) -> list[Slab]:
    return [slab for n, slab in enumerate(slabs) if n not in resident]


def test_without_a_budget_or_with_room_for_all_everything_stays():
    for budget in (0, 2900):
        plan = plan_residency(BLOCKS, FIXED, budget, prefetch=1)
        assert plan.resident == tuple(range(28))
        assert (plan.slots, plan.peak_bytes) == (0, 2900)


def test_what_stays_is_spread_evenly_over_the_order():
    plan = plan_residency(BLOCKS, FIXED, 100 + 2 * 100 + 7 * 100, prefetch=1)
    assert (len(plan.resident), plan.slots, plan.slot_bytes) == (7, 2, 100)
    assert set(np.diff(plan.resident)) == {4}


def test_what_is_loaded_in_more_places_stays_first():
    slabs = [*[Slab("image", 100, 1)] * 5, *BLOCKS[:5]]
    plan = plan_residency(slabs, {}, 700, prefetch=1)
    assert plan.resident == (5, 6, 7, 8, 9)


def test_a_slab_that_would_make_the_slots_large_stays():
    slabs = [Slab("block", 100, 1), Slab("head", 1000, 1), *[Slab("block", 100, 1)] * 8]
    plan = plan_residency(slabs, {}, 1450, prefetch=1)
    assert 1 in plan.resident
    assert plan.slot_bytes == 100


@pytest.mark.parametrize(("prefetch", "slots"), [(0, 1), (1, 2), (4, 5)])
def test_each_read_ahead_has_a_slot(prefetch: int, slots: int):
    assert plan_residency(BLOCKS, {}, 1000, prefetch).slots == slots


def test_where_memory_for_reads_ahead_is_lacking_there_are_fewer():
    plan = plan_residency(BLOCKS, FIXED, 250, prefetch=4)
    assert (plan.resident, plan.slots) == ((), 1)


def test_a_budget_below_one_phase_says_what_is_needed():
    slabs = [*BLOCKS, Slab("lm_head", 400)]
    with pytest.raises(BudgetError, match=r"499 bytes, but at least 500 are needed .*lm_head"):
        plan_residency(slabs, FIXED, 499, prefetch=1)
    assert plan_residency(slabs, FIXED, 500, prefetch=1).slots == 1
    with pytest.raises(BudgetError, match="at least 100"):
        plan_residency([], FIXED, 99, prefetch=1)


def test_every_plan_keeps_its_budget_and_wastes_less_than_a_slab(rng: np.random.Generator):
    for _ in range(300):
        sizes, places = rng.integers(1, 50, size=(2, rng.integers(1, 12)))
        slabs = [Slab("p", int(s), int(p % 3)) for s, p in zip(sizes, places, strict=True)]
        prefetch, total = int(rng.integers(0, 4)), int(sizes.sum())
        budget = int(rng.integers(sizes.max(), total + 20)) + 10
        plan = plan_residency(slabs, {"process": 10}, budget, prefetch)
        assert plan.peak_bytes <= budget
        rest = _streamed(slabs, plan.resident)
        largest = max((slab.num_bytes for slab in rest), default=0)
        kept = total - sum(slab.num_bytes for slab in rest)
        assert plan.peak_bytes == 10 + kept + plan.slots * plan.slot_bytes
        assert largest <= plan.slot_bytes or not rest
        assert (plan.slots > 0) == bool(rest)
        assert all(slab.num_bytes > budget - plan.peak_bytes for slab in rest)


KEPT = [Slab("keys and values", 40, 4)] * 28


def test_what_is_stored_to_stays_first_beside_the_slots():
    room = 100 + 2 * 100
    plan = plan_residency(BLOCKS, FIXED, room + 28 * 40, 1, KEPT)
    assert (plan.stored, plan.resident, plan.slots) == (tuple(range(28)), (), 2)
    plan = plan_residency(BLOCKS, FIXED, room + 28 * 40 + 300, 1, KEPT)
    assert (len(plan.stored), len(plan.resident)) == (28, 3)
    plan = plan_residency(BLOCKS, FIXED, room + 7 * 40, 1, KEPT)
    assert (len(plan.stored), plan.resident, plan.slots) == (7, (), 2)
    assert set(np.diff(plan.stored)) == {4}
    assert plan.peak_bytes == room + 7 * 40


def test_without_a_budget_all_that_is_stored_to_stays():
    plan = plan_residency([], FIXED, 0, 1, KEPT)
    assert (plan.stored, plan.peak_bytes) == (tuple(range(28)), 100 + 28 * 40)


def test_what_is_stored_to_is_not_needed():
    assert plan_residency(BLOCKS, FIXED, 200, 1, KEPT).stored == ()
    with pytest.raises(BudgetError, match=r"at least 200 are needed .*: 30 for activations, 70 "):
        plan_residency(BLOCKS, FIXED, 199, 1, KEPT)
    assert plan_residency([], FIXED, 139, 1, KEPT).stored == ()
    assert len(plan_residency([], FIXED, 140, 1, KEPT).stored) == 1


def test_every_plan_with_stored_slabs_keeps_its_budget(rng: np.random.Generator):
    for _ in range(300):
        slabs, stored = (
            [Slab("p", int(size)) for size in rng.integers(1, 50, rng.integers(0, 9))] for _ in "ab"
        )
        prefetch = int(rng.integers(0, 3))
        largest = max((slab.num_bytes for slab in slabs), default=0)
        budget = 10 + largest + int(rng.integers(1, 400))
        plan = plan_residency(slabs, {"process": 10}, budget, prefetch, stored)
        kept = sum(stored[n].num_bytes for n in plan.stored)
        weights = sum(slabs[n].num_bytes for n in plan.resident)
        assert plan.peak_bytes == 10 + kept + weights + plan.slots * plan.slot_bytes <= budget
        # Weights stay beyond what they need only where all that is stored to does.
        if plan.slots and len(plan.stored) < len(stored):
            off = [s.num_bytes for n, s in enumerate(stored) if n not in plan.stored]
            assert plan.slots <= 1 + prefetch
            assert all(size > budget - plan.peak_bytes for size in off)
