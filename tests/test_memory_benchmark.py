"""What the benchmark of memory stands on: the limit model, direct reads, limits, whole parts."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_memory, machine, turns
from benchmarks.bench_memory import Measured, Setup
from benchmarks.disk import PIECE_BYTES, direct_read_gb_per_s
from benchmarks.engine_memory import Steps
from benchmarks.turns import Turn
from benchmarks.workers import Worker

PLAN = {
    "phases": [
        {"name": "image_prefix", "bytes": 10**9, "streamed_bytes": 10**9},
        {"name": "decoder", "bytes": 8 * 10**9, "streamed_bytes": 3 * 10**9},
        {"name": "lm_head", "bytes": 2 * 10**9, "streamed_bytes": 10**9},
    ]
}


@pytest.mark.parametrize(("disk", "limit"), [(2.0, 2.0), (16.0, 0.5)])
def test_the_limit_is_what_the_slower_of_disk_and_memory_allows(disk: float, limit: float):
    rates = machine.Rates(20.0, 1.0)
    turn = Turn(Measured(Steps([1.0], 0, PLAN), disk), rates, rates)
    assert bench_memory._limit_s(turn) == limit


def test_direct_reads_have_a_rate(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(PIECE_BYTES + 5000))
    assert direct_read_gb_per_s([path, path]) > 0


def test_a_limit_of_data_holds_in_its_process_only():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with Worker("tests.test_memory_benchmark:Limited", 64 << 20) as worker:
        assert worker.call("allocate", 16 << 20)
        assert not worker.call("allocate", 256 << 20)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


class Limited:
    """Allocates within a limit."""

    def __init__(self, data_limit: int) -> None:
        from benchmarks.engine_memory import limit_data

        limit_data(data_limit)

    def allocate(self, size: int) -> bool:
        """Whether so many bytes can be had."""
        try:
            np.ones(size, np.uint8)
        except MemoryError:
            return False
        return True


@pytest.mark.long
@pytest.mark.parametrize("part", ["budgets", "capped"])
def test_a_part_runs_whole(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns.machine, "measure_rates", lambda repeats: machine.Rates(20.0, 1.0))
    setup = Setup("tiny", 2, 1, 2, (1,), ("float16",), tmp_path, 1)
    result, taken = bench_memory.PARTS[part](setup)
    assert len(result.rows) == len(taken.of) >= 1
    assert all(len(row) == len(result.columns) for row in result.rows)
    assert len(result.samples[f"{result.rows[0][0]}: step_s"]) == 2
