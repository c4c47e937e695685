"""The table of phases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from execution.report import human, memory_table, phase_table, read_trace

TRACE = {
    "version": 1,
    "runs": 2,
    "total_ms": 31.5,
    "regions": [
        {"name": "image_prefix", "runs": 2, "loaded_bytes": 1536, "copied_bytes": 0, "ms": 20.25},
        {"name": "decoder", "runs": 4, "loaded_bytes": 5_242_880, "copied_bytes": 7, "ms": 1.5},
    ],
}


def _write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_table_of_a_trace(tmp_path: Path) -> None:
    lines = phase_table(_write(tmp_path / "trace.json", TRACE)).split("\n")
    words = [line.split() for line in lines]
    assert words[0] == ["phase", "runs", "weights", "loaded", "bytes", "ms"]
    assert words[2] == ["image_prefix", "2", "1.50", "KiB", "1,536", "20.2"]
    assert words[3] == ["decoder", "4", "5.00", "MiB", "5,242,880", "1.50"]
    assert words[5] == ["total", "6", "5.00", "MiB", "5,244,416", "21.8"]
    assert len({len(line) for line in lines}) == 1


def test_what_belongs_to_no_phase_has_a_row(tmp_path: Path) -> None:
    region = {"name": "", "runs": 1, "loaded_bytes": 0, "ms": 0.5}
    (row,) = read_trace(_write(tmp_path / "trace.json", {"regions": [region]}))
    assert row.name == "between phases"


@pytest.mark.parametrize("path", [None, "missing.json"])
def test_no_trace_is_said(path: str | None, tmp_path: Path) -> None:
    table = phase_table(None if path is None else tmp_path / path)
    assert "no trace" in table
    assert "\n" not in table


@pytest.mark.parametrize("content", [[], {}, {"regions": [{"name": "x"}]}, {"regions": 3}])
def test_a_trace_of_another_form_is_none(content: object, tmp_path: Path) -> None:
    assert read_trace(_write(tmp_path / "trace.json", content)) is None


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (12_868_246_752, "11.98 GiB")],
)
def test_human(num_bytes: int, text: str) -> None:
    assert human(num_bytes) == text


PLAN = {
    "version": 1,
    "device": "cpu",
    "weights": "read",
    "budget_bytes": 2 << 30,
    "phases": [
        {"name": "embedding", "slabs": 1, "bytes": 2048, "resident_slabs": 0, "resident_bytes": 0,
         "streamed_slabs": 0, "streamed_bytes": 0, "mapped_bytes": 2048},
        {"name": "decoder", "slabs": 28, "bytes": 28 << 20, "resident_slabs": 1,
         "resident_bytes": 1 << 20, "streamed_slabs": 27, "streamed_bytes": 27 << 20,
         "mapped_bytes": 0},
    ],
    "storages": {"int8": 27 << 20, "float16": 1 << 20},
    "stored": [
        {"name": "decoder", "slabs": 28, "bytes": 28 << 10, "resident_slabs": 20,
         "resident_bytes": 20 << 10},
        {"name": "", "slabs": 1, "bytes": 4096, "resident_slabs": 1,
         "resident_bytes": 4096},
    ],
    "slots": 2, "slot_bytes": 1 << 20, "process_bytes": 5, "activation_bytes": 6,
    "stored_bytes": 7, "scratch_bytes": 8, "peak_bytes": (3 << 20) + 26,
}  # fmt: skip


def test_table_of_a_memory_plan(tmp_path: Path) -> None:
    table = memory_table(_write(tmp_path / "plan.json", PLAN))
    rows = {line.split("  ")[0]: line.split() for line in table.split("\n") if line}
    assert rows["embedding"][1:] == ["1", "2.00", "KiB", "-", "-", "2.00", "KiB"]
    resident, streamed = ["1", "=", "1.00", "MiB"], ["27", "=", "27.00", "MiB"]
    assert rows["decoder"][1:] == ["28", "28.00", "MiB", *resident, *streamed, "-"]
    assert rows["total"][1:] == ["29", "28.00", "MiB", *resident, *streamed, "2.00", "KiB"]
    assert "stored as: int8 27.00 MiB, float16 1.00 MiB" in rows
    assert rows["buffers (2 slots)"][-3] == "2,097,152"
    assert rows["peak"][1:] == ["3,145,754", "3.00", "MiB"]
    assert rows["budget"][1:] == ["2,147,483,648", "2.00", "GiB"]
    assert rows["keys and values"][-3:] == ["20,480", "20.00", "KiB"]
    assert table.split("\n")[-2:] == [
        "keys and values: 20 of 28 on the device (20.00 KiB), 8 of 28 off it (8.00 KiB)",
        "pictures: 1 of 1 on the device (4.00 KiB)",
    ]
    without = memory_table(_write(tmp_path / "plan.json", PLAN | {"budget_bytes": 0}))
    assert without.split("\n")[-3].split() == ["budget", "none"]


@pytest.mark.parametrize("content", [None, [], {}, {"phases": [{"name": "x"}]}])
def test_no_memory_plan_is_said(content: object, tmp_path: Path) -> None:
    path = tmp_path / "missing.json"
    if content is not None:
        _write(path, content)
    assert "no plan" in memory_table(path)
    assert "no plan" in memory_table(None)
