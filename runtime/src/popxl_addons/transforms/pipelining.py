"""Pipelines over IPUs. Signatures only."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

__all__ = ["pipelined_execution"]


def pipelined_execution(steps: int) -> AbstractContextManager[Any]:
    """Run the ops of the block as a pipeline. Not implemented yet."""
    raise NotImplementedError("popxl_addons.pipelined_execution is not implemented yet")


def get_op_pipeline_stage(op: Any, op_dict: dict[int, list[Any]]) -> int:
    """Stage of an op. Not implemented yet."""
    raise NotImplementedError(
        "popxl_addons.transforms.pipelining.get_op_pipeline_stage is not implemented yet"
    )
