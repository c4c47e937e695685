"""From nothing but imports to the first operation: a model folder in the page cache, beside
transformers' load of as many weights.

    python -m benchmarks.bench_start_up
    python -m benchmarks.bench_start_up --blocks 28 --alone      # the whole model, ours only
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks import record, table
from benchmarks.bench_generation import CACHE
from benchmarks.memory import PeakMemory, resident_bytes
from benchmarks.memory_setup import Setup
from benchmarks.turns import Turns, ratio, take_turns
from benchmarks.workers import Worker
from utils.checkpoint_sources import SHIPPED_PRESET
from utils.files import atomic_file
from utils.model_folder import folder_config
from utils.tokenizer import END_OF_TEXT, has_tokenizer

Start = tuple[float, int]
"""Seconds from entering the call to the first operation, and bytes of anonymous memory then."""

GB = 1e9
OURS = "ours"
PEER = "transformers from_pretrained, fp16"


class Ours:
    """This project, imported."""

    def __init__(self, threads: int) -> None:
        """Imports all that a start needs, by opening a session of the small model that ships."""
        torch.set_num_threads(threads)
        from execution.magma import Magma

        self._magma = Magma
        with Magma.from_pretrained(SHIPPED_PRESET) as magma:
            magma.open_session()

    def start(self, folder: Path) -> Start:
        """Opens a session, as `init_inference_session` does, and runs one token.

        What the trace says that the phases took is no start.
        """
        before = resident_bytes()["anonymous"]
        with tempfile.TemporaryDirectory() as traces, PeakMemory() as peak:
            begin = time.perf_counter()
            magma = self._magma.of_config(folder_config(folder), folder, trace=Path(traces))
            magma.open_session()
            opened = peak.now()["anonymous"] - before
            magma.generate(prompts="!", max_new_tokens=1, temperature=0)
            seconds = time.perf_counter() - begin
            (trace,) = Path(traces).glob("batch_*.json")
            regions = json.loads(trace.read_text())["regions"]
            seconds -= sum(region["ms"] for region in regions if region["name"]) / 1e3
            magma.close()
        return seconds, opened


class Peer:
    """transformers, imported."""

    def __init__(self, threads: int) -> None:
        """Imports all that a start needs."""
        torch.set_num_threads(threads)
        from transformers import GPTJForCausalLM

        self._model = GPTJForCausalLM

    def start(self, folder: Path) -> Start:
        """Loads a model."""
        before = resident_bytes()["anonymous"]
        with PeakMemory() as peak:
            begin = time.perf_counter()
            self._model.from_pretrained(folder, dtype=torch.float16)
            return time.perf_counter() - begin, peak.now()["anonymous"] - before


def start(engine: str, folder: Path, threads: int) -> Start:
    """A start in a process of its own."""
    with Worker(f"benchmarks.bench_start_up:{engine}", threads) as worker:
        return worker.call("start", folder)


def write_tokenizer(folder: Path, entries: int) -> None:
    """A byte-level BPE of so many entries that means nothing, if the folder has none."""
    from tokenizers.pre_tokenizers import ByteLevel

    if has_tokenizer(folder):
        return
    letters = sorted(ByteLevel.alphabet())
    count = entries - len(letters) - 2  # the end of a text and <|image|>
    merges = [(a, b) for a in letters for b in letters][:count]
    tokens = [*letters, *(a + b for a, b in merges), END_OF_TEXT]
    text = "".join(f"{a} {b}\n" for a, b in merges)
    for name, content in (
        ("vocab.json", json.dumps({token: i for i, token in enumerate(tokens)})),
        ("merges.txt", f"#version: 0.2\n{text}"),
    ):
        with atomic_file(folder / name) as file:
            file.write(content.encode())


def write_peer(folder: Path, setup: Setup) -> None:
    """A model of random weights in transformers' layout."""
    from benchmarks.engine_transformers import random_gptj

    random_gptj(setup.written_for, torch.float16).save_pretrained(folder)


def result(setup: Setup, turns: Turns, folders: dict[str, Path]) -> record.Result:
    """The table and what stands behind it."""
    seconds = {name: turns.values(name, lambda start: start[0]) for name in turns.of}
    memory = {name: turns.values(name, lambda start: start[1]) for name in turns.of}
    rows = []
    for name, folder in folders.items():
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        cells = [f"{size / GB:.2f}", f"{median(seconds[name]):.2f}"]
        cells += [f"{median(memory[name]) / GB:.3f}"]
        rows.append((name, *cells, f"{ratio(seconds[name], seconds[OURS]):.1f}"))
    return record.Result(
        bench="bench_start_up" + ("_whole" if setup.whole else ""),
        title=setup.title("Start, from imports to the first operation"),
        columns=("engine", "GB of weights", "seconds", "GB of anonymous memory", "time / ours"),
        rows=rows,
        samples=turns.rate_samples()
        | {f"{name}: start_s": values for name, values in seconds.items()}
        | {f"{name}: anonymous_bytes": list(map(float, memory[name])) for name in memory},
        setting={"setup": str(setup)},
        notes=(
            f"Each start is a process of its own that has imported everything, {setup.threads}"
            f" threads; medians of {setup.rounds}; files in the page cache. Ours: configuration,"
            " checkpoint, tokenizer, program, session, and all of the first run but its phases."
            " transformers: the load alone. Anonymous memory: the most beyond what the process"
            " had, before the first phase.",
            "Targets: ≤ 1 s, ≤ 0.3 GB, ≥ 10 times faster than transformers.",
        ),
        command=f"bench_start_up --blocks {setup.blocks}",
    )


def main() -> None:
    """Measures and prints; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="magma_v1_500", help="whose widths the model has")
    parser.add_argument("--blocks", type=int, default=8, help="decoder blocks")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each engine")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--files", type=Path, default=CACHE.with_name("memory"))
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--keep", action="store_true", help="leave the model folder there")
    options = parser.parse_args()
    setup = Setup(options.preset, options.blocks, options.rounds, options.files, options.threads)
    try:
        ours = setup.model_folder("float16")
        write_tokenizer(ours, setup.written_for.transformer.embedding.real_vocab_size)
        with tempfile.TemporaryDirectory(dir=setup.folder) as peer:
            folders = {OURS: ours}
            if not options.alone:
                write_peer(Path(peer), setup)
                folders[PEER] = Path(peer)
            measure(setup, folders)
    finally:
        if not options.keep:
            setup.delete_files()


def measure(setup: Setup, folders: dict[str, Path]) -> None:
    """Starts in turns; keeps and prints."""
    engines = {OURS: "Ours", PEER: "Peer"}
    actions = {
        name: partial(start, engines[name], folder, setup.threads)
        for name, folder in folders.items()
    }
    for action in actions.values():  # has the files in the page cache
        action()
    turns = take_turns(actions, setup.rounds)
    table.publish(result(setup, turns, folders), turns.frame())


if __name__ == "__main__":
    main()
