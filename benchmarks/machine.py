"""What this machine can do: the rates that every other figure is judged against.

Run as a program it prints them. A machine's speed drifts, so a benchmark takes these rates just
before and just after its own samples, and gives its result as a share of them.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

READ_BYTES = 1 << 29  # well beyond any cache
MATMUL_SIZE = 2048


@dataclass(frozen=True)
class Machine:
    """What the machine is, as it says itself."""

    cpu: str
    cores: int
    threads: int
    ram_gib: float
    system: str


@dataclass(frozen=True)
class Rates:
    """What the machine does at the moment: medians of a few samples."""

    read_gb_per_s: float
    matmul_gflops: float


def describe() -> Machine:
    """CPU model and family, cores this process may use, torch's threads, memory, system."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines() if _on_linux() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name", platform.processor() or platform.machine())
    family = f" (family {fields['cpu family']})" if "cpu family" in fields else ""
    return Machine(
        cpu=model + family,
        cores=len(os.sched_getaffinity(0)) if _on_linux() else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        ram_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
    )


def timed(action: Callable[[], object], repeats: int, warm_up: int = 1) -> list[float]:
    """Seconds of each of `repeats` calls, after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        action()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        samples.append(time.perf_counter() - start)
    return samples


def measure_rates(repeats: int = 5) -> Rates:
    """Bytes a second that all threads together read, and float32 FLOP a second of a matmul."""
    block = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    read_s = statistics.median(timed(block.sum, repeats))
    del block
    a, b = torch.ones(2, MATMUL_SIZE, MATMUL_SIZE)
    out = torch.empty_like(a)
    matmul_s = statistics.median(timed(lambda: torch.mm(a, b, out=out), repeats))
    return Rates(
        read_gb_per_s=round(READ_BYTES / read_s / 1e9, 2),
        matmul_gflops=round(2 * MATMUL_SIZE**3 / matmul_s / 1e9, 1),
    )


def int8_gops(repeats: int = 5) -> float:
    """Integer operations a second, in 1e9, of a matmul of 8 bits."""
    a, b = torch.ones(2, MATMUL_SIZE, MATMUL_SIZE, dtype=torch.int8)
    seconds = statistics.median(timed(lambda: torch._int_mm(a, b), repeats))
    return round(2 * MATMUL_SIZE**3 / seconds / 1e9, 1)


def _on_linux() -> bool:
    return platform.system() == "Linux"


def main() -> None:
    """Prints the machine and its rates."""
    for name, value in {**asdict(describe()), **asdict(measure_rates())}.items():
        print(f"{name:>16}  {value}")


if __name__ == "__main__":
    main()
