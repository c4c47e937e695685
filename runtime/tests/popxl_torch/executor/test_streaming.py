"""Weights that are read within a budget: the same bits as mapped ones, whatever the budget."""

from __future__ import annotations

import errno
import gc
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import popart
import pytest
from popxl_torch.executor import memory_plan, placement

from runtime.tests.popxl_torch.streamed_models import (
    LAYERS,
    SIDE,
    SLAB,
    Model,
    random_loads,
    write_weights,
)

PROCESS, SCRATCH = 1_000_000, 1_000


@pytest.fixture(autouse=True)
def known_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "anonymous_bytes", lambda: PROCESS - SCRATCH)
    monkeypatch.setattr(placement, "SCRATCH_BYTES", SCRATCH)


@pytest.fixture
def path(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Weights of the model, and more than random programs need."""
    return write_weights(tmp_path / "weights.bin", rng)


def _readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("popxl_torch_read")]


@contextmanager
def opened(path: Path, **options) -> Iterator[Model]:
    model = Model(path, **options)
    with model.session:
        yield model
    assert not _readers()


def _twice(model: Model) -> None:
    """Two runs: the first may find all that it needs read already."""
    model.run(1)
    model.run(1)


def _expected(path: Path, **options) -> list[np.ndarray]:
    with opened(path, **options) as model:
        return [model.run(seed) for seed in range(4)]


def _budget(slabs: float, path: Path) -> int:
    """Bytes for so many slabs besides what is needed anyway."""
    with opened(path, weights="read", memory_plan=path.with_suffix(".json")):
        plan = json.loads(path.with_suffix(".json").read_text())
    return PROCESS + plan["activation_bytes"] + int(slabs * SLAB)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("slabs", [1, 2, 3, 4.5, LAYERS])
def test_every_budget_gives_the_same_bits(path: Path, slabs: float, prefetch: int):
    expected, budget = _expected(path), _budget(slabs, path)
    options = {"weights": "read", "device_memory": budget, "prefetch": prefetch}
    with opened(path, **options) as model:
        for seed, wanted in enumerate(expected):
            np.testing.assert_array_equal(model.run(seed), wanted)
        assert model.streamer.extra_slots == 0
        memory = [*model.streamer._homes.values(), *model.streamer._pool]
        assert sum(slot.num_bytes for slot in memory) <= slabs * SLAB


@pytest.mark.parametrize("keep", [1, 3])
def test_memory_that_is_still_used_is_not_written_to(path: Path, keep: int):
    expected = _expected(path, keep=keep)
    options = {"weights": "read", "device_memory": _budget(2, path)}
    with opened(path, keep=keep, **options) as model:
        for seed, wanted in enumerate(expected):
            np.testing.assert_array_equal(model.run(seed), wanted)
        # Two are planned: one is for the layers at hand.
        assert model.streamer.extra_slots >= keep - 1


def test_what_stays_is_read_once_and_the_rest_in_every_run(path: Path, tmp_path: Path):
    trace = tmp_path / "trace.json"
    options = {"weights": "read", "device_memory": _budget(4, path), "trace": trace}
    with opened(path, **options) as model:
        read = []
        for seed in range(4):
            model.run(seed)
            regions = {r["name"]: r for r in json.loads(trace.read_text())["regions"]}
            read.append(regions["layers"]["read_bytes"])
    assert np.diff(read).tolist() == [4 * SLAB] * 3
    assert read[0] == LAYERS * SLAB
    assert regions["layers"]["loaded_bytes"] == 4 * LAYERS * SLAB
    assert regions["layers"]["copied_bytes"] == 0
    assert 0 <= regions["layers"]["stall_ms"] <= regions["layers"]["ms"]
    assert regions["table"]["read_bytes"] == 0


def test_the_next_run_begins_with_what_was_read_ahead(path: Path):
    with opened(path, weights="read", device_memory=_budget(2, path)) as model:
        for seed in range(3):
            model.run(seed)
        first = next(iter(model.streamer._slab_of.values()))
        assert model.streamer._find(first) is not None


def test_the_plan_is_written_as_it_is_documented(path: Path, tmp_path: Path):
    file = tmp_path / "plan.json"
    budget = _budget(4, path)
    with opened(path, weights="read", device_memory=budget, memory_plan=file):
        plan = json.loads(file.read_text())
    assert memory_plan.__doc__ is not None
    assert all(f'"{key}"' in memory_plan.__doc__ for key in (*plan, *plan["phases"][0]))
    table, layers = plan["phases"]
    assert table["mapped_bytes"] == table["bytes"] == SIDE * SIDE * 4
    assert (layers["slabs"], layers["resident_slabs"], layers["streamed_slabs"]) == (6, 2, 4)
    assert layers["bytes"] == layers["resident_bytes"] + layers["streamed_bytes"] == 6 * SLAB
    assert (plan["slots"], plan["slot_bytes"]) == (2, SLAB)
    assert plan["peak_bytes"] == budget == plan["budget_bytes"]
    assert (plan["process_bytes"], plan["scratch_bytes"]) == (PROCESS - SCRATCH, SCRATCH)


def test_the_null_backend_plans_without_weights(path: Path, tmp_path: Path):
    plans = [tmp_path / "with.json", tmp_path / "without.json"]
    budget = _budget(4, path)
    options = {"weights": "read", "device_memory": budget}
    with opened(path, memory_plan=plans[0], **options):
        pass
    model = Model(path, memory_plan=plans[1], backend="null", **options)
    with model.session:
        pass
    first, second = (json.loads(plan.read_text()) for plan in plans)
    assert first | {"device": "null"} == second


def test_a_budget_that_is_too_small_says_what_is_needed(path: Path):
    budget = _budget(1, path)
    for options in ({"prefetch": 0}, {"prefetch": 2}, {"backend": "null"}):
        model = Model(path, weights="read", device_memory=budget - 1, **options)
        with pytest.raises(popart.session.OutOfMemoryException, match=f"{budget:,} are needed"):
            model.session.__enter__()
    # Mapped weights are in no budget, but activations are.
    with opened(path, device_memory=budget - SLAB):
        pass
    model = Model(path, device_memory=budget - SLAB - 1)
    with pytest.raises(popart.session.OutOfMemoryException, match="needed"):
        model.session.__enter__()


def test_weights_that_are_no_files_are_used_where_they_are(path: Path, rng: np.random.Generator):
    with opened(path, weights="read") as model:
        arrays = [rng.normal(size=(SIDE, SIDE)).astype("float32") for _ in model.weights]
        model.session.write_variables_data(dict(zip(model.weights, arrays, strict=True)))
        assert model.streamer is None
        read = model.run()
    with opened(path) as model:
        model.session.write_variables_data(dict(zip(model.weights, arrays, strict=True)))
        np.testing.assert_array_equal(model.run(), read)


def test_a_read_that_fails_ends_the_run_and_not_the_session(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = _expected(path)
    with opened(path, weights="read", device_memory=_budget(2, path)) as model:
        model.run(0)
        preadv = os.preadv

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "preadv", fail)
        for _ in range(2):
            with pytest.raises(OSError, match=r"weights\.bin"):
                _twice(model)
        monkeypatch.setattr(os, "preadv", preadv)
        np.testing.assert_array_equal(model.run(2), expected[2])


def test_a_file_that_is_missing_when_the_session_begins_is_named(path: Path):
    model, expected = Model(path, weights="read"), _expected(path)
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        model.session.__enter__()
    path.with_name("elsewhere").rename(path)
    with model.session:
        np.testing.assert_array_equal(model.run(), expected[0])


def test_a_session_can_be_left_and_entered_again(path: Path):
    model, expected = Model(path, weights="read"), _expected(path)
    for seed in range(2):
        with model.session:
            np.testing.assert_array_equal(model.run(seed), expected[seed])
        assert model.streamer is None
        assert not _readers()


def test_a_session_that_is_never_left_ends_its_threads_when_it_is_gone(path: Path):
    model = Model(path, weights="read")
    model.session.__enter__()
    model.run()
    assert _readers()
    del model
    gc.collect()
    for thread in _readers():
        thread.join(timeout=10)
    assert not _readers()


def test_replicas_one_by_one_use_the_mapped_files(path: Path):
    expected = _expected(path)[0]
    with opened(path, weights="read", executor="interpreter") as model:
        np.testing.assert_allclose(model.run(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_give_the_same_bits(path: Path, tmp_path: Path, seed: int):
    expected = random_loads(path, seed)
    plan = tmp_path / "plan.json"
    random_loads(path, seed, weights="read", memory_plan=plan, prefetch=seed % 4)
    most = json.loads(plan.read_text())["peak_bytes"]
    ran = 0
    for share in (0.2, 0.4, 0.6, 0.8, 1):
        budget = PROCESS + int((most - PROCESS) * share)
        try:
            found = random_loads(
                path, seed, weights="read", device_memory=budget, prefetch=seed % 4
            )
        except popart.session.OutOfMemoryException:
            continue
        ran += 1
        np.testing.assert_array_equal(found, expected)
    assert ran
