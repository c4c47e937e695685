"""A checkpoint of the full size: how long it takes to load, to the first token, and per token.

The checkpoint is random, which changes no time, and is written by the project's own writer into
cache/ unless --checkpoint names one. Writing and running are processes of their own, so that each
has a peak of memory of its own. The recompute scheme runs the whole padded sequence for every
token.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks import machine, record, table
from benchmarks.memory import PeakMemory
from config.config import MagmaConfig
from config.parsing import load_preset

CACHE = Path(__file__).parents[1] / "cache"
GIB = 2**30
PROMPT_TOKENS = 8
Samples = dict[str, list[float]]


def write(path: Path, config: MagmaConfig) -> Samples:
    """Writes the checkpoint; seconds and peak memory."""
    from utils.checkpoint_writer import write_random_checkpoint

    with PeakMemory() as peak:
        start = time.perf_counter()
        write_random_checkpoint(path, config)
        seconds = time.perf_counter() - start
    return {"write_s": [seconds], "write_peak_gib": [peak.bytes["total"] / GIB]}


def run(path: Path, config: MagmaConfig, tokens: int) -> Samples:
    """Builds the program, loads the checkpoint and makes tokens; seconds and peak memory."""
    with PeakMemory() as peak:
        start = time.perf_counter()
        from execution.generate import generate
        from execution.weights import load_weights
        from inference import inference
        from modelling.mapping import model_weights
        from utils.checkpoint import open_checkpoint
        from utils.sampling import Sampling

        times = {"import": time.perf_counter()}
        session = inference(config)
        times["build"] = time.perf_counter()
        load_weights(session, model_weights(config, open_checkpoint(path, config)))
        times["load"] = time.perf_counter()
        loaded_bytes = dict(peak.bytes)
        rng = np.random.default_rng(0)
        side = config.visual.image_resolution
        image = rng.standard_normal((3, side, side), dtype=np.float32)
        prompt = rng.integers(0, config.transformer.embedding.real_vocab_size, PROMPT_TOKENS)
        finished: list[float] = []
        with session:
            generate(
                session,
                config,
                image,
                [prompt.tolist()],
                Sampling(temperature=0.0),
                tokens,
                eos_id=config.transformer.embedding.real_vocab_size - 2,
                on_token=lambda *_: finished.append(time.perf_counter()),
            )
    marks = [start, *times.values(), finished[0]]
    names = ("import_s", "build_s", "load_s", "first_token_s")
    samples = {name: [b - a] for name, (a, b) in zip(names, pairwise(marks), strict=True)}
    samples["token_s"] = np.diff(finished).tolist()
    samples["start_to_first_token_s"] = [finished[0] - start]
    for kind, size in peak.bytes.items():
        samples[f"peak_{kind}_gib"] = [size / GIB]
    samples["loaded_anonymous_gib"] = [loaded_bytes["anonymous"] / GIB]
    return samples


def apart(function, *arguments) -> Samples:
    """Calls a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def result(name: str, config: MagmaConfig, path: Path, samples: Samples) -> record.Result:
    """The table and what stands behind it."""
    labels = {
        "write_s": ("write a random checkpoint", "s"),
        "write_peak_gib": ("writing, peak resident memory", "GiB"),
        "build_s": ("build the program", "s"),
        "load_s": ("open the checkpoint and hand over its weights", "s"),
        "loaded_anonymous_gib": ("loaded, anonymous memory (peak so far)", "GiB"),
        "first_token_s": ("first token, once loaded", "s"),
        "start_to_first_token_s": ("first token, from the start of the process", "s"),
        "token_s": ("each later token, median", "s"),
        "peak_total_gib": ("peak resident memory, mapped file included", "GiB"),
        "peak_anonymous_gib": ("peak anonymous memory", "GiB"),
    }
    rows = [
        (label, f"{np.median(samples[key]):.2f} {unit}")
        for key, (label, unit) in labels.items()
        if samples.get(key)
    ]
    size_gb = path.stat().st_size / 1e9
    return record.Result(
        bench="bench_first_token",
        title=f"First token of a checkpoint of the full size ({name}, recompute scheme)",
        columns=("what", "measured"),
        rows=rows,
        samples=samples,
        setting={"config": config.as_dict(), "checkpoint_bytes": path.stat().st_size},
        notes=(
            f"Random weights in the published layout, {size_gb:.2f} GB, tensor parallelism"
            f" {config.tensor_parallel}; {config.total_tokens} positions run for every token.",
            "The file was in the page cache, as far as memory allows: it had just been written."
            if "write_s" in samples
            else "The file existed; how much of it was in the page cache is not known.",
        ),
    )


def main() -> None:
    """Measures and prints; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="magma_v1_500", help="preset to measure")
    parser.add_argument("--checkpoint", type=Path, help="an existing checkpoint; else cache/")
    parser.add_argument("--tokens", type=int, default=2, help="tokens to make")
    parser.add_argument("--again", action="store_true", help="write even where the file exists")
    options = parser.parse_args()
    config = load_preset(options.config)
    path = options.checkpoint or CACHE / f"random_{options.config}.pt"
    before = machine.measure_rates()
    samples: Samples = {}
    if options.again or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        samples |= apart(write, path, config)
    samples |= apart(run, path, config, options.tokens)
    outcome = result(options.config, config, path, samples)
    table.publish(outcome, [before, machine.measure_rates()])


if __name__ == "__main__":
    main()
