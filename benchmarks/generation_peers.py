"""Decode and time to first token, ours beside transformers and llama.cpp."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks import record
from benchmarks.engines import Times, model_slice, random_prompts, step_bytes
from benchmarks.turns import Turns, ratio, take_turns
from benchmarks.workers import Worker
from config.config import MagmaConfig
from runtime.benchmarks.setting import native_name

AVX2_ONLY = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "POPXL_TORCH_NATIVE": "avx2",
}
"""Variables that hold torch, its libraries and our kernels back on processors that have more.
llama.cpp's wheel has no more than AVX2 anyway."""

NATIVE_SWITCH = "POPXL_TORCH_NATIVE"
OURS = "ours, tp 4"
BFLOAT16 = ("ours-bfloat16", "ours", "transformers")
"""Engines of the comparison with weights in bfloat16."""

TRANSFORMERS = "transformers bf16"
LLAMA = "llama.cpp F16, same shape"
PROMPT_TOKENS = 24


@dataclass(frozen=True)
class Setup:
    """What to measure, and with what.

    Attributes:
        preset: Whose widths the slice has.
        blocks: Decoder blocks of the slice.
        rounds: Turns of each engine.
        tokens: New tokens of a run.
        prompts: For comparing ids.
        engines: Keys of ENGINES to run, and of the peers in other parts.
        batches: Sequences of a run in the batch curve.
        peer_batches: Those of them that the peer runs too.
        folder: For big files.
        packages: Folder with packages of peers that are not installed, if any.
        threads: Of every engine.
        avx2: Whether all engines are held to AVX2.
    """

    preset: str
    blocks: int
    rounds: int
    tokens: int
    prompts: int
    engines: tuple[str, ...]
    batches: tuple[int, ...]
    peer_batches: tuple[int, ...]
    folder: Path
    packages: Path | None
    threads: int
    avx2: bool = False

    def instructions(self) -> str:
        """What of the processor torch and our kernels use, for notes."""
        name = torch.backends.cpu.get_cpu_capability()
        brain = "with" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "without"
        return (
            f"Vector instructions that torch uses: {name}, {brain} bfloat16 products; native"
            f" kernels of ours: {native_name()}, unless the row says otherwise."
        )

    def held(self) -> str:
        """What titles say of instructions that are held back."""
        return " (AVX2 alone)" if self.avx2 else ""

    def bench(self, name: str) -> str:
        """The name of a benchmark: another where instructions are held back."""
        return f"bench_generation_{name}" + ("_avx2" if self.avx2 else "")

    def command(self, part: str) -> str:
        """How a part is run."""
        return f"bench_generation --parts {part}" + (" --avx2" if self.avx2 else "")

    def written_for(self) -> MagmaConfig:
        """The configuration of the file of weights."""
        return self.slice(PROMPT_TOKENS + self.tokens)

    def slice(
        self, text_tokens: int, tensor_parallel: int = 4, batch: int = 1, encoder: bool = True
    ) -> MagmaConfig:
        """See :func:`benchmarks.engines.model_slice`."""
        return model_slice(self.preset, self.blocks, text_tokens, tensor_parallel, batch, encoder)

    def big_file(self, suffix: str) -> Path:
        """Where weights are kept."""
        return self.folder / f"{self.preset}_{self.blocks}.{suffix}"

    def weights(self) -> tuple[Path, MagmaConfig]:
        """The file of weights, which is written if it is not there, and its configuration."""
        from utils.checkpoint_writer import write_random_checkpoint

        config = self.written_for()
        path = self.big_file("pt")
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_random_checkpoint(path, config, dtype=str(config.transformer.precision))
        return path, config

    def brain_folder(self) -> Path:
        """The same weights as a model folder in bfloat16, which is written if it is not there."""
        from utils.checkpoint import open_checkpoint
        from utils.model_folder_rows import Storage
        from utils.model_folder_writer import write_model_folder

        folder = self.big_file("bfloat16")
        if not folder.exists():
            path, config = self.weights()
            write_model_folder(open_checkpoint(path, config), config, folder, Storage("bfloat16"))
        return folder

    def remove_big_files(self) -> None:
        """Deletes all that was written."""
        for suffix in ("pt", "gguf"):
            self.big_file(suffix).unlink(missing_ok=True)
        shutil.rmtree(self.big_file("bfloat16"), ignore_errors=True)

    def gguf(self) -> Path:
        """llama.cpp's file, which is written if it is not there."""
        from benchmarks.engine_llama import write_gguf

        path = self.big_file("gguf")
        if not path.exists():
            part = path.with_suffix(".part")
            write_gguf(part, self.written_for(), self.packages)
            part.rename(path)
        return path


def _ours(
    setup: Setup, tensor_parallel: int = 4, native: bool = True, brain: bool = False
) -> Worker:
    path, written_for = setup.weights()
    path = setup.brain_folder() if brain else path
    config = setup.slice(written_for.text_tokens, tensor_parallel)
    return Worker(
        "benchmarks.engine_ours:Ours",
        config,
        (path, written_for),
        "cached",
        setup.threads,
        environment={} if native else {NATIVE_SWITCH: "0"},
    )


