"""Engines for benchmarks of memory: ours within limits, and accelerate's offload to disk."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.engine_ours import Ours
from benchmarks.memory import STATUS, PeakMemory
from config.config import MagmaConfig

PLAN_VARIABLE = "POPXL_TORCH_MEMORY_PLAN"


@dataclass(frozen=True)
class Steps:
    """Decode steps of one engine.

    Attributes:
        step_s: Seconds of each.
        peak_anonymous: Most anonymous memory of the process meanwhile, in bytes.
        plan: What the engine keeps where, if it tells.
    """

    step_s: list[float]
    peak_anonymous: int
    plan: dict[str, Any]


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
        self, config: MagmaConfig, folder: Path, threads: int, data_limit: int | None = None
    ) -> None:
        """Builds a session.

        Args:
            config: Of the folder.
            folder: A model folder.
            threads: Of torch.
            data_limit: Bytes of anonymous memory beyond what the process has once it has imported
                everything; None for no limit.
        """
        limit_data(data_limit)
        with PeakMemory() as self._building:
            super().__init__(config, (folder, config), "cached", threads, traced=False)

    def steps(self, prompts: list[list[int]], tokens: int) -> Steps:
        """Reads prompts and takes two tokens, then measures more."""
        with PeakMemory() as peak:
            self.run(prompts, 3, picture=False)
            seconds = self.more(tokens)
        path = os.environ.get(PLAN_VARIABLE)
        plan = json.loads(Path(path).read_text()) if path else {}
        most = max(peak.bytes["anonymous"], self._building.bytes["anonymous"])
        return Steps(seconds, most, plan)


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

    def steps(self, prompts: list[list[int]], tokens: int) -> Steps:
        """See :meth:`Limited.steps`."""
        with PeakMemory() as peak:
            self._greedy.start(prompts)
            self._greedy.more(1)
            seconds = self._greedy.more(tokens)
        return Steps(seconds, peak.bytes["anonymous"], {})

    def close(self) -> None:
        """Deletes the weights."""
        self._folder.cleanup()
