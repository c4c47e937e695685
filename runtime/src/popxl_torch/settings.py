"""Every setting of the engine: default and meaning.

A setting travels with a session as ``getSessionOptions().engineOptions["popxl_torch.<name>"]``; the
environment variable is its default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_PREFIX = "popxl_torch."
AUTO = -1
"""The budget that is what is free."""

FUSIONS = ("attention", "gelu", "layer_norm", "linear", "rotary", "sums", "views")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one session runs.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; empty picks cuda if there is one, else cpu.
        arithmetic: ``exact`` rounds every float16 result to float16; ``fast`` keeps activations in
            float32 where the device is faster so, and rounds when they are stored.
        executor: ``plan`` runs all replicas as one vectorised program; ``interpreter`` runs them
            one by one, slowly, and is the oracle of the passes.
        backend: ``torch``, or ``null``, which computes nothing and needs no memory.
        join_shards: whether matmuls over shards of one matrix are joined.
        fuse: which fusions are made (see passes/pipeline.py), of :data:`FUSIONS`. As text, names
            with commas between them, ``all`` or ``none``.
        device_memory: bytes that the process may take for a session, with what it has before: on a
            CPU of anonymous memory, on a GPU of what PyTorch allocates there; 0 for no limit,
            which on a GPU is what is free, :data:`AUTO` for what is free. As text, a number of
            bytes, a number with a unit such as 512MiB or 2GiB, or ``auto``.
        weights: ``mapped``: on a CPU weights are used where their files are mapped; ``read``: they
            are read from their files into memory of the session's own. On a GPU the rest beyond
            the budget is read for each use, from mapped files through the page cache with
            ``mapped`` and past it with ``read``; ``pinned`` keeps it in pinned memory of the host
            (on a CPU it is as ``read``).
        prefetch: reads under way ahead of the one that is needed; 0 for none.
        cuda_graphs: whether parts of runs on a GPU are recorded as CUDA graphs.
        memory_plan: path of a JSON file that says what is kept where (see executor/memory_plan.py);
            empty for none.
        trace: path of a JSON file that is rewritten after each run; empty for none.
        debug: 0 quiet, 1 passes and times, 2 the functional program, 3 the plan.
    """

    device: str = ""
    arithmetic: str = "exact"
    executor: str = "plan"
    backend: str = "torch"
    join_shards: bool = True
    fuse: tuple[str, ...] = FUSIONS
    device_memory: int = 0
    weights: str = "mapped"
    prefetch: int = 1
    cuda_graphs: bool = True
    memory_plan: str = ""
    trace: str = ""
    debug: int = 0


_ENVIRONMENT = {
    "device": "POPXL_DEVICE",
    "arithmetic": "POPXL_TORCH_ARITHMETIC",
    "executor": "POPXL_TORCH_EXECUTOR",
    "backend": "POPXL_TORCH_BACKEND",
    "join_shards": "POPXL_TORCH_JOIN_SHARDS",
    "fuse": "POPXL_TORCH_FUSE",
    "device_memory": "POPXL_TORCH_DEVICE_MEMORY",
    "weights": "POPXL_TORCH_WEIGHTS",
    "prefetch": "POPXL_TORCH_PREFETCH",
    "cuda_graphs": "POPXL_TORCH_CUDA_GRAPHS",
    "memory_plan": "POPXL_TORCH_MEMORY_PLAN",
    "trace": "POPXL_TORCH_TRACE",
    "debug": "POPXL_TORCH_DEBUG",
}
_CHOICES = {
    "arithmetic": ("exact", "fast"),
    "executor": ("plan", "interpreter"),
    "backend": ("torch", "null"),
    "weights": ("mapped", "read", "pinned"),
}
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def read_settings(engine_options: Mapping[str, str]) -> Settings:
    """Settings of a session: its engine options, else the environment, else the defaults.

    Raises:
        ValueError: an unknown ``popxl_torch.`` option or a value that it does not take.
    """
    texts = {name: os.environ[key] for name, key in _ENVIRONMENT.items() if os.environ.get(key)}
    for option, value in engine_options.items():
        if option.startswith(_PREFIX):
            name = option[len(_PREFIX) :]
            if name not in _ENVIRONMENT:
                known = ", ".join(sorted(_PREFIX + name for name in _ENVIRONMENT))
                raise ValueError(f"Unknown engine option {option!r}; there are {known}.")
            texts[name] = str(value)
    for name, choices in _CHOICES.items():
        if name in texts and texts[name] not in choices:
            raise ValueError(f"{_PREFIX}{name} must be one of {choices}, not {texts[name]!r}.")
    values: dict[str, object] = dict(texts)
    for name in ("join_shards", "cuda_graphs"):
        if name in texts:
            values[name] = texts[name].lower() not in ("0", "false", "off")
    if "fuse" in texts:
        values["fuse"] = _fusions(texts["fuse"])
    if "debug" in texts:
        values["debug"] = int(texts["debug"])
    if "device_memory" in texts:
        values["device_memory"] = _bytes(texts["device_memory"])
    if "prefetch" in texts:
        if not texts["prefetch"].isdecimal():
            raise ValueError(
                f"{_PREFIX}prefetch must be a number of reads, 0 or more, not"
                f" {texts['prefetch']!r}."
            )
        values["prefetch"] = int(texts["prefetch"])
    return Settings(**values)  # type: ignore[arg-type]


def _fusions(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return FUSIONS if text == "all" else ()
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in FUSIONS]
    if unknown:
        raise ValueError(
            f"{_PREFIX}fuse takes all, none, or some of {', '.join(FUSIONS)} with commas between"
            f" them, not {', '.join(map(repr, unknown))}."
        )
    return names


def _bytes(text: str) -> int:
    if text.strip() == "auto":
        return AUTO
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if found is None or found[2] not in _UNITS:
        raise ValueError(
            f"{_PREFIX}device_memory takes a number of bytes, a number with {', '.join(_UNITS)[2:]}"
            f" behind it such as 2GiB, or auto, not {text!r}."
        )
    return int(float(found[1]) * _UNITS[found[2]])
