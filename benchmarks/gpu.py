"""Generation on a GPU, beside what its memory and its link to the host allow.

`resident`: all weights stay, with and without recorded runs, beside transformers. `streamed`:
within a budget, from pinned memory, with and without weights that stay, beside accelerate.
`batches`: the same for several sequences. `sources`: weights from files, mapped or read.
`recompute`: both schemes.

    python -m benchmarks.bench_generation --device cuda --blocks 28      # resident
    python -m benchmarks.bench_memory --device cuda --blocks 28          # the others

Every turn is framed by tests of the GPU. Without one, each says that it is not measured.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import record, table
from benchmarks.disk import direct_read_gb_per_s, read_gb_per_s
from benchmarks.engine_memory import PLAN_VARIABLE
from benchmarks.engine_ours import Ours
from benchmarks.engines import model_slice, random_prompts, step_bytes
from benchmarks.machine import Rates, timed
from benchmarks.workers import Worker
from config.config import MagmaConfig

if TYPE_CHECKING:
    from benchmarks.memory_setup import Setup

NOT_MEASURED = "not measured: no CUDA device"
DEVICE = "cuda"
BLOCKS = 28
BUDGET = 4 << 30
"""For all blocks; less for a slice."""
BATCHES = (1, 8, 32, 64)
PROMPT_TOKENS = 24
CONTEXT = 300
TEST_BYTES = 1 << 28
MATMUL_SIZE = 8192
LAUNCHES = 1000
ROUNDS, TOKENS = 5, 32
DECODING = ("decoder", "lm_head")


@dataclass(frozen=True)
class GpuRates:
    """What the GPU and its link do at the moment: medians of a few samples.

    Attributes:
        pinned: GB/s of a copy to the device from pinned memory.
        pageable: the same from memory that is not.
        memory: GB/s that the device reads of its own memory.
        tflops: of a float16 product.
        launch_us: of a kernel that does next to nothing, issued one after the other.
    """

    pinned: float
    pageable: float
    memory: float
    tflops: float
    launch_us: float


def measure_rates(repeats: int = 5) -> GpuRates:
    """The rates now."""
    host = torch.empty(TEST_BYTES, dtype=torch.uint8)
    pinned = host.pin_memory()
    there = torch.empty(TEST_BYTES, dtype=torch.uint8, device=DEVICE)
    wide = there.view(torch.int64)
    small = torch.zeros(1, device=DEVICE)
    square = torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=torch.float16, device=DEVICE)
    product = torch.empty_like(square)

    def seconds(action: Callable[[], object]) -> float:
        def run() -> None:
            action()
            torch.cuda.synchronize()

        return statistics.median(timed(run, repeats))

    def launch() -> None:
        for _ in range(LAUNCHES):
            small.add_(1)

    return GpuRates(
        pinned=TEST_BYTES / seconds(lambda: there.copy_(pinned, non_blocking=True)) / 1e9,
        pageable=TEST_BYTES / seconds(lambda: there.copy_(host)) / 1e9,
        memory=TEST_BYTES / seconds(wide.sum) / 1e9,
        tflops=2 * MATMUL_SIZE**3 / seconds(lambda: torch.mm(square, square, out=product)) / 1e12,
        launch_us=seconds(launch) / LAUNCHES * 1e6,
    )


@dataclass(frozen=True)
class GpuSteps:
    """Decode steps of one engine: seconds of each, peak of the device's memory, memory plan."""

    step_s: list[float]
    peak_bytes: int
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return statistics.median(self.step_s)

    def weights(self, *kinds: str) -> int:
        """Bytes of weights of a decode step that are "resident", "streamed", ..."""
        phases = [p for p in self.plan["phases"] if p["name"] in DECODING]
        return sum(phase[f"{kind}_bytes"] for phase in phases for kind in kinds)


class OnGpu(Ours):
    """Ours on the GPU, with weights from a model folder; variables say how they are kept."""

    def __init__(
        self, config: MagmaConfig, weights: tuple[Path, MagmaConfig], scheme: str = "cached"
    ) -> None:
        """Builds a session."""
        super().__init__(config, weights, scheme, traced=False)

    def steps(self, prompts: list[list[int]], tokens: int) -> GpuSteps:
        """Reads prompts and takes some tokens, until all is recorded, then measures more."""
        self.run(prompts, 5, picture=False)
        seconds = self.more(tokens)
        plan = json.loads(Path(os.environ[PLAN_VARIABLE]).read_text())
        return GpuSteps(seconds, torch.cuda.max_memory_allocated(), plan)


