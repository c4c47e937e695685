"""Seeds made from seeds."""

from __future__ import annotations

from typing import Tuple

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor, constant
from popxl_torch.ir.opdef import OpDef, define, same

define(OpDef("ModifyRandomSeed", same))


@op_debug_context
def create_random_seed(seed: Tensor, modifier: Tensor) -> Tensor:
    """A seed that depends on ``seed`` and on ``modifier``, a uint32 scalar."""
    check_in_graph(get_current_context().graph, seed=seed, modifier=modifier)
    return _create_op("ModifyRandomSeed", [seed, modifier], None, ["modified_seed"])[0]


@op_debug_context
def split_random_seed(seed: Tensor, n: int = 2) -> Tuple[Tensor, ...]:
    """``n`` different seeds, always the same ones for a seed.

    Args:
        seed: (2,) uint32.
        n: how many.

    Raises:
        ValueError: another shape or dtype.
    """
    check_in_graph(get_current_context().graph, seed=seed)
    if seed.dtype is not dtypes.uint32 or seed.shape != (2,):
        raise ValueError(f"A seed must have shape (2,) and dtype uint32: {seed}")
    return tuple(create_random_seed(seed, constant(i, dtypes.uint32, "modifier")) for i in range(n))
