"""Engines for benchmarks of memory: ours within limits, and peers whose weights are on disk."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.engine_llama import Llama, import_from
from benchmarks.engine_ours import Ours
from benchmarks.memory import STATUS, PeakMemory, read_from_disk
from config.config import MagmaConfig

PLAN_VARIABLE = "POPXL_TORCH_MEMORY_PLAN"


@dataclass(frozen=True)
class Steps:
    """Decode steps of one engine.

    Attributes:
        step_s: Seconds of each.
        peak_anonymous: Most anonymous memory of the process so far, in bytes.
        disk_bytes: What each read from disk, the mean of all runs over the weights.
        logits: A digest of all logits, those of the prompt and of steps that are not timed too.
        plan: What the engine keeps where, if it tells.
    """

    step_s: list[float]
    peak_anonymous: int
    disk_bytes: float
    logits: str = ""
    plan: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A model that is ready to run."""

    def steps(self, prompts: list[list[int]], tokens: int, warm_up: int) -> Steps:
        """Reads prompts of one length, takes `warm_up` steps, then measures more, greedily."""


def measured_steps(
    step: Callable[[list[list[int]]], list[list[int]]],
    prompts: list[list[int]],
    tokens: int,
    warm_up: int,
) -> Steps:
    """Has an engine take steps.

    Args:
        step: Appends ids (b, n) to the sequences and returns the next ids (b, 1).
        prompts: The first.
        tokens: Steps to measure.
        warm_up: Steps before them.
    """
    seconds, ids = [], prompts
    with PeakMemory() as peak:
        before = read_from_disk()
        for _ in range(1 + warm_up + tokens):
            start = time.perf_counter()
            ids = step(ids)
            seconds.append(time.perf_counter() - start)
        disk_bytes = (read_from_disk() - before) / len(seconds)
    return Steps(seconds[1 + warm_up :], peak.bytes["anonymous"], disk_bytes)


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

    def steps(self, prompts: list[list[int]], tokens: int, warm_up: int) -> Steps:
        """See :class:`Engine`."""
        digest = hashlib.sha256()

        def step(ids: list[list[int]]) -> list[list[int]]:
            first = ids is prompts
            logits = self._runs.start(None, ids) if first else self._runs.step(np.ravel(ids))
            digest.update(np.ascontiguousarray(logits))
            return logits.argmax(-1)[:, None].tolist()

        found = measured_steps(step, prompts, tokens, warm_up)
        self._most = max(self._most, found.peak_anonymous)
        plan = json.loads(Path(self._plan.name).read_text())
        return Steps(found.step_s, self._most, found.disk_bytes, digest.hexdigest(), plan)


class Offloaded:
    """transformers' GPT-J in bfloat16 with all weights on disk, by accelerate's disk_offload."""

    def __init__(self, config: MagmaConfig, folder: Path, threads: int) -> None:
        """Writes the weights below a folder."""
        from accelerate import disk_offload

        from benchmarks.engine_transformers import Greedy, random_gptj

        torch.set_num_threads(threads)
        self._folder = TemporaryDirectory(dir=folder)
        model = random_gptj(config, torch.bfloat16)
        disk_offload(model, self._folder.name, execution_device=torch.device("cpu"))
        self._greedy = Greedy(model)

    def steps(self, prompts: list[list[int]], tokens: int, warm_up: int) -> Steps:
        """See :class:`Engine`."""

        def step(ids: list[list[int]]) -> list[list[int]]:
            if ids is prompts:
                self._greedy.start(prompts)
            else:
                self._greedy.more(1)
            return []

        return measured_steps(step, prompts, tokens, warm_up)

    def close(self) -> None:
        """Deletes the weights."""
        self._folder.cleanup()


class LlamaSteps(Llama):
    """llama.cpp with the mean time of a step, which is what it tells."""

    def steps(self, prompts: list[list[int]], tokens: int, warm_up: int) -> Steps:
        """See :class:`Engine`; there is no warm-up."""
        with PeakMemory() as peak:
            before = read_from_disk()
            times = self.run(prompts, 1 + tokens, picture=False)
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
