"""What the benchmark of memory stands on: limits, caps, direct reads, equal logits, whole parts."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    bench_memory,
    bench_start_up,
    machine,
    memory_parts,
    memory_setup,
    plot_memory,
    turns,
)
from benchmarks.disk import PIECE_BYTES, RUN_PIECES, _sample, direct_read_gb_per_s
from benchmarks.engine_memory import Steps
from benchmarks.memory import drop_from_page_cache
from benchmarks.memory_cap import memory_cap
from benchmarks.memory_setup import Measured, Setup
from benchmarks.turns import Turn, Turns
from benchmarks.workers import Worker
from utils.tokenizer import load_tokenizer

PLAN = {
    "phases": [
        {"name": "image_prefix", "bytes": 10**9, "streamed_bytes": 10**9},
        {"name": "decoder", "bytes": 8 * 10**9, "streamed_bytes": 3 * 10**9},
        {"name": "lm_head", "bytes": 2 * 10**9, "streamed_bytes": 10**9},
    ]
}
RATES = machine.Rates(20.0, 100.0)


def steps(logits: str = "", plan: dict | None = None) -> Measured:
    return Measured(Steps([1.0], 0, 0.0, logits, plan or {}), 2.0)


@pytest.mark.parametrize(
    ("disk", "flops", "limit"), [(2.0, 0.0, 2.0), (16.0, 0.0, 0.5), (16.0, 3e11, 3.0)]
)
def test_the_limit_is_what_the_slowest_of_disk_memory_and_arithmetic_allows(
    disk: float, flops: float, limit: float
):
    turn = Turn(Measured(steps(plan=PLAN).steps, disk), RATES, RATES)
    assert memory_setup.limit_s(turn, flops) == limit


def test_logits_that_differ_are_named():
    taken = Turns({name: [Turn(steps(name[0]), RATES, RATES)] for name in ("a1", "a2", "b")})
    memory_setup.check_identical(taken, {"a1": "a", "a2": "a", "b": "b"})
    with pytest.raises(RuntimeError, match="the logits differ between a1 and b"):
        memory_setup.check_identical(taken, {"a1": "a", "a2": "a", "b": "a"})


def test_direct_reads_have_a_rate(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(PIECE_BYTES + 5000))
    drop_from_page_cache(path)
    assert direct_read_gb_per_s([path, path]) > 0


def test_a_sample_of_large_files_is_spread_over_them():
    pieces = [(0, at) for at in range(10 * RUN_PIECES)]
    assert _sample(pieces[:40], 99) == pieces[:40]
    assert _sample(pieces, 1) == pieces[:1]
    starts = [at for _, at in _sample(pieces, 2 * RUN_PIECES)[::RUN_PIECES]]
    assert starts == [0, 5 * RUN_PIECES]


def test_budgets_stop_at_the_first_that_keeps_everything(tmp_path: Path):
    setup = Setup("tiny", 2, 1, tmp_path, 1, budgets=(2, 1, 4))
    assert memory_parts._telling(setup, "float16") == [1]


def test_a_limit_of_data_holds_in_its_process_only():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with Worker("tests.test_memory_benchmark:Limited", 64 << 20) as worker:
        assert worker.call("allocate", 16 << 20)
        assert not worker.call("allocate", 256 << 20)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_cap_holds_in_its_process_only():
    with memory_cap(512 << 20) as cap:
        if cap is None:
            pytest.skip("no cap on memory can be had here")
        with Worker("tests.test_memory_benchmark:Limited", launcher=cap.launcher) as worker:
            assert worker.call("allocate", 16 << 20)
            with pytest.raises(RuntimeError, match="ended with exit code -9"):
                worker.call("allocate", 768 << 20)
        with Worker("tests.test_memory_benchmark:Limited") as worker:
            assert worker.call("allocate", 768 << 20)
    assert not cap.launcher.exists()


def test_where_no_control_group_can_be_made_there_is_no_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "memory").mkdir()
    with memory_cap(1 << 30, tmp_path) as cap:
        assert cap is None
    assert [path.name for path in tmp_path.rglob("*")] == ["memory"]


class Limited:
    """Allocates within a limit."""

    def __init__(self, data_limit: int | None = None) -> None:
        from benchmarks.engine_memory import limit_data

        limit_data(data_limit)

    def allocate(self, size: int) -> bool:
        """Whether so many bytes can be had."""
        try:
            np.ones(size, np.uint8)
        except MemoryError:
            return False
        return True


def test_a_made_up_tokenizer_is_one(tmp_path: Path):
    bench_start_up.write_tokenizer(tmp_path, 1000)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 1000
    assert tokenizer.decode(tokenizer.encode("A lake, a cabin.")) == "A lake, a cabin."


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(turns.machine, "measure_rates", lambda repeats: RATES)
    return Setup(
        "tiny", 2, 1, tmp_path, 1, tokens=2, budgets=(1,), batches=(1, 2), storage=("float16",)
    )


@pytest.mark.long
@pytest.mark.parametrize("part", bench_memory.PARTS)
def test_a_part_runs_whole(part: str, setup: Setup):
    result, taken = bench_memory.PARTS[part](setup)
    assert len(result.rows) == len(taken.of) >= 1
    assert all(len(row) == len(result.columns) for row in result.rows)
    assert all(len(result.samples[f"{name}: step_s"]) == 2 for name in taken.of)


@pytest.mark.long
def test_a_start_is_measured(setup: Setup):
    folder = setup.model_folder("float16")
    bench_start_up.write_tokenizer(folder, setup.written_for.transformer.embedding.real_vocab_size)
    seconds, size = bench_start_up.start("Ours", folder, 1)
    assert 0 < seconds < 60
    assert 0 <= size < 1 << 30


def test_a_picture_has_what_was_measured(tmp_path: Path):
    columns = ("weights, budget", "tokens/s", "limit, tokens/s")
    rows = [("int8, 4 GiB", "2", "2.5"), ("int8, 2 GiB", "1", "1.2"), ("int8, mapped", "9", "9")]
    content = {"columns": columns, "rows": rows}
    assert plot_memory.points(content) == {"int8": [(2.0, 1.0, 1.2), (4.0, 2.0, 2.5)]}
    for name in ("one.svg", "two.svg"):
        plot_memory.picture({"bench_memory_budgets_whole": content}, tmp_path / name)
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert one == two
    assert "int8" in one
    assert "several sequences" not in one
