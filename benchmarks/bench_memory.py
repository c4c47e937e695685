"""Generation within a budget of memory, beside the disk's limit, and under a limit of the system.

An 8-block slice of the real widths with random weights, as model folders. `budgets`: weights are
read within budgets. `capped`: weights are mapped and anonymous memory is limited, beside the same
without a limit, and accelerate's disk_offload where it is installed:

    python -m benchmarks.bench_memory --blocks 8 --rounds 5
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile

import torch

from benchmarks import gpu, record, table
from benchmarks.bench_generation import CACHE
from benchmarks.disk import direct_read_gb_per_s
from benchmarks.engine_memory import PLAN_VARIABLE, Steps
from benchmarks.engines import model_slice, random_prompts, step_bytes
from benchmarks.turns import Turn, Turns, ratio, take_turns
from benchmarks.workers import Worker
from config.config import MagmaConfig

PROMPT_TOKENS = 24
GIB = 1 << 30
STORAGE = ("float16", "int8", "int4")
CAP_BYTES = 2 * GIB
DECODING = ("decoder", "lm_head")
"""Phases that a decode step runs."""


@dataclass(frozen=True)
class Setup:
    """What to measure: see the options."""

    preset: str
    blocks: int
    rounds: int
    tokens: int
    budgets: tuple[int, ...]
    storage: tuple[str, ...]
    folder: Path
    threads: int

    @property
    def config(self) -> MagmaConfig:
        """Of all model folders."""
        positions = PROMPT_TOKENS + 4 + self.tokens
        return model_slice(self.preset, self.blocks, positions, 1, encoder=False)

    def path(self, storage: str) -> Path:
        """Where a model folder is."""
        return self.folder / f"{self.preset}_{self.blocks}_{self.tokens}_{storage}"

    def model_folder(self, storage: str) -> Path:
        """A folder of random weights, which is written if it is not there."""
        from utils.checkpoint import open_checkpoint
        from utils.checkpoint_writer import write_random_checkpoint
        from utils.model_folder_rows import Storage
        from utils.model_folder_writer import write_model_folder

        folder = self.path(storage)
        if not folder.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            config, path = self.config, folder.with_suffix(".pt")
            write_random_checkpoint(path, config, dtype="float16")
            parts = ("blocks", "adapters", "head") if storage != "float16" else ()
            write_model_folder(
                open_checkpoint(path, config), config, folder, Storage(storage, parts)
            )
            path.unlink()
        return folder

    def note(self) -> str:
        """What ran."""
        return (
            f"{self.blocks} blocks and the head at the widths of {self.preset}, one sequence,"
            f" {PROMPT_TOKENS} ids in; {self.tokens} decode steps a turn, each turn a process of"
            f" its own, {self.threads} threads."
        )


@dataclass(frozen=True)
class Measured:
    """One turn: its steps, and direct reads of the disk before and after it."""

    steps: Steps
    disk_gb_per_s: float


def _turn(setup: Setup, folder: Path, start: Callable[[], Worker]) -> Measured:
    files = sorted(folder.glob("*.safetensors"))
    before = direct_read_gb_per_s(files)
    prompts = random_prompts(setup.config, PROMPT_TOKENS)
    with start() as worker:
        steps = worker.call("steps", prompts, setup.tokens)
    return Measured(steps, (before + direct_read_gb_per_s(files)) / 2)


def _ours(
    setup: Setup, folder: Path, data_limit: int | None = None, **settings: object
) -> Measured:
    with NamedTemporaryFile(suffix=".json") as plan:
        environment = {PLAN_VARIABLE: plan.name}
        environment |= {f"POPXL_TORCH_{n.upper()}": str(value) for n, value in settings.items()}
        arguments = (setup.config, folder, setup.threads, data_limit)
        factory = "benchmarks.engine_memory:Limited"
        start = partial(Worker, factory, *arguments, environment=environment)
        return _turn(setup, folder, start)


def _streamed(plan: dict) -> int:
    """Bytes that a decode step must read from files."""
    return sum(p["streamed_bytes"] for p in plan["phases"] if p["name"] in DECODING)


def _decoding_bytes(plan: dict) -> int:
    """Bytes of weights that a decode step uses, as they are stored."""
    return sum(p["bytes"] for p in plan["phases"] if p["name"] in DECODING)


def _limit_s(turn: Turn) -> float:
    """Seconds of a step at the rates of disk and memory around it, whichever takes longer."""
    plan, disk = turn.value.steps.plan, turn.value.disk_gb_per_s
    memory_s = _decoding_bytes(plan) / turn.read_gb_per_s
    return max(_streamed(plan) / disk, memory_s) / 1e9


def _step_s(measured: Measured) -> float:
    return median(measured.steps.step_s)


def budgets(setup: Setup) -> tuple[record.Result, Turns]:
    """Tokens a second against the budget, weights read, beside the limit."""
    names = {
        f"{storage}, {budget} GiB": (setup.model_folder(storage), budget)
        for storage in setup.storage
        for budget in setup.budgets
    }
    actions = {
        name: partial(_ours, setup, folder, weights="read", device_memory=f"{budget}GiB")
        for name, (folder, budget) in names.items()
    }
    turns = take_turns(actions, setup.rounds)
    rows = []
    for name, of in turns.of.items():
        seconds = median(turns.values(name, _step_s))
        share = ratio([_limit_s(turn) for turn in of], turns.values(name, _step_s))
        peak = max(turn.value.steps.peak_anonymous for turn in of)
        streamed = _streamed(of[0].value.steps.plan) / 1e9
        disk = median(turn.value.disk_gb_per_s for turn in of)
        cells = (f"{1 / seconds:.3f}", f"{streamed:.2f}", f"{disk:.2f}", f"{share:.2f}")
        rows.append((name, *cells, f"{peak / GIB:.2f}"))
    result = record.Result(
        bench="bench_memory_budgets",
        title="Decode within a budget, weights read from disk",
        columns=("weights, budget", "tokens/s", "GB read a token", "disk GB/s", "of limit",
                 "peak GiB"),
        rows=rows,
        samples=_samples(turns),
        setting={"setup": str(setup)},
        notes=(
            setup.note() + " Reads go past the page cache.",
            "Limit: bytes that are not kept over the rate of direct reads (4 MiB, 4 under way), or"
            " all bytes over the rate of memory, whichever takes longer; both rates are taken"
            " before and after each turn. Target: ≥ 0.90 of the limit where weights are read.",
            "Peak: anonymous memory of the process, to stay within the budget.",
        ),
        command="bench_memory --parts budgets",
    )  # fmt: skip
    return result, turns


def capped(setup: Setup) -> tuple[record.Result, Turns]:
    """Mapped weights with and without a limit of anonymous memory, beside a peer."""
    actions: dict[str, Callable[[], Measured]] = {}
    for storage in setup.storage:
        folder = setup.model_folder(storage)
        actions[f"ours {storage}"] = partial(_ours, setup, folder)
        actions[f"ours {storage}, limited"] = partial(_ours, setup, folder, CAP_BYTES)
    notes = []
    if importlib.util.find_spec("accelerate"):
        arguments = (setup.config, setup.folder, setup.threads)
        start = partial(Worker, "benchmarks.engine_memory:Offloaded", *arguments)
        actions["accelerate disk_offload bf16"] = partial(
            _turn, setup, setup.model_folder(setup.storage[0]), start
        )
    else:
        notes.append("accelerate is not installed: left out.")
    turns = take_turns(actions, setup.rounds)
    rows = []
    for name, of in turns.of.items():
        seconds = turns.values(name, _step_s)
        base = turns.values(name.removesuffix(", limited"), _step_s)
        ours = turns.values(f"ours {setup.storage[0]}", _step_s)
        peak = max(turn.value.steps.peak_anonymous for turn in of)
        cells = (f"{1 / median(seconds):.3f}", f"{ratio(base, seconds):.2f}")
        rows.append((name, *cells, f"{ratio(seconds, ours):.2f}", f"{peak / GIB:.2f}"))
    result = record.Result(
        bench="bench_memory_capped",
        title="Decode from mapped weights under a limit of anonymous memory",
        columns=("engine", "tokens/s", "of the same unlimited", f"time / ours {setup.storage[0]}",
                 "peak GiB"),
        rows=rows,
        samples=_samples(turns),
        setting={"setup": str(setup), "step_bytes": step_bytes(setup.config, PROMPT_TOKENS)},
        notes=(
            setup.note() + " Files are in the page cache.",
            f"Limited: RLIMIT_DATA at {CAP_BYTES // GIB} GiB beyond what the process has after its"
            " imports, so anonymous memory and stacks; mapped files and the page cache are not"
            " limited. Target: ≥ 0.95 of the same unlimited.",
            "The peer has all weights in files of its own, one for each tensor, and no adapters."
            " Target: ≥ 10 times our time.",
            "AirLLM is not measured.",
            *notes,
        ),
        command="bench_memory --parts capped",
    )  # fmt: skip
    return result, turns


def _samples(turns: Turns) -> dict[str, list[float]]:
    samples = turns.rate_samples()
    for name, of in turns.of.items():
        samples[f"{name}: step_s"] = [s for turn in of for s in turn.value.steps.step_s]
        samples[f"{name}: disk_gb_per_s"] = [turn.value.disk_gb_per_s for turn in of]
        samples[f"{name}: peak_bytes"] = [float(turn.value.steps.peak_anonymous) for turn in of]
    return samples


PARTS = {"budgets": budgets, "capped": capped}


def parse() -> tuple[Setup, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--preset", default="magma_v1_500", help="whose widths the slice has")
    parser.add_argument("--blocks", type=int, default=8, help="decoder blocks of the slice")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument("--tokens", type=int, default=8, help="decode steps of a turn")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 4, 8, 16], help="in GiB")
    parser.add_argument("--storage", nargs="+", choices=STORAGE, default=list(STORAGE))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="see gpu.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=CACHE.with_name("memory"))
    parser.add_argument("--keep", action="store_true", help="leave the model folders there")
    options = parser.parse_args()
    setup = Setup(
        options.preset,
        options.blocks,
        options.rounds,
        options.tokens,
        tuple(options.budgets),
        tuple(options.storage),
        options.folder,
        options.threads,
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
            for storage in setup.storage:
                shutil.rmtree(setup.path(storage), ignore_errors=True)


if __name__ == "__main__":
    main()
