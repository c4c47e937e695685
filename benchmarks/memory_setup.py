"""What benchmarks of memory share: what runs, its files, a turn of an engine, and the limit."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.engine_memory import Steps
from benchmarks.engines import model_slice, random_prompts
from benchmarks.memory_cap import Cap
from benchmarks.memory_spans import WARM_UP, Measured, steps_of_turn
from benchmarks.turns import Turns
from benchmarks.workers import Worker
from config.config import MagmaConfig
from config.parsing import load_preset
from utils.folder_layout import QUANTISABLE
from utils.model_folder_rows import Storage

GIB = 1 << 30
PROMPT_TOKENS = 24
ALL_PARTS = tuple(QUANTISABLE)
STORAGE = {
    "float16": Storage(),
    "int8": Storage("int8", ALL_PARTS),
    "int4": Storage("int4", ALL_PARTS),
    "int8 blocks": Storage("int8"),
    "int4 blocks": Storage("int4"),
}
"""Ways of storing weights, by name. The last two leave head and adapters in float16, as
`execution.convert` does by default."""

ALIKE = {"float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
"""llama.cpp's names for storage of about as many bits."""

PEERS = {
    "accelerate": ("accelerate",),
    "airllm": ("airllm",),
    "llama": ("xllamacpp", "gguf"),
    "transformers": ("transformers",),
}
"""Other engines, and the packages that each needs."""


