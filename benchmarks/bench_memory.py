"""Generation in less memory than the model, and with smaller weights, beside limits and peers.

A slice of the real widths, or with `--blocks 28` the whole model; random weights. `quantised`:
weights of 16, 8 and 4 bits in memory. `limited`: weights are mapped and anonymous memory is
limited. `capped`: all memory is capped, the page cache included. `budgets`: weights are read within
budgets. `batches`: several sequences under the cap.

Peers are accelerate, AirLLM and llama.cpp, each left out where its packages are not installed:

    pip install --no-deps --target FOLDER xllamacpp==2026.10.11549 gguf==0.19.0 airllm==4.0.0
    python -m benchmarks.bench_memory --packages FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks import gpu, memory_parts, memory_peers, table
from benchmarks.bench_generation import CACHE
from benchmarks.memory_setup import ALIKE, PEERS, STORAGE, Setup

PARTS = {
    "quantised": memory_peers.quantised,
    "limited": memory_peers.limited,
    "capped": memory_peers.capped,
    "budgets": memory_parts.budgets,
    "batches": memory_parts.batches,
}


def parse() -> tuple[Setup, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--preset", default="magma_v1_500", help="whose widths the model has")
    parser.add_argument("--blocks", type=int, default=8, help="decoder blocks")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument("--tokens", type=int, default=8, help="decode steps in a row")
    parser.add_argument("--spans", type=int, default=3, help="rows of steps where disks are read")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 4, 8, 16], help="in GiB")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--storage", nargs="+", choices=STORAGE, default=list(ALIKE))
    parser.add_argument("--kv-dtype", help="of keys and values, such as int8")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="see gpu.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=CACHE.with_name("memory"))
    parser.add_argument("--packages", type=Path, help="folder with peers' packages")
    parser.add_argument("--keep", action="store_true", help="leave the big files there")
    options = parser.parse_args()
    setup = Setup(
        preset=options.preset,
        blocks=options.blocks,
        rounds=options.rounds,
        tokens=options.tokens,
        spans=options.spans,
        budgets=tuple(options.budgets),
        batches=tuple(options.batches),
        storage=tuple(options.storage),
        kv_dtype=options.kv_dtype,
        peers=tuple(options.peers),
        folder=options.folder,
        packages=options.packages,
        threads=options.threads,
    )
    return setup, options


def main() -> None:
    """Measures and prints; see --help."""
    setup, options = parse()
    if options.device == "cuda":
        gpu.run([name for name in gpu.PARTS if name != "resident"], options, "bench_memory")
        return
    torch.set_num_threads(setup.threads)
    try:
        for part in options.parts:
            result, turns = PARTS[part](setup)
            table.publish(result, turns.frame())
    finally:
        if not options.keep:
            setup.delete_files()


if __name__ == "__main__":
    main()
