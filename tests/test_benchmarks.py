"""What the benchmarks share: kept samples, tables, memory."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import bench_plan_overhead, bench_tensor_parallel, machine, record, table
from benchmarks.memory import PeakMemory, resident_bytes

RATES = [machine.Rates(20.0, 100.0), machine.Rates(21.0, 99.0)]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path


def outcome(bench: str = "bench_x", value: str = "1.5") -> record.Result:
    return record.Result(
        bench=bench,
        title="A title",
        columns=("what", "ms"),
        rows=[("a long name", value), ("b", "22.25")],
        samples={"a_ms": [1.0, 2.0]},
        notes=("A note.",),
    )


def test_a_table_is_aligned():
    assert table.markdown(("what", "ms"), [("a long name", "1.5"), ("b", "22.25")]) == (
        "| what        |    ms |\n"
        "| ----------- | ----: |\n"
        "| a long name |   1.5 |\n"
        "| b           | 22.25 |"
    )


def test_a_kept_result_has_what_is_needed_to_judge_it(results):
    content = json.loads(record.keep(outcome(), RATES).read_text())
    assert {"date", "commit", "machine", "versions", "setting"} <= content.keys()
    assert content["samples"] == {"a_ms": [1.0, 2.0]}
    assert [rate["read_gb_per_s"] for rate in content["rates"]] == [20.0, 21.0]
    assert content["machine"]["cores"] >= 1
    assert {"python", "torch", "numpy", "popxl-torch"} <= content["versions"].keys()


def test_the_document_takes_the_newest_result_of_each_benchmark(results):
    old, new = (json.loads(record.keep(outcome(value=v), RATES).read_text()) for v in ("1", "2"))
    other = json.loads(record.keep(outcome("bench_y", "3"), RATES).read_text())
    for name, content in (("20260102", new), ("20260101", old), ("20250101", other)):
        (results / f"{name}.json").write_text(json.dumps(content))
    for path in results.glob("*bench_*.json"):
        path.unlink()
    text = table.document(record.newest(results))
    assert "| a long name |     2 |" in text
    assert "| a long name |     1 |" not in text
    assert "20.0 GB/s, 100.0 GFLOP/s and 21.0 GB/s, 99.0 GFLOP/s" in text
    assert text.count("## A title") == 2
    assert text.count("- A note.") == 2


def test_peak_memory_sees_what_was_freed():
    before = resident_bytes()["anonymous"]
    size = 64 << 20
    with PeakMemory() as peak:
        block = np.ones(size, np.uint8)
        assert resident_bytes()["anonymous"] >= before + size // 2
        peak._sample()
        del block
    assert peak.bytes["anonymous"] >= before + size // 2


def test_rates_are_of_this_world():
    rates = machine.measure_rates(repeats=1)
    assert 0.1 < rates.read_gb_per_s < 10_000
    assert 0.1 < rates.matmul_gflops < 1_000_000


def test_the_ratio_of_paired_runs_decides():
    samples = {"rows168_tp1_ms": [10.0, 20.0, 10.0], "rows168_tp4_ms": [10.5, 22.0, 30.0]}
    row = bench_tensor_parallel.row(168, samples)
    assert row == ("168", "10 / 10", "22 / 10", "1.100", "1.050", "yes")


@pytest.mark.parametrize("rows", bench_tensor_parallel.ROWS)
@pytest.mark.parametrize("tensor_parallel", bench_tensor_parallel.DEGREES)
def test_the_block_has_the_real_size(rows, tensor_parallel):
    config = bench_tensor_parallel.one_block(rows, tensor_parallel)
    assert config.total_tokens == rows
    assert config.tensor_parallel == tensor_parallel
    assert (config.transformer.hidden_size, config.transformer.attention.heads) == (4096, 16)


def test_a_step_is_counted_once_a_run(monkeypatch):
    config = bench_plan_overhead.without_loops()
    steps, values = bench_plan_overhead.measure(config, "null", repeats=3)
    assert steps > 50
    assert len(values) == 3
    assert all(value > 0 for value in values)


def test_an_environment_variable_is_restored(monkeypatch):
    monkeypatch.setenv("MAGMA_TEST_SET", "old")
    monkeypatch.delenv("MAGMA_TEST_UNSET", raising=False)
    for name in ("MAGMA_TEST_SET", "MAGMA_TEST_UNSET"):
        with bench_plan_overhead.environment(name, "new"):
            assert bench_plan_overhead.os.environ[name] == "new"
    assert bench_plan_overhead.os.environ["MAGMA_TEST_SET"] == "old"
    assert "MAGMA_TEST_UNSET" not in bench_plan_overhead.os.environ
