"""Whether matmuls keep transposed weights: recorded on IPUs, no effect here."""

from __future__ import annotations

import popxl

__all__ = ["disable_fc_pass", "enable_fc_pass"]


def disable_fc_pass(ir: popxl.Ir) -> None:
    """Recorded only: results do not depend on it."""


def enable_fc_pass(ir: popxl.Ir) -> None:
    """Recorded only: results do not depend on it."""
