"""What there is of the host's memory, as the system says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from popxl_torch.executor import host_memory
from popxl_torch.executor.host_memory import anonymous_bytes, available_bytes


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 3 GiB to spare, without a control group."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3145728 kB\n")
    monkeypatch.setattr(host_memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "GROUP", tmp_path)
    return tmp_path


def test_what_the_system_has_may_be_taken(system: Path) -> None:
    assert available_bytes() == 3 << 30
    (system / "memory.max").write_text("max\n")
    assert available_bytes() == 3 << 30


def test_a_control_group_limits_it_but_for_pages_of_files(system: Path) -> None:
    (system / "memory.max").write_text(f"{2 << 30}\n")
    (system / "memory.current").write_text(f"{2 << 30}\n")
    assert available_bytes() == 0
    (system / "memory.stat").write_text(f"anon 7\ninactive_file {1 << 30}\nactive_file 5\n")
    assert available_bytes() == 1 << 30


def test_a_system_that_says_nothing_has_nothing(system: Path) -> None:
    (system / "meminfo").unlink()
    assert available_bytes() == 0


@pytest.mark.skipif(not host_memory.STATUS.exists(), reason="this system has no such file")
def test_anonymous_memory_is_what_the_process_filled() -> None:
    before = anonymous_bytes()
    filled = np.ones(32 << 20, np.uint8)
    assert anonymous_bytes() - before > filled.nbytes // 2
