"""The full model: one engine at a time, as memory holds no two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import record
from benchmarks.engines import random_prompts, step_bytes
from benchmarks.generation_peers import PROMPT_TOKENS, Entry, Setup, both_results, runnable
from benchmarks.turns import Turns, take_turns
from config.parsing import load_preset

SPARE_BYTES = 2 << 30
"""Of memory, beside the weights, that an engine with weights of its own needs."""


def one_after_another(setup: Setup) -> list[tuple[record.Result, Turns]]:
    """Each engine has the machine for itself, and its files are deleted before the next."""
    blocks = load_preset(setup.preset).transformer.layers
    setup = replace(setup, blocks=blocks)
    turns, entries = Turns(in_turn=False), {}
    for key, entry in runnable(setup, setup.engines).items():
        if key == "transformers" and not _fits(setup):
            print(f"skipped {entry.label}: not enough memory")
            continue
        entries[entry.label] = entry
        _add(turns, entry, setup)
        setup.remove_big_files()
    return both_results(entries, turns, setup, "full", f"all {blocks} blocks")


def _add(turns: Turns, entry: Entry, setup: Setup) -> None:
    config = setup.written_for()
    prompts = random_prompts(config, PROMPT_TOKENS)
    with entry.start(setup) as worker:
        run: Callable[[], object] = partial(worker.call, "run", prompts, setup.tokens, True)
        run()  # builds plans, reads files
        mine = take_turns({entry.label: run}, setup.rounds)
    turns.of |= mine.of
    turns.rates += mine.rates


def _fits(setup: Setup) -> bool:
    """Whether memory holds a copy of the weights."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            size_bytes = step_bytes(setup.written_for(), 0, adapters=False)
            return int(line.split()[1]) * 1024 > size_bytes + SPARE_BYTES
    return True
