"""Pictures of kept results for the documents: tokens a second against budget and against batch.

Run as a program it writes docs/memory.svg from the newest results.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks import record

PICTURE = Path(__file__).parents[1] / "docs" / "memory.svg"

Points = dict[str, list[tuple[float, float, float]]]
"""By weights: budget or number of sequences, tokens a second, and what the limit allows."""


def points_of(content: dict[str, Any]) -> Points:
    """The rows of a table whose first cell names weights and a number."""
    column = content["columns"].index("limit, tokens/s")
    found: Points = {}
    for row in content["rows"]:
        name = re.fullmatch(r"(\w+), (\d+)(?: GiB)?", row[0])
        if name:
            point = (float(name[2]), float(row[1]), float(row[column]))
            found.setdefault(name[1], []).append(point)
    return {name: sorted(of) for name, of in found.items()}


def draw(axes: Axes, title: str, across: str, series: Points) -> None:
    """Measured as lines, the limit as rings of the same colour."""
    for name, of in sorted(series.items()):
        x, measured, limit = zip(*of, strict=True)
        (line,) = axes.plot(x, measured, marker="o", label=name)
        axes.plot(x, limit, "o", color=line.get_color(), fillstyle="none", markersize=11)
    ticks = sorted({x for of in series.values() for x, _, _ in of})
    axes.set(title=title, xlabel=across, ylabel="tokens/s", xscale="log", yscale="log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def picture(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws budgets beside batches, as far as they were measured.

    Args:
        results: By name of the benchmark.
        path: The picture.
    """
    pyplot.rcParams["svg.hashsalt"] = "memory"  # equal results make equal files
    parts = {}
    for part, heading in (
        ("budgets", ("one sequence", "budget, GiB")),
        ("batches", ("several sequences in 6 GiB", "sequences")),
    ):
        series: Points = {}
        for name, content in results.items():
            bench, _, kept = name.partition("_kv_")
            if bench.startswith(f"bench_memory_{part}_whole"):
                label = f", keys and values {kept}" if kept else ""
                series |= {f"{of}{label}": points for of, points in points_of(content).items()}
        if series:
            parts[heading] = series
    size = (5.5 * max(1, len(parts)), 4)
    figure, row = pyplot.subplots(1, max(1, len(parts)), figsize=size, squeeze=False)
    for axes, ((title, across), series) in zip(row[0], parts.items(), strict=False):
        draw(axes, title, across, series)
    figure.suptitle("Decode of the whole model, weights read from disk; rings: the limit")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Draws the newest results."""
    picture(record.newest(), PICTURE)


if __name__ == "__main__":
    main()
