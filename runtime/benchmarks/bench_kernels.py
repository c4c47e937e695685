"""Products with half-precision weights: the C++ kernels against torch's, by rows of activations.

Every round reads a block of memory, then takes each way once, in turn; the weights are several
copies used in rotation, so that no cache holds them. With few rows the figure is the share of the
read bandwidth of the same round, with many the rate; the ratio is of the same round too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from popxl_torch.kernels import linalg
from popxl_torch.kernels.native import native

from benchmarks import machine, record, table
from runtime.benchmarks.setting import native_name, setting

ROWS = (1, 2, 4, 6, 8, 12, 24, 168, 644)
WEIGHTS = ((16384, 4096), (4096, 16384))
COPIES = 4
MANY_ROWS = 24
"""Above, a product is bound by arithmetic: fewer rounds do."""

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def ways(rows: int) -> dict[str, Product]:
    """Functions of x and w, stored as (k, n) view of (n, k), by name."""
    found: dict[str, Product] = {"stock": _stock}
    if native() is not None:
        found["native"] = linalg._native_dot if rows <= linalg.DOT_ROWS else linalg._native_tiles
    if rows == 1:
        found["F.linear"] = lambda x, w: torch.nn.functional.linear(x.to(w.dtype), w.t())
    return found


def _stock(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """What is done where there is no library."""
    if w.dtype == torch.float16:
        own = x.shape[0] <= linalg.STOCK_ROWS
    else:
        own = linalg._multiplies_brain()
    return linalg._stock_product(x, w) if own else linalg._matmul_tiled(x, w)


def measure(
    rows: int, weights: list[torch.Tensor], block: torch.Tensor, rounds: int
) -> tuple[list[float], dict[str, list[float]]]:
    """(seconds of the read of `block`, seconds of each way), one value per round."""
    x = torch.randn(rows, weights[0].shape[0])
    reads: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in ways(rows)}
    turn = 0
    for _ in range(rounds):
        reads += machine.timed(block.sum, 1, warm_up=0)
        for name, product in ways(rows).items():
            w = weights[turn % len(weights)]
            turn += 1
            seconds[name] += machine.timed(lambda w=w, product=product: product(x, w), 1, 0)
    return reads[1:], {name: values[1:] for name, values in seconds.items()}


def row_of_table(
    rows: int, weight: torch.Tensor, reads: list[float], seconds: dict[str, list[float]]
) -> tuple[str, ...]:
    """Shape, rows, way by way the share of the bandwidth and the rate, ratio of the two."""
    weight_bytes = weight.numel() * weight.element_size()
    cells = ["×".join(map(str, weight.t().shape)), str(rows)]
    for name in ("native", "stock"):
        values = seconds.get(name)
        if not values:
            cells += ["not built", "-"]
            continue
        bandwidth = (machine.READ_BYTES / read for read in reads)
        pairs = zip(values, bandwidth, strict=True)
        share = statistics.median(weight_bytes / value / rate for value, rate in pairs)
        rate = 2e-9 * rows * weight.numel() / statistics.median(values)
        cells += [f"{share:.2f}", f"{rate:.0f}"]
    if "native" in seconds:
        pairs = zip(seconds["stock"], seconds["native"], strict=True)
        cells.append(f"{statistics.median(stock / ours for stock, ours in pairs):.1f}")
    else:
        cells.append("-")
    return tuple(cells)


def main() -> None:
    """Measures and prints; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21, help="rounds per row count")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--bfloat16", action="store_true", help="weights in bfloat16, not float16")
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.bfloat16 else torch.float16
    before = machine.measure_rates()
    block = torch.ones(machine.READ_BYTES // 8, dtype=torch.int64)
    table_rows, samples = [], {}
    for n, k in WEIGHTS:
        weights = [torch.randn(n, k).to(dtype).t() for _ in range(COPIES)]
        for rows in options.rows:
            rounds = options.rounds if rows <= MANY_ROWS else max(4, options.rounds // 4)
            reads, seconds = measure(rows, weights, block, rounds + 1)
            table_rows.append(row_of_table(rows, weights[0], reads, seconds))
            print(*table_rows[-1], flush=True)
            samples |= {f"{n}x{k}_{rows}_{way}_s": values for way, values in seconds.items()}
            samples[f"{n}x{k}_{rows}_read_s"] = reads
    brain = options.bfloat16 and linalg._multiplies_brain()
    outcome = record.Result(
        bench=f"runtime.benchmarks.bench_kernels{'_bfloat16' if options.bfloat16 else ''}",
        title=f"Products with weights in {str(dtype).removeprefix('torch.')}",
        columns=(
            "weight",
            "rows",
            "native: share of bandwidth",
            "GFLOP/s",
            "stock: share of bandwidth",
            "GFLOP/s",
            "stock / native, time",
        ),
        rows=table_rows,
        samples=samples,
        setting=setting(options.rounds),
        notes=(
            f"Instruction set of the C++ kernels: {native_name()}.",
            "Medians over rounds; share of bandwidth: bytes of the weight a second, over those of"
            " a plain read in the same round. Stock: "
            + (
                "F.linear, with the processor's products of bfloat16."
                if brain
                else f"F.linear for up to {linalg.STOCK_ROWS} rows of x and float16, else tiles"
                " widened to float32, then torch.mm."
            ),
            f"Native: sums along the rows of the weight for up to {linalg.DOT_ROWS} rows of x, then"
            " tiles."
            + f" Used: native for up to {linalg.BRAIN_DOT_ROWS} rows, then stock."
            * brain,
        ),
        command="runtime.benchmarks.bench_kernels" + (" --bfloat16" if options.bfloat16 else ""),
    )
    table.publish(outcome, [before, machine.measure_rates()])


if __name__ == "__main__":
    main()
