"""Rewrites that a program asks for before its session is made."""

from __future__ import annotations

from typing import Literal

from popxl import Ir

patterns_level = ("no_patterns", "minimal", "default", "all")


def apply_pre_alias_patterns(
    ir: Ir, level: Literal["no_patterns", "minimal", "default", "all"] = "default"
) -> None:
    """Recorded only: our ops are created in their final form (an all-reduce of
    identical inputs is an identity from the start), and the engine has its own passes.

    Raises:
        KeyError: an unknown level.
    """
    if level not in patterns_level:
        raise KeyError(f"apply_pre_alias_patterns: {level!r} is none of {patterns_level}")
