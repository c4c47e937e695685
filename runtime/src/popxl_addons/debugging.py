"""Prints that the environment variable MODEL_LOG_LEVEL switches on."""

from __future__ import annotations

import os
from typing import Any, Literal

import popxl
from popxl import ops

__all__ = ["print_tensor", "print_text"]

LEVELS_TYPE = Literal["TRACE", "DEBUG", "INFO", "WARN"]
LEVELS = {"TRACE": 0, "DEBUG": 1, "INFO": 2, "WARN": 3}

MODEL_LOG_LEVEL = os.environ.get("MODEL_LOG_LEVEL", "INFO")
MODEL_LOG_LEVEL_VAL = LEVELS[MODEL_LOG_LEVEL]


def print_tensor(
    t: popxl.Tensor, *args: Any, level: LEVELS_TYPE = "DEBUG", **kwargs: Any
) -> popxl.Tensor:
    """`ops.print_tensor` if MODEL_LOG_LEVEL is at or below `level`, else `t` itself."""
    if LEVELS[level] < MODEL_LOG_LEVEL_VAL:
        return t
    return ops.print_tensor(t, *args, **kwargs)


def print_text(text: str, num: popxl.Tensor | None = None, level: LEVELS_TYPE = "DEBUG") -> None:
    """Print a text when the program runs.

    Args:
        text: what to print.
        num: a tensor to print with it.
        level: print only if MODEL_LOG_LEVEL is at or below.
    """
    if LEVELS[level] < MODEL_LOG_LEVEL_VAL:
        return
    if num is None:
        num = popxl.constant(0, popxl.int32)
    ops.print_tensor(num, title=text)
