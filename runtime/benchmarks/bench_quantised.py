"""Products with weights of 8 and 4 bits beside float16, by rows of activations.

Every round reads a block of memory, then takes each storage once, in turn; of each there are
several copies used in rotation, so that no cache holds them.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from popxl_torch.kernels.linalg import matmul_2d
from popxl_torch.kernels.quantised import GROUP, QuantisedTensor

from benchmarks import machine, record, table
from runtime.benchmarks.setting import native_name, setting

ROWS = (1, 2, 4, 6, 12, 24, 64, 168)
WEIGHTS = ((16384, 4096), (4096, 16384))
COPIES = 4
STORAGES = ("float16", "int8", "int4")


def random_weight(storage: str, n: int, k: int) -> torch.Tensor:
    """A matrix (k, n), stored by rows of n."""
    if storage == "float16":
        return torch.randn(n, k).half().t()
    geometry = torch.empty((n, k), dtype=torch.float16, device="meta").t()
    if storage == "int8":
        codes = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        return QuantisedTensor(codes, torch.rand(n), "int8", geometry)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
    return QuantisedTensor(codes, torch.rand(n, k // GROUP).half(), "int4", geometry)


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes that a product has to read."""
    return weight.stored_bytes if isinstance(weight, QuantisedTensor) else weight.nbytes


def measure(
    rows: int, weights: dict[str, list[torch.Tensor]], block: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    """Seconds of the read of ``block`` ("read") and of each storage, one value per round."""
    x = torch.randn(rows, weights["float16"][0].shape[0])
    seconds: dict[str, list[float]] = {name: [] for name in ("read", *weights)}
    for turn in range(rounds):
        seconds["read"] += machine.timed(block.sum, 1, warm_up=0)
        for name, copies in weights.items():
            w = copies[turn % COPIES]
            seconds[name] += machine.timed(lambda w=w: matmul_2d(x, w), 1, 0)
    return {name: values[1:] for name, values in seconds.items()}


def row_of_table(
    rows: int, weights: dict[str, list[torch.Tensor]], seconds: dict[str, list[float]]
) -> tuple[str, ...]:
    """Shape, rows, of each storage its share of the bandwidth and its speed beside float16."""
    cells = ["×".join(map(str, weights["float16"][0].t().shape)), str(rows)]
    for name, copies in weights.items():
        size = stored_bytes(copies[0])
        pairs = zip(seconds[name], seconds["read"], strict=True)
        share = statistics.median(size / s / (machine.READ_BYTES / read) for s, read in pairs)
        cells.append(f"{share:.2f}")
        if name != "float16":
            pairs = zip(seconds["float16"], seconds[name], strict=True)
            cells.append(f"{statistics.median(half / ours for half, ours in pairs):.2f}")
    return tuple(cells)


def main() -> None:
    """Measures and prints; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="rounds per row count")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    options = parser.parse_args()
    before = machine.measure_rates()
    block = torch.ones(machine.READ_BYTES // 8, dtype=torch.int64)
    table_rows, samples = [], {}
    for n, k in WEIGHTS:
        weights = {s: [random_weight(s, n, k) for _ in range(COPIES)] for s in STORAGES}
        for rows in options.rows:
            rounds = options.rounds if rows <= 24 else max(4, options.rounds // 4)
            seconds = measure(rows, weights, block, rounds + 1)
            table_rows.append(row_of_table(rows, weights, seconds))
            print(*table_rows[-1], flush=True)
            samples |= {f"{n}x{k}_{rows}_{name}_s": values for name, values in seconds.items()}
    outcome = record.Result(
        bench="runtime.benchmarks.bench_quantised",
        title="Products with weights of 8 and 4 bits",
        columns=(
            "weight",
            "rows",
            "float16: share of bandwidth",
            "int8: share",
            "float16 / int8, time",
            "int4: share",
            "float16 / int4, time",
        ),
        rows=table_rows,
        samples=samples,
        setting=setting(options.rounds),
        notes=(
            f"Instruction set of the C++ kernels: {native_name()}.",
            "Medians over rounds; share of bandwidth: stored bytes a second, over those of a plain"
            " read in the same round.",
        ),
    )
    table.publish(outcome, [before, machine.measure_rates()])


if __name__ == "__main__":
    main()
