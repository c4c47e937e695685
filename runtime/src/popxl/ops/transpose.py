"""Permutation of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Tuple

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (spec,) = specs
    if sorted(attrs["perm"]) != list(range(len(spec.shape))):
        raise popart_exception(
            f"{attrs['perm']} is no permutation of the {len(spec.shape)} axes of {spec}"
        )
    return [Spec(tuple(spec.shape[axis] for axis in attrs["perm"]), spec.dtype)]


define(OpDef("Transpose", _infer, moves_data=True))
define(OpDef("TransposeInplace", _infer, pure="Transpose", view=True, moves_data=True))


def _transpose(kind: str, t: Tensor, permutation: Optional[Tuple[int, ...]]) -> Tensor:
    rank = t.rank
    perm = tuple(reversed(range(rank))) if permutation is None else tuple(permutation)
    check_in_graph(get_current_context().graph, t=t)
    if any(axis >= rank for axis in perm):
        raise ValueError(f"Values in permutation must be less than {rank}. Permutation: {perm}.")
    return _create_op(kind, [t], {"perm": perm}, [f"{t.name}_T"])[0]


@op_debug_context
def transpose(t: Tensor, permutation: Optional[Tuple[int, ...]] = None) -> Tensor:
    """Axis ``i`` of the result is axis ``permutation[i]`` of ``t``.

    Args:
        t: any shape.
        permutation: every axis once, non-negative; by default the order is reversed.

    Raises:
        AttributeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or an entry is not below its rank.
        popart_exception: not a permutation of the axes.
    """
    return _transpose("Transpose", t, permutation)


@op_debug_context
def transpose_(t: Tensor, permutation: Optional[Tuple[int, ...]] = None) -> Tensor:
    """As :func:`transpose`, but the result is an alias of ``t``."""
    return _transpose("TransposeInplace", t, permutation)


@gradient("Transpose")
def _gradients(site: GradSite) -> Grads:
    perm = site.attrs["perm"]
    inverse = tuple(perm.index(axis) for axis in range(len(perm)))
    return [lambda: transpose(site.grad(), inverse)]
