"""The schedule of weights that stream to a device: right bytes whatever the device does when."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from popxl_torch.executor import file_reader
from popxl_torch.executor.device_slots import RING_PIECES, DeviceSlots
from popxl_torch.executor.file_ranges import MappedFiles, memory_range
from popxl_torch.executor.slabs import HostSlab
from popxl_torch.executor.streaming import Streamer
from popxl_torch.executor.trace import Trace
from popxl_torch.ir.records import Buffer, Spec
from popxl_torch.plan.residency import BudgetError, Slab, plan_residency

from runtime.tests.popxl_torch.simulated_device import SimulatedLink

PIECE = 8192


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_reader, "PIECE_BYTES", PIECE)


class Arrays:
    """A backend whose tensors are arrays."""

    def moved(self, array: np.ndarray, memory: np.ndarray, places: list[int]) -> np.ndarray:
        return np.ndarray(array.shape, array.dtype, memory, places[0], array.strides)


@dataclass
class Weights:
    """Slabs of some entries each: views of one file, or arrays of the host's memory."""

    slabs: list[HostSlab]
    buffers: list[Buffer]

    def entries(self, slab: int) -> list[tuple[Buffer, int]]:
        return list(self.slabs[slab].tensors)


def make_weights(rng: np.random.Generator, path: Path | None, sizes: list[list[int]]) -> Weights:
    files, slabs = MappedFiles(), []
    buffers = [
        Buffer(n, Spec((1,), "uint8"), len(sizes)) for n in range(max(len(s) for s in sizes))
    ]
    if path is not None:
        # Every slab begins at a page.
        whole = [sum(size) + -sum(size) % 4096 for size in sizes]
        path.write_bytes(rng.bytes(sum(whole)))
        mapped = np.memmap(path, np.uint8, "r")
        files.add(mapped)
    at = 0
    for number, slab in enumerate(sizes):
        tensors, start = {}, at
        for buffer, size in zip(buffers, slab, strict=False):
            array = (
                np.frombuffer(rng.bytes(size), np.uint8)
                if path is None
                else np.asarray(mapped[start : start + size])
            )
            tensors[buffer, number] = array
            start += size
        at = start + -start % 4096
        ranges = {}
        for key, array in tensors.items():
            found = files.find(array) or memory_range(array)
            assert found is not None
            ranges[key] = [found]
        slabs.append(HostSlab(tensors, ranges))
    return Weights(slabs, buffers)


class Device:
    """A streamer over a simulated link, and work that checks what it computes with."""

    def __init__(
        self,
        weights: Weights,
        rng: np.random.Generator,
        resident: tuple[int, ...] = (),
        slots: int = 2,
        prefetch: int = 1,
        pinned: bool = True,
        direct: bool = False,
    ) -> None:
        self.weights, self.link = weights, SimulatedLink(rng)
        images = [s for n, s in enumerate(weights.slabs) if n not in resident] if pinned else []
        self.maker = DeviceSlots(self.link, weights.slabs, images, direct)
        self.streamer = Streamer(
            weights.slabs, resident, slots, prefetch, self.maker, Arrays(), Trace("", "simulated")
        )
        self.checked = 0

    def load(self, slab: int) -> list[np.ndarray]:
        """All entries of a slab."""
        return [self.streamer.load(*entry) for entry in self.weights.entries(slab)]

    def compute(self, slab: int, tensors: list[np.ndarray]) -> None:
        """Work with tensors: it refers to memory as a kernel does, not to tensors."""
        expected = list(self.weights.slabs[slab].tensors.values())
        for tensor, wanted in zip(tensors, expected, strict=True):
            memory, place = self._found(tensor)

            def check(memory: Any = memory, place: int = place, wanted: Any = wanted) -> None:
                np.testing.assert_array_equal(memory[place : place + wanted.size], wanted)
                self.checked += 1

            self.link.compute(slab, check)

    def _found(self, tensor: np.ndarray) -> tuple[np.ndarray, int]:
        address = tensor.__array_interface__["data"][0]
        for memory in self.link.memories:
            place = address - memory.__array_interface__["data"][0]
            if 0 <= place < memory.size:
                return memory, place
        raise AssertionError("a tensor of no slot")

    def sweep(self, order: list[int]) -> None:
        """Load, compute, drop, one slab after the other."""
        for slab in order:
            self.compute(slab, self.load(slab))


