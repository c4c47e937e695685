"""Every setting of the engine: default and meaning.

A setting travels with a session as ``getSessionOptions().engineOptions["popxl_torch.<name>"]``; the
environment variable is its default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

_PREFIX = "popxl_torch."
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
        trace: path of a JSON file that is rewritten after each run; empty for none.
        debug: 0 quiet, 1 passes and times, 2 the functional program, 3 the plan.
    """

    device: str = ""
    arithmetic: str = "exact"
    executor: str = "plan"
    backend: str = "torch"
    join_shards: bool = True
    fuse: tuple[str, ...] = FUSIONS
    trace: str = ""
    debug: int = 0


_ENVIRONMENT = {
    "device": "POPXL_DEVICE",
    "arithmetic": "POPXL_TORCH_ARITHMETIC",
    "executor": "POPXL_TORCH_EXECUTOR",
    "backend": "POPXL_TORCH_BACKEND",
    "join_shards": "POPXL_TORCH_JOIN_SHARDS",
    "fuse": "POPXL_TORCH_FUSE",
    "trace": "POPXL_TORCH_TRACE",
    "debug": "POPXL_TORCH_DEBUG",
}
_CHOICES = {
    "arithmetic": ("exact", "fast"),
    "executor": ("plan", "interpreter"),
    "backend": ("torch", "null"),
}


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
    if "join_shards" in texts:
        values["join_shards"] = texts["join_shards"].lower() not in ("0", "false", "off")
    if "fuse" in texts:
        values["fuse"] = _fusions(texts["fuse"])
    if "debug" in texts:
        values["debug"] = int(texts["debug"])
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
