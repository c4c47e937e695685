"""This project's engine for benchmarks of generation."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.engines import SliceWeights, Times
from config.config import MagmaConfig
from execution.prompts import Picture, Prompt
from execution.report import read_trace
from execution.runs import runs_of
from execution.weights import load_weights
from inference import inference
from modelling.mapping import model_weights
from utils.random_tensors import RandomTensors


class Ours:
    """See :class:`benchmarks.engines.Engine`. Sequences never end."""

    def __init__(
        self,
        config: MagmaConfig,
        weights: tuple[Path, MagmaConfig] | None,
        scheme: str = "cached",
        threads: int | None = None,
        traced: bool = True,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Builds a session.

        Args:
            config: What to run.
            weights: A checkpoint and the configuration that it was written for; None for random
                weights in memory.
            scheme: See :func:`inference.inference`.
            threads: Of torch; None for its default.
            traced: Whether to ask the engine where time goes, for `image_s` and `prefill_s`.
            arrays: The weights of another engine of the same sizes, instead of reading them again.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._config = config
        self._folder = tempfile.TemporaryDirectory()
        self._trace = Path(self._folder.name) / "trace.json" if traced else None
        session = inference(config, self._trace, scheme)
        self.arrays = _arrays(config, weights) if arrays is None else arrays
        load_weights(session, self.arrays)
        self._session = session.__enter__()
        self._runs = runs_of(session, config, pad_id=0)
        self._rng = np.random.default_rng(1)

    def run(self, prompts: list[list[int]], new_tokens: int, picture: bool) -> Times:
        """See :class:`benchmarks.engines.Engine`."""
        whole: list[Prompt] = list(prompts)
        if picture:
            whole = [[Picture(row), *ids] for row, ids in enumerate(prompts)]
        before = self._phases()
        pictures = self._new_pictures() if picture else None
        start = time.perf_counter()
        logits = self._runs.start(pictures, whole)
        self._newest = logits.argmax(-1)
        first_s = time.perf_counter() - start
        image_s, prefill_s = (b - a for a, b in zip(before, self._phases(), strict=True))
        self._ids = [self._newest.tolist()]
        step_s = self.more(new_tokens - 1)
        return Times(first_s, image_s, prefill_s, step_s, np.transpose(self._ids).tolist())

    def _new_pictures(self) -> np.ndarray:
        """Pictures that were not there before: known ones would not be encoded again."""
        side, dtype = self._config.visual.image_resolution, self._config.visual.precision
        shape = (self._config.batch, 3, side, side)
        return self._rng.standard_normal(shape, np.float32).astype(np.dtype(str(dtype)))

    def more(self, tokens: int) -> list[float]:
        """See :class:`benchmarks.engines.Engine`."""
        marks = [time.perf_counter()]
        for _ in range(tokens):
            self._newest = self._runs.step(self._newest.tolist()).argmax(-1)
            self._ids.append(self._newest.tolist())
            marks.append(time.perf_counter())
        return [b - a for a, b in pairwise(marks)]

    def close(self) -> None:
        """Ends the session."""
        self._session.__exit__(None, None, None)
        self._folder.cleanup()

    def _phases(self) -> tuple[float, float]:
        """Seconds so far in the image encoder and in the language model's first runs."""
        rows = read_trace(self._trace) or ()
        return tuple(
            sum(row.ms for row in rows if row.name.split("/")[0] == name) / 1e3
            for name in ("image_prefix", "prefill")
        )


def _arrays(config: MagmaConfig, weights: tuple[Path, MagmaConfig] | None) -> dict[str, np.ndarray]:
    dtype = str(config.transformer.precision)
    tensors = RandomTensors(config, dtype=dtype) if weights is None else None
    return model_weights(config, tensors or SliceWeights(config, *weights))


class OursSeveral:
    """Several sessions in one process, by a key, sharing one file of weights."""

    def __init__(
        self,
        configs: dict[int, MagmaConfig],
        weights: tuple[Path, MagmaConfig] | None,
        threads: int | None = None,
    ) -> None:
        """Builds a session of each configuration; see :class:`Ours`."""
        self._engines: dict[int, Ours] = {}
        arrays = None
        for key, config in configs.items():
            engine = Ours(config, weights, threads=threads, traced=False, arrays=arrays)
            self._engines[key], arrays = engine, engine.arrays

    def run(self, key: int, prompts: list[list[int]], new_tokens: int) -> Times:
        """As :meth:`Ours.run` without a picture."""
        return self._engines[key].run(prompts, new_tokens, picture=False)

    def more(self, key: int, tokens: int) -> list[float]:
        """As :meth:`Ours.more`."""
        return self._engines[key].more(tokens)

    def close(self) -> None:
        """Ends all sessions."""
        for engine in self._engines.values():
            engine.close()
