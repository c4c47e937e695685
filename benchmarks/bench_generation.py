"""Generation, beside peers and beside the machine's limits.

An 8-block slice of the real widths with random weights; the part "full" takes all blocks, one
engine after another (13 GB of disk, 24 GiB of memory). Peers are transformers' GPT-J and
llama.cpp, each left out, with a line that says so, where its packages are not installed:

    pip install --no-deps --target FOLDER xllamacpp==2026.10.11549 gguf==0.19.0
    python -m benchmarks.bench_generation --packages FOLDER
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from benchmarks import generation_parts, gpu, table
from benchmarks.generation_full import one_after_another
from benchmarks.generation_peers import AVX2_ONLY, ENGINES, Setup, beside_peers, in_bfloat16

CACHE = Path(__file__).parents[1] / "cache" / "generation"

PARTS = {
    "equal": generation_parts.equal,
    "overhead": generation_parts.overhead,
    "peers": beside_peers,
    "bfloat16": in_bfloat16,
    "full": one_after_another,
    "batch": generation_parts.batches,
    "length": generation_parts.lengths,
    "schemes": generation_parts.schemes,
}

FULL = {
    "rounds": 5,
    "tokens": 32,
    "prompts": 200,
    "batches": (1, 2, 4, 6, 12, 24),
    "peer_batches": (1, 8),
}
SHORT = {"rounds": 2, "tokens": 8, "prompts": 8, "batches": (1, 6), "peer_batches": (1,)}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="see gpu.py")
    parser.add_argument("--short", action="store_true", help="fewer rounds, tokens and batches")
    parser.add_argument("--rounds", type=int, help="turns of each engine")
    parser.add_argument("--tokens", type=int, help="new tokens of a run")
    parser.add_argument("--prompts", type=int, help="prompts whose ids are compared")
    parser.add_argument("--batches", type=int, nargs="+", help="sequences of a run")
    parser.add_argument(
        "--avx2", action="store_true", help="as on a processor that has no more than AVX2"
    )
    parser.add_argument("--peer-batches", type=int, nargs="+", help="of which peers run these")
    parser.add_argument("--preset", default="magma_v1_500", help="whose widths the slice has")
    parser.add_argument("--blocks", type=int, default=8, help="decoder blocks of the slice")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=CACHE, help="for files of some gigabytes")
    parser.add_argument("--packages", type=Path, help="folder with peers' packages")
    parser.add_argument("--keep", action="store_true", help="leave the big files there")
    return parser.parse_args()


def setup_of(options: argparse.Namespace) -> Setup:
    """What to measure: what the command line says, else the defaults."""
    sizes = dict(SHORT if options.short else FULL)
    sizes |= {name: getattr(options, name) for name in sizes if getattr(options, name) is not None}
    for name in ("batches", "peer_batches"):
        sizes[name] = tuple(sizes[name])
    return Setup(
        **sizes,
        preset=options.preset,
        blocks=options.blocks,
        engines=tuple(options.engines),
        folder=options.folder,
        packages=options.packages,
        threads=options.threads,
        avx2=options.avx2,
    )


def main() -> None:
    """Measures and prints; see --help."""
    options = parse()
    if options.device == "cuda":
        gpu.run(["resident"], options, "bench_generation")
        return
    setup = setup_of(options)
    if setup.avx2:  # before the first product here, and for all workers
        os.environ.update(AVX2_ONLY)
    torch.set_num_threads(setup.threads)
    try:
        for part in options.parts:
            for outcome, turns in PARTS[part](setup):
                table.publish(outcome, turns.frame())
    finally:
        if not options.keep:
            setup.remove_big_files()


if __name__ == "__main__":
    main()
