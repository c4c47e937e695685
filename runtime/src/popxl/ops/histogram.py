"""Histogram."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, List

from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    if specs[0].dtype not in ("float16", "float32"):
        raise popart_exception(f"histogram needs float16 or float32, not {specs[0]}")
    return [Spec((len(attrs["levels"]) + 1,), "uint32")]


define(OpDef("Histogram", _infer, flops=lambda ins, outs, attrs: ins[0].nelms))


def check_increment(levels: List[float]) -> None:
    """ValueError unless each level is above the one before."""
    if any(low >= high for low, high in itertools.pairwise(levels)):
        raise ValueError(f"The levels are not a monotonically increasing list: {levels}.")


@op_debug_context
def histogram(t: Tensor, levels: List[float], absolute_of_input: bool) -> Tensor:
    """How many elements lie below, between and above ``levels``.

    Args:
        t: float16 or float32, any shape.
        levels: strictly increasing.
        absolute_of_input: count absolute values.

    Returns:
        uint32 counts, one more than there are levels; bin i counts levels[i-1] <= x < levels[i].

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or the levels do not increase.
        popart_exception: ``t`` has another dtype.
    """
    check_in_graph(get_current_context().graph, t=t)
    check_increment(levels)
    attrs = {
        "levels": tuple(float(level) for level in levels),
        "absolute_of_input": bool(absolute_of_input),
    }
    return _create_op("Histogram", [t], attrs, ["histogram_out"])[0]