@pytest.mark.parametrize("source", ["pinned", "memory", "file", "direct"])
@pytest.mark.parametrize("seed", range(8))
def test_work_sees_its_weights_whatever_runs_when(tmp_path: Path, seed: int, source: str):
    """Random slabs, plans within random budgets, orders that change, tensors that are kept."""
    rng = np.random.default_rng([seed, len(source)])
    count = int(rng.integers(2, 9))
    sizes = [rng.integers(1, 3 * PIECE, rng.integers(1, 4)).tolist() for _ in range(count)]
    on_disk = source in ("file", "direct") or (source == "pinned" and seed % 2 == 0)
    weights = make_weights(rng, tmp_path / "weights" if on_disk else None, sizes)
    summaries = [Slab("", slab.num_bytes) for slab in weights.slabs]
    total, prefetch = sum(s.num_bytes for s in summaries), int(rng.integers(0, 3))
    try:
        plan = plan_residency(summaries, {}, int(total * rng.uniform(0.3, 1)), prefetch)
    except BudgetError:
        plan = plan_residency(summaries, {}, max(s.num_bytes for s in summaries), prefetch)
    device = Device(
        weights, rng, plan.resident, plan.slots, prefetch, source == "pinned", source == "direct"
    )
    kept: list[tuple[int, list[np.ndarray]]] = []
    for _ in range(4):
        order = list(range(count))
        if rng.random() < 0.5:
            order = rng.integers(0, count, rng.integers(1, 2 * count)).tolist()
        for slab in order:
            tensors = device.load(slab)
            device.compute(slab, tensors)
            if rng.random() < 0.2:
                kept.append((slab, tensors))
            if kept and rng.random() < 0.4:
                device.compute(*kept.pop(int(rng.integers(len(kept)))))
    for slab, tensors in kept:
        device.compute(slab, tensors)
    device.link.finish()
    assert device.checked
    tensors = []
    device.streamer.close()
    assert device.link.closed


def test_a_slab_is_issued_before_the_one_in_front_of_it_computes():
    rng = np.random.default_rng(0)
    device = Device(make_weights(rng, None, [[100]] * 4), rng)
    device.sweep([0, 1, 2, 3])
    device.link.log.clear()
    device.sweep([0, 1, 2, 3])
    # The copy of 0 was issued at the end of the sweep before; each copy goes to the slot whose work
    # was queued just before.
    assert device.link.log == [
        ("copy", 1), ("wait", None), ("compute", 0),
        ("copy", 0), ("wait", None), ("compute", 1),
        ("copy", 1), ("wait", None), ("compute", 2),
        ("copy", 0), ("wait", None), ("compute", 3),
    ]  # fmt: skip
    device.streamer.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_sweep_copies_what_does_not_stay_once_and_never_idles(seed: int):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 10))
    weights = make_weights(rng, None, [[int(rng.integers(1, 9000))] for _ in range(count)])
    summaries = [Slab("", slab.num_bytes) for slab in weights.slabs]
    least = 2 * max(s.num_bytes for s in summaries)
    budget = max(least, int(sum(s.num_bytes for s in summaries) * rng.uniform(0.3, 0.9)))
    plan = plan_residency(summaries, {}, budget, 1)
    streamed = [n for n in range(count) if n not in plan.resident]
    device = Device(weights, rng, plan.resident, plan.slots)
    device.sweep([*range(count)] * 2)
    device.link.finish()
    before = device.link.copied_bytes
    for slab in range(count):
        tensors = device.load(slab)
        following = [n for n in (*range(slab + 1, count), *range(slab)) if n in streamed]
        wanted = [device.weights.slabs[n] for n in following[: plan.slots]]
        # No slot waits for anything but what comes next, and nobody has to ask for that.
        idle = [s for s in device.streamer._pool if not s.in_use and s.holds not in wanted]
        assert not idle
        assert len(streamed) < 2 or device.streamer._find(wanted[0]) is not None
        device.compute(slab, tensors)
        del tensors
    device.link.finish()
    assert device.link.copied_bytes - before == sum(summaries[n].num_bytes for n in streamed)
    assert len(device.link.memories) == len(plan.resident) + plan.slots
    assert sum(memory.size for memory in device.link.memories) <= budget
    device.streamer.close()


def test_what_is_pinned_comes_in_one_copy_and_the_rest_in_pieces(tmp_path: Path):
    rng = np.random.default_rng(0)
    sizes = [[3 * PIECE, PIECE // 2]] * 3
    pieces = 4
    for pinned, copies in ((True, 1), (False, pieces)):
        device = Device(make_weights(rng, tmp_path / "w", sizes), rng, pinned=pinned, prefetch=0)
        device.sweep([0])
        assert [kind for kind, _ in device.link.log].count("copy") == copies
        images = sum(slab.num_bytes for slab in device.weights.slabs) if pinned else 0
        assert device.link.pinned == RING_PIECES * PIECE + images
        assert device.maker.read_bytes(device.weights.slabs[0]) == (
            0 if pinned else device.weights.slabs[0].num_bytes
        )
        device.streamer.close()


def test_a_read_that_fails_is_told_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(0)
    device = Device(make_weights(rng, tmp_path / "w", [[PIECE * 3]] * 3), rng, pinned=False)
    preadv = os.preadv

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            device.load(0)
    monkeypatch.setattr(os, "preadv", preadv)
    device.sweep([0, 1, 2])
    device.link.finish()
    assert device.checked == 3
    device.streamer.close()


def test_a_file_that_is_not_there_leaves_no_threads(tmp_path: Path):
    rng = np.random.default_rng(0)
    weights, link = make_weights(rng, tmp_path / "w", [[100]]), SimulatedLink(rng)
    (tmp_path / "w").unlink()
    with pytest.raises(FileNotFoundError):
        DeviceSlots(link, weights.slabs, weights.slabs, direct=False)
