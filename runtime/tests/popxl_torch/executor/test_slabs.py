"""Memory that files are read into."""

from __future__ import annotations

import ctypes
import itertools
from pathlib import Path

import pytest
from popxl_torch.executor.slabs import empty_pages

SMAPS = Path("/proc/self/smaps")
LARGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not SMAPS.exists() or not LARGE.exists(), reason="no large pages here")
def test_memory_that_files_are_read_into_is_to_have_large_pages():
    memory = empty_pages(8 << 20)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    lines = iter(SMAPS.read_text().splitlines())
    for line in lines:
        low, _, high = line.split(maxsplit=1)[0].partition("-")
        if int(low, 16) <= start < int(high, 16):
            break
        list(itertools.takewhile(lambda line: not line.startswith("VmFlags:"), lines))
    flags = next(line for line in lines if line.startswith("VmFlags:"))
    assert "hg" in flags.split()
    assert bytes(memory[:: 1 << 12]) == bytes(2048)
