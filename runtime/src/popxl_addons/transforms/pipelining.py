"""Pipelines over IPUs. Signatures only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["pipelined_execution"]


@contextmanager
def pipelined_execution(steps: int) -> Iterator[Any]:
    """Run the ops of the block as a pipeline. Not implemented yet."""
    raise NotImplementedError("popxl_addons.pipelined_execution is not implemented yet")
    yield  # a context manager is a generator


def get_op_pipeline_stage(op: Any, op_dict: dict[int, list[Any]]) -> int:
    """Stage of an op. Not implemented yet."""
    raise NotImplementedError(
        "popxl_addons.transforms.pipelining.get_op_pipeline_stage is not implemented yet"
    )
