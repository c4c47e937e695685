"""Random tensors from a seed tensor: stateless, the same seed gives the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Tuple

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    seed = specs[0]
    if seed.shape != (2,) or seed.dtype != "uint32":
        raise popart_exception(f"a seed has shape (2,) and dtype uint32, not {seed}")
    if attrs["dtype"] not in ("float16", "float32"):
        raise popart_exception(f"random numbers are float16 or float32, not {attrs['dtype']}")
    return [Spec(attrs["shape"], attrs["dtype"])]


define(OpDef("RandomUniform", _infer))
define(OpDef("RandomNormal", _infer))


@op_debug_context
def random_uniform(
    seed_tensor: Tensor,
    shape: Tuple[int, ...],
    low: float = 0.0,
    high: float = 1.0,
    dtype: dtypes.dtype = dtypes.float32,
) -> Tensor:
    """Uniform numbers in [low, high).

    Args:
        seed_tensor: (2,) uint32.
        shape: of the result.
        low: smallest value.
        high: bound.
        dtype: float16 or float32.

    Raises:
        popart_exception: another seed or dtype.
    """
    check_in_graph(get_current_context().graph, seed_tensor=seed_tensor)
    attrs = {"shape": tuple(shape), "dtype": dtype.name, "low": float(low), "high": float(high)}
    return _create_op("RandomUniform", [seed_tensor], attrs, ["random_uniform_out"])[0]


@op_debug_context
def random_normal(
    seed_tensor: Tensor,
    shape: Tuple[int, ...],
    mean: float = 0.0,
    std: float = 1.0,
    dtype: dtypes.dtype = dtypes.float32,
) -> Tensor:
    """Normal numbers. See :func:`random_uniform`.

    Args:
        seed_tensor: (2,) uint32.
        shape: of the result.
        mean: expected value.
        std: standard deviation.
        dtype: float16 or float32.
    """
    check_in_graph(get_current_context().graph, seed_tensor=seed_tensor)
    attrs = {"shape": tuple(shape), "dtype": dtype.name, "mean": float(mean), "std": float(std)}
    return _create_op("RandomNormal", [seed_tensor], attrs, ["random_normal_out"])[0]