class Peer:
    """transformers' GPT-J in float16, all of it on the GPU, or on the host by accelerate."""

    def __init__(self, config: MagmaConfig, offloaded: bool) -> None:
        """Draws weights."""
        from benchmarks.engine_transformers import Greedy, random_gptj

        model = random_gptj(config, torch.float16)
        if offloaded:
            from accelerate import cpu_offload

            cpu_offload(model, execution_device=torch.device(DEVICE))
        else:
            model = model.to(DEVICE)
        for block in model.transformer.h:
            block.attn.embed_positions = block.attn.embed_positions.to(DEVICE)
        torch.set_default_device(DEVICE)  # of ids
        self._greedy = Greedy(model)

    def steps(self, prompts: list[list[int]], tokens: int) -> GpuSteps:
        """See :meth:`OnGpu.steps`."""
        self._greedy.start(prompts)
        self._greedy.more(4)
        seconds = self._greedy.more(tokens)
        return GpuSteps(seconds, torch.cuda.max_memory_allocated())


@dataclass(frozen=True)
class Turn:
    """One engine in one round, and the rates before and after it."""

    steps: GpuSteps
    before: GpuRates
    after: GpuRates

    def rate(self, name: str) -> float:
        """The mean of before and after."""
        return (getattr(self.before, name) + getattr(self.after, name)) / 2


Action = Callable[[], GpuSteps]
Turns = dict[str, list[Turn]]


def take_turns(actions: dict[str, Action], rounds: int) -> Turns:
    """Every engine once a round, with tests of the GPU between any two."""
    turns: Turns = {name: [] for name in actions}
    before = measure_rates()
    for _ in range(rounds):
        for name, action in actions.items():
            steps, after = action(), measure_rates()
            turns[name].append(Turn(steps, before, after))
            before = after
    return turns


def _median(of: Iterable[Turn], what: Callable[[Turn], float]) -> float:
    return statistics.median(map(what, of))


def _ratio(above: list[Turn], below: list[Turn]) -> float:
    pairs = zip(above, below, strict=True)
    return statistics.median(a.steps.seconds / b.steps.seconds for a, b in pairs)


# -- engines --------------------------------------------------------------------------------------


def _config(setup: Setup, batch: int = 1, context: int = 0) -> MagmaConfig:
    positions = max(PROMPT_TOKENS, context) + 8 + setup.tokens
    return model_slice(setup.preset, setup.blocks, positions, 1, batch, encoder=False)


def ours(
    setup: Setup, batch: int = 1, context: int = 0, scheme: str = "cached", **settings: object
) -> GpuSteps:
    """Our steps in a process of its own."""
    config = _config(setup, batch, context)
    with NamedTemporaryFile(suffix=".json") as plan:
        environment = {PLAN_VARIABLE: plan.name, "POPXL_DEVICE": DEVICE}
        environment |= {f"POPXL_TORCH_{n.upper()}": str(value) for n, value in settings.items()}
        arguments = (config, (setup.model_folder("float16"), setup.written_for), scheme)
        with Worker("benchmarks.gpu:OnGpu", *arguments, environment=environment) as worker:
            prompts = random_prompts(config, max(PROMPT_TOKENS, context))
            return worker.call("steps", prompts, setup.tokens)


def peer(setup: Setup, offloaded: bool) -> GpuSteps:
    """The peer's steps in a process of its own."""
    config = _config(setup)
    with Worker("benchmarks.gpu:Peer", config, offloaded) as worker:
        return worker.call("steps", random_prompts(config, PROMPT_TOKENS), setup.tokens)


def budget_of(setup: Setup) -> int:
    """The budget of what runs."""
    return BUDGET * setup.blocks // BLOCKS


