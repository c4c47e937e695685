"""What the update ops share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict

from popxl.context import get_current_context
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


@dataclass(frozen=True)
class _OptimizerValue:
    """A factor: a number known when the graph is built, or the value of an input."""

    value: float
    is_const: bool


def handle_optimizer_value(f: Any, ins: Dict[int, str], index: int) -> _OptimizerValue:
    """``f`` as a factor. A tensor's id is put into ``ins`` at ``index``; None counts as 0."""
    if isinstance(f, Tensor):
        check_in_graph(get_current_context().graph, f=f)
        ins[index] = f.id
        return _OptimizerValue(0.0, False)
    return _OptimizerValue(0.0 if f is None else float(f), True)


def _factor(f: Any) -> tuple[float | None, Tensor | None]:
    """(number, None) or (None, tensor of the current graph)."""
    ins: Dict[int, str] = {}
    value = handle_optimizer_value(f, ins, 0)
    return (value.value, None) if value.is_const else (None, f)