def _transformers(setup: Setup) -> Worker:
    factory = "benchmarks.engine_transformers:Transformers"
    return Worker(factory, setup.written_for(), True, setup.threads)


def _llama(setup: Setup) -> Worker:
    config = setup.written_for()
    return Worker(
        "benchmarks.engine_llama:Llama", setup.gguf(), config, setup.threads, setup.packages
    )


@dataclass(frozen=True)
class Entry:
    """An engine of the comparison.

    Attributes:
        label: In tables.
        start: Makes it.
        needs: Packages that it needs.
        adapters: Whether it reads adapters.
    """

    label: str
    start: Callable[[Setup], Worker]
    needs: tuple[str, ...] = ()
    adapters: bool = True


ENGINES = {
    "ours": Entry(OURS, _ours),
    "ours-bfloat16": Entry("ours, tp 4, weights in bfloat16", partial(_ours, brain=True)),
    "ours-tp1": Entry("ours, tp 1", partial(_ours, tensor_parallel=1)),
    "ours-stock": Entry("ours, tp 4, native off", partial(_ours, native=False)),
    "ours-tp1-stock": Entry(
        "ours, tp 1, native off",
        partial(_ours, tensor_parallel=1, native=False),
    ),
    "transformers": Entry(TRANSFORMERS, _transformers, ("transformers", "open_clip"), False),
    "llama": Entry(LLAMA, _llama, ("xllamacpp", "gguf"), False),
}


def missing(entry: Entry, packages: Path | None) -> list[str]:
    """Packages that an engine needs and that are not there."""
    if packages is not None and str(packages) not in sys.path:
        sys.path.append(str(packages))
    return [name for name in entry.needs if importlib.util.find_spec(name) is None]


def runnable(setup: Setup, keys: Sequence[str]) -> dict[str, Entry]:
    """Those of some engines that can run; says which cannot."""
    found = {}
    for key in keys:
        entry = ENGINES[key]
        lacking = missing(entry, setup.packages)
        if lacking:
            print(f"skipped {entry.label}: not installed: {', '.join(lacking)}")
        else:
            found[key] = entry
    return found


def beside_peers(setup: Setup) -> list[tuple[record.Result, Turns]]:
    """Each round, every engine encodes a picture if it can, reads a prompt and makes tokens."""
    entries = {entry.label: entry for entry in runnable(setup, setup.engines).values()}
    turns = _in_turns(setup, entries)
    return both_results(entries, turns, setup)


def in_bfloat16(setup: Setup) -> list[tuple[record.Result, Turns]]:
    """The same with our weights in bfloat16 too."""
    entries = {entry.label: entry for entry in runnable(setup, BFLOAT16).values()}
    turns = _in_turns(setup, entries)
    return both_results(entries, turns, setup, "bfloat16", "weights in bfloat16")


def _in_turns(setup: Setup, entries: dict[str, Entry]) -> Turns:
    config = setup.written_for()
    prompts = random_prompts(config, PROMPT_TOKENS)
    with ExitStack() as stack:
        workers = {}
        for label, entry in entries.items():
            workers[label] = stack.enter_context(entry.start(setup))
            # Builds plans, also for the lengths that are reached, and reads files.
            workers[label].call("run", prompts, setup.tokens, True)
        actions = {
            label: partial(worker.call, "run", prompts, setup.tokens, True)
            for label, worker in workers.items()
        }
        return take_turns(actions, setup.rounds)


def both_results(
    entries: dict[str, Entry], turns: Turns, setup: Setup, part: str = "peers", title: str = ""
) -> list[tuple[record.Result, Turns]]:
    """Tables of decode and of the first token.

    Args:
        entries: The engines, by label.
        turns: What they did.
        setup: How.
        part: Of the program that measured; part of the results' names if it is not "peers".
        title: What is special.
    """
    config = setup.written_for()
    lm = config.transformer
    in_order = " in which the engines take turns"
    if not turns.in_turn:
        in_order = (
            ", engine after engine; 'ours ÷ it' is not of times but of times by the rates of the"
            " machine that were measured beside them, which differ"
        )
    notes = (
        f"{setup.blocks} decoder blocks of h = {lm.hidden_size}, {lm.attention.heads} heads, MLP"
        f" {lm.inner_size}, vocabulary {lm.embedding.vocab_size}; random weights; one picture"
        f" ({config.image_tokens} positions) and {PROMPT_TOKENS} ids in, {setup.tokens} out,"
        f" greedy; {setup.threads} threads; {setup.rounds} rounds{in_order}."
        f" {setup.instructions()}",
        f"Ours has adapters ({lm.inner_of(lm.ff_adapter)} wide, {lm.precision}), which peers lack."
        " llama.cpp runs its phi2 at GPT-J's sizes and takes no picture: its prompt has as many"
        " ids more.",
    )
    results = [
        _decode_result(config, entries, turns, setup, notes),
        _first_token_result(entries, turns, setup, notes),
    ]
    if part == "peers":
        return [(result, turns) for result in results]
    return [
        (
            replace(
                result,
                bench=f"{result.bench}_{part}",
                title=f"{result.title} ({title})",
                command=setup.command(part),
            ),
            turns,
        )
        for result in results
    ]