def least_budget(plan: dict[str, Any]) -> int:
    """What is needed if no weights stay: two slots beside everything else."""
    largest = max(plan["slot_bytes"], *(p["bytes"] // max(p["slabs"], 1) for p in plan["phases"]))
    parts = ("process_bytes", "activation_bytes", "stored_bytes", "scratch_bytes")
    return sum(plan[part] for part in parts) + 2 * largest


# -- parts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a part measured: rows of its table, notes with targets, all turns."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...]
    turns: Turns


def resident(setup: Setup) -> Part:
    """G1 and G6: all weights stay."""
    turns = take_turns(
        {
            "ours": partial(ours, setup),
            "ours, runs not recorded": partial(ours, setup, cuda_graphs=0),
            "transformers fp16, eager": partial(peer, setup, offloaded=False),
        },
        setup.rounds,
    )
    needed = step_bytes(_config(setup), PROMPT_TOKENS)
    rows = []
    for name, of in turns.items():
        limit = _median(of, lambda turn: needed / turn.rate("memory") / 1e9)
        share = _median(of, lambda turn: needed / turn.rate("memory") / 1e9 / turn.steps.seconds)
        cells = _common(of)
        over = f"{(_median(of, _seconds) - limit) * 1e3:.2f}"
        rows.append((name, *cells, f"{share:.2f}", over, f"{_ratio(of, turns['ours']):.2f}"))
    return Part(
        "Decode on a GPU, all weights there",
        ("engine", "tokens/s", "ms a step", "peak GiB", "of limit", "ms over limit", "time / ours"),
        rows,
        (
            f"Limit: {needed / 1e9:.2f} GB a step over the rate at which the GPU reads its memory."
            " Targets: ≥ 0.70 of it, ≤ 15 % of a step over it, ≥ 5 times transformers' speed.",
        ),
        turns,
    )


def streamed(setup: Setup) -> Part:
    """G2: within a budget, from pinned memory."""
    budget, kept = budget_of(setup), {"weights": "pinned"}
    least = least_budget(ours(setup, device_memory=budget, **kept).plan)
    actions: dict[str, Action] = {
        "ours": partial(ours, setup, device_memory=budget, **kept),
        "ours, nothing stays": partial(ours, setup, device_memory=least, **kept),
    }
    notes = [
        f"Budget: {budget / 2**30:.2f} GiB. Limit: bytes that do not stay over the rate of pinned"
        " copies. Targets: ≥ 0.95 of it, ≥ 1.25 times the speed of the run where nothing stays, ≥ 3"
        " times accelerate's."
    ]
    if importlib.util.find_spec("accelerate"):
        actions["accelerate cpu_offload fp16"] = partial(peer, setup, offloaded=True)
    else:
        notes.append("accelerate is not installed: left out.")
    turns = take_turns(actions, setup.rounds)
    rows = [
        (name, *_common(of), _link_share(of, "pinned"), f"{_ratio(of, turns['ours']):.2f}")
        for name, of in turns.items()
    ]
    return Part(
        "Decode on a GPU within a budget, weights in pinned memory",
        ("engine", "tokens/s", "ms a step", "peak GiB", "of limit", "time / ours"),
        rows,
        tuple(notes),
        turns,
    )


def batches(setup: Setup) -> Part:
    """G3: several sequences through one sweep."""
    budget = budget_of(setup)
    actions: dict[str, Action] = {
        str(batch): partial(ours, setup, batch, CONTEXT, device_memory=budget, weights="pinned")
        for batch in BATCHES
    }
    turns = take_turns(actions, setup.rounds)
    rows = [
        (
            name,
            f"{int(name) / _median(of, _seconds):.2f}",
            *_common(of)[1:],
            _link_share(of, "pinned"),
            f"{int(name) / _ratio(of, turns['1']):.1f}",
        )
        for name, of in turns.items()
    ]
    return Part(
        "Sequences at once on a GPU within a budget",
        ("sequences", "tokens/s", "ms a step", "peak GiB", "of limit", "tokens/s over one"),
        rows,
        (
            f"Prompts of {CONTEXT} ids, budget {budget / 2**30:.2f} GiB, keys and values on the"
            " device. Limit: bytes that do not stay over the rate of pinned copies."
            " Target: ≥ 0.9 of it.",
        ),
        turns,
    )


def sources(setup: Setup) -> Part:
    """G4: weights that come from files."""
    files = sorted(setup.model_folder("float16").glob("*.safetensors"))
    budget = budget_of(setup)
    reads = {
        "mapped": read_gb_per_s(files),
        "read": direct_read_gb_per_s(files),
    }
    turns = take_turns(
        {
            name: partial(ours, setup, device_memory=budget, weights=name)
            for name in (*reads, "pinned")
        },
        setup.rounds,
    )
    rows = [
        (name, *_common(of), _link_share(of, "pinned", reads.get(name)))
        for name, of in turns.items()
    ]
    rates = ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in reads.items())
    return Part(
        "Decode on a GPU within a budget, by where the weights come from",
        ("weights", "tokens/s", "ms a step", "peak GiB", "of limit"),
        rows,
        (
            f"Limit: bytes that do not stay over the lesser of two rates, of pinned copies and of"
            f" reads of the files ({rates}, once before). Target: ≥ 0.85 of it.",
        ),
        turns,
    )


def recompute(setup: Setup) -> Part:
    """G5: a step of all positions costs no more than its weights."""
    kept = {"device_memory": budget_of(setup), "weights": "pinned"}
    turns = take_turns(
        {name: partial(ours, setup, scheme=name, **kept) for name in ("cached", "recompute")},
        setup.rounds,
    )
    rows = [
        (name, *_common(of), f"{_ratio(of, turns['cached']):.2f}") for name, of in turns.items()
    ]
    return Part(
        "Both schemes on a GPU within a budget",
        ("scheme", "tokens/s", "ms a step", "peak GiB", "time / cached"),
        rows,
        ("Target: ≤ 1.05 times the time of the cached scheme.",),
        turns,
    )


def _seconds(turn: Turn) -> float:
    return turn.steps.seconds


def _common(of: list[Turn]) -> tuple[str, str, str]:
    """Tokens a second, milliseconds of a step, peak of memory."""
    seconds, peak = _median(of, _seconds), max(turn.steps.peak_bytes for turn in of)
    return f"{1 / seconds:.2f}", f"{seconds * 1e3:.2f}", f"{peak / 2**30:.2f}"


def _link_share(of: list[Turn], rate: str, read: float | None = None) -> str:
    """Which share a step's time is of what its bytes take over the link, or to be read."""
    if not of[0].steps.plan:
        return "-"

    def share(turn: Turn) -> float:
        gb_per_s = min(turn.rate(rate), read or turn.rate(rate))
        return turn.steps.weights("streamed") / gb_per_s / 1e9 / turn.steps.seconds

    return f"{_median(of, share):.2f}"


PARTS: dict[str, Callable[[Setup], Part]] = {
    "resident": resident,
    "streamed": streamed,
    "batches": batches,
    "sources": sources,
    "recompute": recompute,
}


def run(names: Iterable[str], options: Namespace, program: str) -> None:
    """Measures parts and publishes their tables; says so where there is no GPU.

    Args:
        names: Of PARTS.
        options: Of the program: preset, blocks, rounds, tokens, threads, folder, keep.
        program: That was called.
    """
    if not torch.cuda.is_available():
        for name in names:
            print(f"{name}: {NOT_MEASURED}")
        return
    setup = _setup_of(options)
    command, gpu = f"{program} --device cuda --blocks {setup.blocks}", torch.cuda.get_device_name()
    try:
        for name in names:
            part = PARTS[name](setup)
            table.publish(_result(name, part, setup, command, gpu), _frame(part))
    finally:
        if not options.keep:
            setup.delete_files()


def _setup_of(options: Namespace) -> Setup:
    from benchmarks.memory_setup import Setup

    return Setup(
        options.preset,
        options.blocks,
        options.rounds or ROUNDS,
        options.folder,
        options.threads,
        tokens=options.tokens or TOKENS,
    )


def _frame(part: Part) -> list[Rates]:
    """The GPU's first and last rates."""
    every = [turn for of in part.turns.values() for turn in of]
    ends = (every[0].before, every[-1].after)
    return [Rates(round(r.memory, 1), round(r.tflops * 1e3, 1)) for r in ends]


def _result(name: str, part: Part, setup: Setup, command: str, gpu: str) -> record.Result:
    every = [turn for of in part.turns.values() for turn in of]
    pinned, pageable, launch = (
        statistics.median(turn.rate(rate) for turn in every)
        for rate in ("pinned", "pageable", "launch_us")
    )
    samples = {f"{key}: step_s": [s for t in of for s in t.steps.step_s]
               for key, of in part.turns.items()}  # fmt: skip
    return record.Result(
        bench=f"bench_gpu_{name}",
        title=part.title,
        columns=part.columns,
        rows=part.rows,
        samples=samples,
        setting={"setup": str(setup), "gpu": gpu},
        notes=(
            f"{gpu}: copies from pinned memory {pinned:.1f} GB/s, from pageable {pageable:.1f}, a"
            f" launch {launch:.1f} µs; the machine's rates above are the GPU's.",
            f"{setup.blocks} blocks and the head at the widths of {setup.preset},"
            f" {setup.tokens} decode steps a turn, each turn a process of its own.",
            *part.notes,
        ),
        command=command,
    )


if __name__ == "__main__":
    sys.exit("no program; see benchmarks.bench_generation and bench_memory with --device cuda")
