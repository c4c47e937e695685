"""Attention of a decode step over kept keys and values: C++ against torch, by length.

Every round reads a block of memory, then takes each way once, in turn; the keys and values are
several copies used in rotation, so that no cache holds them. The figure is the share of the read
bandwidth of the same round that the bytes of keys and values make.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from popxl_torch.ir.records import Spec
from popxl_torch.kernels import attention
from popxl_torch.kernels.native import native
from popxl_torch.kernels.registry import Site

from benchmarks import machine, record, table
from runtime.benchmarks.setting import native_name, setting

LENGTHS = (64, 256, 1024, 2048)
SEQUENCES = (1, 6)
HEADS, CHANNELS, SLOTS = 16, 256, 2048
COPIES = 4
ATTRS = {"scale": CHANNELS**-0.5, "mask": "visible", "fill": -65504.0, "rows_first": True}

Attend = Callable[..., torch.Tensor]
Cache = tuple[torch.Tensor, torch.Tensor]


def ways(shapes: list[tuple[int, ...]]) -> dict[str, Attend]:
    """Functions of q, k, v and a mask, by name."""
    site = Site("Attention", ATTRS, [Spec(shape, "float16") for shape in shapes], [])
    found = {
        "in pieces": attention._by_torch(site, (), attention._in_pieces),
        "widened": attention._by_torch(site, (), attention._fused),
    }
    if native() is not None:
        found["native"] = attention.attention(site, 0)
    return found


def measure(
    b: int, t: int, caches: list[Cache], block: torch.Tensor, rounds: int
) -> tuple[list[float], dict[str, list[float]]]:
    """(seconds of the read of `block`, seconds of each way), one value per round."""
    q = torch.randn(b, HEADS, 1, CHANNELS)
    mask = torch.ones(b, 1, 1, t, dtype=torch.bool)
    parts = [(keys[:b, :, :t], values[:b, :, :t]) for keys, values in caches]
    functions = ways([tuple(s.shape) for s in (q, *parts[0], mask)])
    reads: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    turn = 0
    for _ in range(rounds):
        reads += machine.timed(block.sum, 1, warm_up=0)
        for name, attend in functions.items():
            k, v = parts[turn % COPIES]
            turn += 1
            call = lambda k=k, v=v, attend=attend: attend(q, k, v, mask)  # noqa: E731
            seconds[name] += machine.timed(call, 1, warm_up=0)
    return reads[1:], {name: values[1:] for name, values in seconds.items()}


def row_of_table(
    b: int, t: int, reads: list[float], seconds: dict[str, list[float]]
) -> tuple[str, ...]:
    """Sequences, length, way by way milliseconds and share of the bandwidth, ratio of times."""
    size = 2 * b * HEADS * t * CHANNELS * 2
    cells = [str(b), str(t)]
    for name in ("native", "in pieces", "widened"):
        values = seconds.get(name)
        if not values:
            cells += ["not built", "-"]
            continue
        rates = (machine.READ_BYTES / read for read in reads)
        shares = (size / value / rate for value, rate in zip(values, rates, strict=True))
        cells += [f"{1e3 * statistics.median(values):.2f}", f"{statistics.median(shares):.2f}"]
    pairs = zip(seconds["in pieces"], seconds.get("native", ()), strict=False)
    ratios = [stock / ours for stock, ours in pairs]
    cells.append(f"{statistics.median(ratios):.1f}" if ratios else "-")
    return tuple(cells)


def main() -> None:
    """Measures and prints; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="rounds per length")
    options = parser.parse_args()
    before = machine.measure_rates()
    block = torch.ones(machine.READ_BYTES // 8, dtype=torch.int64)
    shape = (max(SEQUENCES), HEADS, SLOTS, CHANNELS)
    caches = [(torch.randn(shape).half(), torch.randn(shape).half()) for _ in range(COPIES)]
    rows, samples = [], {}
    for b in SEQUENCES:
        for t in LENGTHS:
            reads, seconds = measure(b, t, caches, block, options.rounds + 1)
            rows.append(row_of_table(b, t, reads, seconds))
            print(*rows[-1], flush=True)
            samples |= {f"{b}x{t}_{way}_s": values for way, values in seconds.items()}
            samples[f"{b}x{t}_read_s"] = reads
    outcome = record.Result(
        bench="runtime.benchmarks.bench_attention",
        title=f"Attention of one query over {HEADS} heads of {CHANNELS} float16 channels",
        columns=(
            "sequences",
            "keys",
            "native: ms",
            "share of bandwidth",
            "torch, in pieces: ms",
            "share of bandwidth",
            "torch, all widened: ms",
            "share of bandwidth",
            "in pieces / native, time",
        ),
        rows=rows,
        samples=samples,
        setting=setting(options.rounds),
        notes=(
            f"Instruction set of the C++ kernels: {native_name()}.",
            "Medians over rounds; share of bandwidth: bytes of the keys and values read a second,"
            " over those of a plain read in the same round. In pieces: what is done without the"
            " library; all widened: keys and values in float32, then"
            " F.scaled_dot_product_attention.",
        ),
    )
    table.publish(outcome, [before, machine.measure_rates()])


if __name__ == "__main__":
    main()