@dataclass(frozen=True)
class Setup:
    """What to measure, and with what.

    Attributes:
        preset: Whose widths the model has.
        blocks: Its decoder blocks.
        rounds: Turns of each engine.
        folder: For files of some gigabytes.
        threads: Of every engine.
        tokens: Decode steps in a row, those of a turn or of a span.
        spans: Of a turn of a process of its own, see :mod:`benchmarks.memory_spans`.
        budgets: In GiB.
        batches: Sequences of a run.
        storage: Keys of STORAGE.
        kv_dtype: Of keys and values; None for the model's.
        peers: Keys of PEERS.
        packages: Folder with packages of peers that are not installed, if any.
    """

    preset: str
    blocks: int
    rounds: int
    folder: Path
    threads: int
    tokens: int = 1
    spans: int = 1
    budgets: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    storage: tuple[str, ...] = tuple(ALIKE)
    kv_dtype: str | None = None
    peers: tuple[str, ...] = ()
    packages: Path | None = None

    @property
    def whole(self) -> bool:
        """Whether the model has all of the preset's blocks."""
        return self.blocks == load_preset(self.preset).transformer.layers

    @property
    def written_for(self) -> MagmaConfig:
        """The configuration of all files."""
        return load_preset(self.preset) if self.whole else self.config(PROMPT_TOKENS)

    def config(self, text_tokens: int | None = None, batch: int = 1) -> MagmaConfig:
        """What runs: no picture, so the least encoder, with room for so many ids.

        Args:
            text_tokens: Positions beside a picture's; None for as many as a turn needs.
            batch: Sequences.
        """
        needed = PROMPT_TOKENS + 1 + steps_of_turn(self.spans, self.tokens)
        text_tokens = text_tokens or needed
        config = model_slice(self.preset, self.blocks, text_tokens, 1, batch, encoder=False)
        config.transformer.execution.kv_dtype = self.kv_dtype
        return config

    def bench(self, part: str) -> str:
        """The name of a benchmark: other weights, keys and values are another one."""
        weights = "" if self.storage == tuple(ALIKE) else f"_{'_'.join(self.storage)}"
        kept = "" if self.kv_dtype is None else f"_kv_{self.kv_dtype}"
        return f"bench_memory_{part}" + ("_whole" if self.whole else "") + weights + kept

    def title(self, text: str) -> str:
        """A title that says what ran."""
        kept = "" if self.kv_dtype is None else f", keys and values in {self.kv_dtype}"
        return f"{text}{kept}: {'the whole model' if self.whole else f'{self.blocks} blocks'}"

    def command(self, part: str) -> str:
        """How a part is run."""
        weights = "" if self.storage == tuple(ALIKE) else f" --storage {' '.join(self.storage)}"
        kept = "" if self.kv_dtype is None else f" --kv-dtype {self.kv_dtype}"
        return f"bench_memory --blocks {self.blocks} --parts {part}{weights}{kept}"

    def note(self) -> str:
        """What ran."""
        return (
            f"{self.blocks} decoder blocks and the head at the widths of {self.preset}, random"
            f" weights, {self.threads} threads; turns of each engine, which take them in turn:"
            f" {self.rounds}."
        )

    # -- files ------------------------------------------------------------------------------

    def file(self, name: str) -> Path:
        """A file or folder."""
        return self.folder / f"{self.preset}_{self.blocks}_{name.replace(' ', '_')}"

    def model_folder(self, storage: str) -> Path:
        """A model folder, which is written if it is not there."""
        from utils.checkpoint import open_checkpoint
        from utils.checkpoint_writer import write_random_checkpoint
        from utils.model_folder_writer import write_model_folder

        folder, config = self.file(storage), self.written_for
        if folder.exists():
            return folder
        self.folder.mkdir(parents=True, exist_ok=True)
        random = self.file("random.pt")
        if storage == "float16":
            write_random_checkpoint(random, config, dtype="float16")
        source = random if storage == "float16" else self.model_folder("float16")
        write_model_folder(open_checkpoint(source, config), config, folder, STORAGE[storage])
        random.unlink(missing_ok=True)
        return folder

    def gguf(self, storage: str) -> Path:
        """llama.cpp's file, which is written if it is not there."""
        from benchmarks.engine_llama import write_gguf

        path = self.file(f"{storage}.gguf")
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            write_gguf(part, self.written_for, self.packages, storage)
            part.rename(path)
        return path

    def delete_files(self) -> None:
        """Removes all of them."""
        for path in self.folder.glob(f"{self.preset}_{self.blocks}_*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- engines ----------------------------------------------------------------------------

    def has(self, peer: str) -> bool:
        """Whether a peer is wanted and installed; says so if it is not."""
        if self.packages is not None and str(self.packages) not in sys.path:
            sys.path.append(str(self.packages))
        lacking = [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]
        if peer in self.peers and lacking:
            print(f"skipped {peer}: not installed: {', '.join(lacking)}")
        return peer in self.peers and not lacking

    def ours(
        self,
        storage: str,
        config: MagmaConfig | None = None,
        data_limit: int | None = None,
        cap: Cap | None = None,
        **settings: object,
    ) -> Worker:
        """A process with our engine.

        Args:
            storage: A key of STORAGE.
            config: What runs; None for one sequence and the positions of a turn.
            data_limit: See :class:`benchmarks.engine_memory.Limited`.
            cap: On all memory.
            settings: Of the engine.
        """
        return Worker(
            "benchmarks.engine_memory:Limited",
            config or self.config(),
            (self.model_folder(storage), self.written_for),
            self.threads,
            data_limit,
            environment={f"POPXL_TORCH_{n.upper()}": str(value) for n, value in settings.items()},
            launcher=cap and cap.launcher,
        )

    def transformers(self) -> Worker:
        """A process with transformers, all weights in memory."""
        return Worker("benchmarks.engine_memory:Resident", self.written_for, self.threads)

    def offloaded(self) -> Worker:
        """A process with accelerate, which deletes its files."""
        arguments = (self.written_for, self.folder, self.threads)
        return Worker("benchmarks.engine_memory:Offloaded", *arguments)

    def airllm(self) -> Worker:
        """A process with AirLLM, whose folder is written if it is not there."""
        folder = self.file("airllm")
        if not folder.exists():
            arguments = (folder, self.written_for, self.packages)
            Worker("benchmarks.engine_memory:write_airllm_folder", *arguments).close()
        arguments = (self.written_for, folder, self.threads, self.packages)
        return Worker("benchmarks.engine_memory:air_llm", *arguments)

    def llama(self, storage: str, cap: Cap | None = None) -> Worker:
        """A process with llama.cpp."""
        positions = self.config().total_tokens
        arguments = (self.gguf(storage), self.written_for, self.threads, self.packages, positions)
        launcher = cap and cap.launcher
        return Worker("benchmarks.engine_memory:LlamaSteps", *arguments, launcher=launcher)


def prompts_of(config: MagmaConfig, length: int = PROMPT_TOKENS) -> list[list[int]]:
    """The prompts of a turn."""
    return random_prompts(config, length)


def turn_of(worker: Worker, prompts: list[list[int]], tokens: int) -> Callable[[], Steps]:
    """A turn of a process that stays."""
    return lambda: worker.call("steps", prompts, tokens, WARM_UP)


# -- results --------------------------------------------------------------------------------


def step_s(turn: Steps | Measured) -> float:
    """Seconds of a step, the median."""
    return median(turn.step_s)


def check_identical(turns: Turns, alike: Mapping[str, str]) -> None:
    """Checks that how weights are kept has changed no logit.

    Args:
        turns: Of the same prompts.
        alike: What must be equal, by engine: engines with the same text have the same logits.

    Raises:
        RuntimeError: They are not.
    """
    logits: dict[str, dict[str, str]] = {}
    for name, what in alike.items():
        for turn in turns.of[name]:
            logits.setdefault(what, {}).setdefault(turn.value.logits, name)
    for what, names in logits.items():
        if len(names) > 1:
            raise RuntimeError(f"{what}: the logits differ between {' and '.join(names.values())}")


def samples(turns: Turns) -> dict[str, list[float]]:
    """Every measured value, by name."""
    found = turns.rate_samples()
    for name, of in turns.of.items():
        found[f"{name}: step_s"] = [s for turn in of for s in turn.value.step_s]
        found[f"{name}: peak_bytes"] = [float(turn.value.peak_anonymous) for turn in of]
        found[f"{name}: disk_bytes"] = [turn.value.disk_bytes for turn in of]
        frames = [
            frame.disk_gb_per_s
            for turn in of
            if isinstance(turn.value, Measured)
            for frame in (*(span.before for span in turn.value.spans), turn.value.spans[-1].after)
        ]
        if frames and math.inf not in frames:
            found[f"{name}: disk_gb_per_s"] = frames
    return found


def peak_gib(turns: Turns, name: str) -> str:
    """The most anonymous memory of an engine, as a cell."""
    return f"{max(turns.values(name, lambda turn: turn.peak_anonymous)) / GIB:.2f}"