def _round_step_s(times: Times) -> float:
    return median(times.step_s)


def _decode_result(
    config: MagmaConfig,
    entries: dict[str, Entry],
    turns: Turns,
    setup: Setup,
    notes: tuple[str, ...],
) -> record.Result:
    slots = config.image_tokens + PROMPT_TOKENS + setup.tokens // 2
    rows = []
    samples: dict[str, list[float]] = {}
    for label, entry in entries.items():
        size = step_bytes(config, slots, entry.adapters)
        steps = turns.values(label, _round_step_s)
        shares = [
            size / turn.read_gb_per_s / 1e9 / _round_step_s(turn.value) for turn in turns.of[label]
        ]
        samples[f"{label}: step_s"] = [s for turn in turns.of[label] for s in turn.value.step_s]
        samples[f"{label}: share"] = shares
        rows.append(
            (
                label,
                f"{1 / median(steps):.2f}",
                f"{1e3 * median(steps):.0f} / {1e3 * min(steps):.0f}",
                f"{size / 1e9:.2f}",
                f"{median(shares):.2f}",
                _against(turns, label, _round_step_s, "read_gb_per_s"),
            )
        )
    return record.Result(
        bench=setup.bench("decode"),
        title="Decode: one sequence, one token at a time" + setup.held(),
        columns=("engine", "tokens/s", "ms a token", "GB read", "of bandwidth", "ours ÷ it"),
        rows=rows,
        samples=samples | turns.rate_samples(),
        setting={"setup": str(setup)},
        notes=(
            *notes,
            "Milliseconds: median / least of the rounds' medians. 'Of bandwidth': bytes that a"
            " token must read, through the time, over the bandwidth measured just before and after"
            " the engine's turn. 'Ours ÷ it': tokens/s of the first row's engine over this one's,"
            " median of the rounds' ratios.",
            "Targets: of bandwidth ≥ 0.75 (native off ≥ 0.60); ours ÷ transformers ≥ 1.5; ours ÷"
            " llama.cpp ≥ 0.95.",
        ),
        command=setup.command("peers"),
    )


def _against(turns: Turns, label: str, seconds: Callable[[Times], float], rate: str) -> str:
    """How many times faster than an engine ours, the first one, is.

    Args:
        turns: All of them.
        label: The engine.
        seconds: What counts of a turn.
        rate: What of the machine bounds it. Engines that did not take turns are compared by what
            they make of it: the machine may have changed from one to the next.
    """
    first = next(iter(turns.of))
    if not first.startswith("ours"):
        return "-"
    if turns.in_turn:
        return f"{ratio(turns.values(label, seconds), turns.values(first, seconds)):.2f}"
    costs = (
        median(
            seconds(turn.value) * (getattr(turn.before, rate) + getattr(turn.after, rate)) / 2
            for turn in turns.of[name]
        )
        for name in (label, first)
    )
    return f"{next(costs) / next(costs):.2f}"


def _first_token_result(
    entries: dict[str, Entry], turns: Turns, setup: Setup, notes: tuple[str, ...]
) -> record.Result:
    rows = []
    samples: dict[str, list[float]] = {}
    for label in entries:
        parts = {
            "first": turns.values(label, lambda times: times.first_s),
            "image": turns.values(label, lambda times: times.image_s),
            "prefill": turns.values(label, lambda times: times.prefill_s),
            "rest": turns.values(label, lambda t: t.first_s - t.image_s - t.prefill_s),
        }
        samples |= {f"{label}: {part}_s": values for part, values in parts.items()}
        with_picture = any(parts["image"])
        first = "-"
        if with_picture:
            first = _against(turns, label, lambda times: times.first_s, "matmul_gflops")
        cells = [f"{median(values):.2f}" for values in parts.values()]
        if not with_picture:
            cells[1] = "-"
        prefill = _against(turns, label, lambda times: times.prefill_s, "matmul_gflops")
        rows.append((label, *cells, first, prefill))
    return record.Result(
        bench=setup.bench("first_token"),
        title="Time to first token, picture included" + setup.held(),
        columns=(
            "engine",
            "first token, s",
            "image, s",
            "prefill, s",
            "rest, s",
            "ours ÷ it",
            "prefill: ours ÷ it",
        ),
        rows=rows,
        samples=samples | turns.rate_samples(),
        setting={"setup": str(setup)},
        notes=(
            *notes,
            "The picture goes through the whole encoder: ours in its own precision, transformers'"
            " through open_clip in float32. 'Ours ÷ it': its seconds over those of the first row's"
            " engine, median of the rounds' ratios: how many times faster that is.",
            "Targets: first token ≥ 6 times faster than transformers; prefill ≥ 1.0 times"
            " llama.cpp's.",
        ),
        command=setup.command("peers"),
    )
