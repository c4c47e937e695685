"""What the benchmark of memory stands on: limits, caps, direct reads, equal logits, whole parts."""

from __future__ import annotations

import os
import resource
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    bench_memory,
    bench_start_up,
    disk,
    machine,
    memory_parts,
    memory_setup,
    memory_spans,
    plot_memory,
    turns,
)
from benchmarks.disk import PIECE_BYTES, read_gb_per_s
from benchmarks.engine_memory import Steps
from benchmarks.memory import drop_from_page_cache
from benchmarks.memory_cap import memory_cap
from benchmarks.memory_setup import Setup
from benchmarks.memory_spans import Frame, Measured, Span
from benchmarks.turns import Turn, Turns
from benchmarks.workers import Worker
from utils.tokenizer import load_tokenizer

PLAN = {
    "phases": [
        {"name": "image_prefix", "bytes": 10**9, "streamed_bytes": 10**9},
        {"name": "decoder", "bytes": 8 * 10**9, "streamed_bytes": 3 * 10**9},
        {"name": "lm_head", "bytes": 2 * 10**9, "streamed_bytes": 10**9},
    ],
    "stored": [
        {"name": "image_prefix", "bytes": 10**9, "resident_bytes": 0},
        {"name": "decoder", "bytes": 12 * 10**9, "resident_bytes": 4 * 10**9},
    ],
}
RATES = machine.Rates(20.0, 100.0)


def steps(logits: str = "", plan: dict | None = None) -> Steps:
    return Steps([1.0], 0, 0.0, logits, plan or {})


def span(before: float, after: float, seconds: float = 1.0) -> Span:
    taken = Steps([seconds], 0, 0.0, "", PLAN)
    return Span(taken, Frame(before, RATES, 400.0), Frame(after, RATES, 400.0))


@pytest.mark.parametrize(
    ("rate", "products", "filled", "limit"),
    [
        (2.0, 0.0, 0.0, 2.0),
        (2.0, 0.0, 0.5, 4.0),
        (16.0, 0.0, 0.0, 0.5),
        (16.0, 0.0, 0.5, 0.8),
        (16.0, 12e11, 0.5, 3.0),
    ],
)
def test_the_limit_is_what_the_slowest_of_disk_memory_and_arithmetic_allows(
    rate: float, products: float, filled: float, limit: float
):
    assert memory_spans.limit_s(span(0.75 * rate, 1.25 * rate), products, filled) == limit


def test_steps_count_where_the_disk_was_steady():
    taken = Measured([span(1.0, 1.1, 5.0), span(1.1, 2.5, 9.0), span(2.5, 2.4, 2.0)])
    assert taken.step_s == [5.0, 2.0]
    assert Measured(taken.spans[1:2]).step_s == [9.0]


def test_a_turn_goes_on_until_enough_spans_are_steady(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rates = iter([1.0, 2.0, 2.1, 2.0, 9.0])
    monkeypatch.setattr(memory_spans, "direct_read_gb_per_s", lambda _: next(rates))
    monkeypatch.setattr(memory_spans.machine, "measure_rates", lambda _: RATES)
    monkeypatch.setattr(memory_spans.machine, "int8_gops", lambda _: 400.0)
    start = partial(Worker, "tests.test_memory_benchmark:Counting")
    taken = memory_spans.fresh_turn(start, tmp_path, [[1, 2]], spans=2, tokens=3)
    assert [s.steady for s in taken.spans] == [False, True, True]
    assert [s.steps.step_s for s in taken.spans] == [[2, 3, 4], [6, 7, 8], [10, 11, 12]]
    assert memory_spans.steps_of_turn(2, 3) == 17
    assert taken.step_s == [6, 7, 8, 10, 11, 12]


class Counting:
    """Numbers its steps, the first of which follows the prompt, in place of their seconds."""

    def __init__(self) -> None:
        self._number = 0

    def steps(self, prompts: object, tokens: int, warm_up: int) -> Steps:
        """See :class:`benchmarks.engine_memory.Engine`."""
        assert (prompts is None) == (self._number > 0)
        self._number += warm_up + tokens
        numbers = range(self._number - tokens, self._number)
        return Steps([float(number) for number in numbers], 0, 0.0, plan=PLAN)


def test_logits_that_differ_are_named():
    taken = Turns({name: [Turn(steps(name[0]), RATES, RATES)] for name in ("a1", "a2", "b")})
    memory_setup.check_identical(taken, {"a1": "a", "a2": "a", "b": "b"})
    with pytest.raises(RuntimeError, match="the logits differ between a1 and b"):
        memory_setup.check_identical(taken, {"a1": "a", "a2": "a", "b": "a"})


def test_direct_reads_have_a_rate(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(bytes(PIECE_BYTES + 5000))
    drop_from_page_cache(path)
    assert read_gb_per_s([path, path], os.O_DIRECT, lead_s=0.01, span_s=0.1) > 0


def test_what_is_read_before_a_test_of_the_disk_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, seconds = tmp_path / "file", 0.001
    path.write_bytes(b"1")

    def read(*_: object) -> int:
        time.sleep(seconds)
        return PIECE_BYTES

    monkeypatch.setattr(disk.os, "preadv", read)
    most = disk.IN_FLIGHT * PIECE_BYTES / seconds / 1e9
    assert 0 < read_gb_per_s([path], lead_s=0.3, span_s=0.1) <= 1.05 * most


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
    monkeypatch.setattr(memory_spans, "direct_read_gb_per_s", lambda files: 2.0)
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


def test_other_keys_and_values_are_another_benchmark(tmp_path: Path):
    setup = Setup("tiny", 2, 1, tmp_path, 1, storage=("int8",), kv_dtype="int8")
    assert setup.config().transformer.execution.kv_dtype == "int8"
    assert setup.bench("batches") == "bench_memory_batches_whole_int8_kv_int8"
    assert setup.command("batches").endswith("--storage int8 --kv-dtype int8")
    assert setup.title("Decode") == "Decode, keys and values in int8: the whole model"


def test_a_picture_has_what_was_measured(tmp_path: Path):
    columns = ("weights, budget", "tokens/s", "limit, tokens/s")
    rows = [("int8, 4 GiB", "2", "2.5"), ("int8, 2 GiB", "1", "1.2"), ("int8, mapped", "9", "9")]
    content = {"columns": columns, "rows": rows}
    assert plot_memory.points_of(content) == {"int8": [(2.0, 1.0, 1.2), (4.0, 2.0, 2.5)]}
    names = ("bench_memory_budgets_whole", "bench_memory_budgets_whole_kv_int8")
    for name in ("one.svg", "two.svg"):
        plot_memory.picture(dict.fromkeys(names, content), tmp_path / name)
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert one == two
    assert "<!-- int8 -->" in one
    assert "<!-- int8, keys and values int8 -->" in one
    assert "several sequences" not in one
