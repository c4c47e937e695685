"""Engines for benchmarks of memory: ours within limits, and peers whose weights are on disk."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.engine_llama import Llama, import_from
from benchmarks.engine_ours import Ours
from benchmarks.memory import STATUS, PeakMemory, read_from_disk
from config.config import MagmaConfig
from execution.prompts import Picture, Prompt

PLAN_VARIABLE = "POPXL_TORCH_MEMORY_PLAN"

Prompts = Sequence[Prompt] | None


@dataclass(frozen=True)
class Steps:
    """Decode steps of one engine.

    Attributes:
        step_s: Seconds of each.
        peak_anonymous: Most anonymous memory of the process so far, in bytes.
        disk_bytes: What each read from disk, their mean.
        logits: A digest of all logits since the prompt, those of steps that are not timed too.
        plan: What the engine keeps where, if it tells.
    """

    step_s: list[float]
    peak_anonymous: int
    disk_bytes: float
    logits: str = ""
    plan: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A model that is ready to run."""

    def steps(self, prompts: Prompts, tokens: int, warm_up: int) -> Steps:
        """Takes `warm_up` steps, then measures more, greedily.

        Args:
            prompts: Of one length, to be read first; None to go on where the last steps ended.
            tokens: Steps to measure.
            warm_up: Steps before them.
        """


class Stepping:
    """An :class:`Engine` whose runs are functions."""

    def __init__(self, read: Callable[[Any], object], step: Callable[[], object]) -> None:
        """``read`` takes prompts, ``step`` makes the next token of each sequence."""
        self._read, self._step = read, step
        self._most = 0

    def steps(self, prompts: Prompts, tokens: int, warm_up: int) -> Steps:
        """See :class:`Engine`."""
        seconds = []
        with PeakMemory() as peak:
            if prompts is not None:
                self._read(prompts)
            for _ in range(warm_up):
                self._step()
            before = read_from_disk()
            for _ in range(tokens):
                start = time.perf_counter()
                self._step()
                seconds.append(time.perf_counter() - start)
            disk_bytes = (read_from_disk() - before) / max(1, tokens)
        self._most = max(self._most, peak.bytes["anonymous"])
        return Steps(seconds, self._most, disk_bytes)


def limit_data(more_bytes: int | None) -> None:
    """Limits what this process may map privately for writing, beyond what it has: anonymous
    memory and stacks. Mapped files are not counted."""
    if more_bytes is not None:
        rows = (line.split() for line in STATUS.read_text().splitlines())
        now = next(int(row[1]) for row in rows if row[0] == "VmData:") * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (now + more_bytes, now + more_bytes))


class Limited(Ours):
    """Ours, with weights from a model folder; environment variables say how they are kept."""

    def __init__(
        self,
        config: MagmaConfig,
        weights: tuple[Path, MagmaConfig],
        threads: int,
        data_limit: int | None = None,
    ) -> None:
        """Builds a session.

        Args:
            config: What to run.
            weights: A model folder, and the configuration that it was written for.
            threads: Of torch.
            data_limit: Bytes of anonymous memory beyond what the process has once it has imported
                everything; None for no limit.
        """
        self._plan = NamedTemporaryFile(suffix=".json")  # noqa: SIM115  (lives with the engine)
        os.environ[PLAN_VARIABLE] = self._plan.name
        limit_data(data_limit)
        with PeakMemory() as peak:
            super().__init__(config, weights, "cached", threads, traced=False)
        self._most = peak.bytes["anonymous"]
        self._stepping = Stepping(self._read, self._step)

    def steps(self, prompts: Prompts, tokens: int, warm_up: int) -> Steps:
        """See :class:`Engine`."""
        found = self._stepping.steps(prompts, tokens, warm_up)
        plan = json.loads(Path(self._plan.name).read_text())
        most = max(self._most, found.peak_anonymous)
        return replace(found, peak_anonymous=most, logits=self._digest.hexdigest(), plan=plan)

    def _read(self, prompts: Sequence[Prompt]) -> None:
        """All pictures of prompts are one."""
        self._digest = hashlib.sha256()
        shown = any(isinstance(item, Picture) for prompt in prompts for item in prompt)
        pictures = self._new_pictures()[:1] if shown else None
        self._note(self._runs.start(pictures, prompts))

    def _step(self) -> None:
        self._note(self._runs.step(self._newest.tolist()))

    def _note(self, logits: np.ndarray) -> None:
        self._digest.update(np.ascontiguousarray(logits))
        self._newest = logits.argmax(-1)


class Resident(Stepping):
    """transformers' GPT-J in float16, in memory."""

    def __init__(self, config: MagmaConfig, threads: int) -> None:
        """Makes the weights."""
        from benchmarks.engine_transformers import Greedy, random_gptj

        torch.set_num_threads(threads)
        greedy = Greedy(random_gptj(config, torch.float16))
        super().__init__(greedy.start, partial(greedy.more, 1))


class Offloaded(Stepping):
    """transformers' GPT-J in bfloat16 with all weights on disk, by accelerate's disk_offload."""

    def __init__(self, config: MagmaConfig, folder: Path, threads: int) -> None:
        """Writes the weights below a folder."""
        from accelerate import disk_offload

        from benchmarks.engine_transformers import Greedy, random_gptj

        torch.set_num_threads(threads)
        self._folder = TemporaryDirectory(dir=folder)
        model = random_gptj(config, torch.bfloat16)
        disk_offload(model, self._folder.name, execution_device=torch.device("cpu"))
        greedy = Greedy(model)
        super().__init__(greedy.start, partial(greedy.more, 1))

    def close(self) -> None:
        """Deletes the weights."""
        self._folder.cleanup()


class LlamaSteps(Llama):
    """llama.cpp with the mean time of a step, which is what it tells."""

    def steps(self, prompts: Prompts, tokens: int, warm_up: int) -> Steps:
        """See :class:`Engine`; reading the prompt takes the place of the warm-up, and where it is
        to go on, it begins with the same prompt again."""
        self._prompts = prompts or self._prompts
        if not tokens:
            return Steps([], 0, 0.0)
        with PeakMemory() as peak:
            before = read_from_disk()
            times = self.run(self._prompts, 1 + tokens, picture=False)
            disk_bytes = (read_from_disk() - before) / (1 + tokens)
        return Steps(times.step_s, peak.bytes["anonymous"], disk_bytes)


def air_llm(config: MagmaConfig, folder: Path, threads: int, packages: Path | None) -> Engine:
    """AirLLM, with packages in a folder of their own; see :mod:`benchmarks.engine_airllm`."""
    import_from(packages)
    from benchmarks.engine_airllm import AirLLM

    return AirLLM(config, folder, threads)


def write_airllm_folder(folder: Path, config: MagmaConfig, packages: Path | None) -> None:
    """What :func:`air_llm` opens."""
    import_from(packages)
    from benchmarks.engine_airllm import write_folder

    write_folder(folder, config)
