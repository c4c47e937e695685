"""Reductions over tensors on different IPUs of one replica."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from popxl.context import get_current_context, op_debug_context
from popxl.ops.collectives.collectives import CollectiveOps, to_collective_op
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    if len(set(specs)) > 1:
        shown = " and ".join(str(spec) for spec in specs)
        raise popart_exception(f"inputs differ in shape or dtype: {shown}")
    return list(specs)


define(OpDef("AllReduce", _infer))


def _all_reduce(
    ts: list[Tensor], ipus: list[int] | None, op: CollectiveOps, forward: str, backward: str
) -> list[Tensor]:
    check_in_graph(get_current_context().graph, *ts)
    if ipus is None:
        if any(t._value.ipu is None for t in ts):
            raise ValueError("Could not automatically infer the IPU of all inputs of all_reduce.")
        ipus = [t.ipu for t in ts]
    if len(ts) != len(ipus):
        raise ValueError(f"all_reduce: {len(ts)} tensors but {len(ipus)} IPUs.")
    attrs = {"op": to_collective_op(op), "forward": forward, "backward": backward}
    names = [f"all_reduce_out_{i}" for i in range(len(ts))]
    results = _create_op("AllReduce", ts, attrs, names)
    for tensor, where in zip(results, ipus, strict=True):
        tensor._value.ipu = where
    return results


@op_debug_context
def all_reduce(
    ts: list[Tensor], ipus: list[int] | None = None, op: CollectiveOps = "add"
) -> list[Tensor]:
    """Reduce tensors of equal shape; output i lies on ``ipus[i]``.

    Args:
        ts: tensors of one shape and dtype.
        ipus: virtual IPU of each; default where they lie.
        op: ``add`` and the others of ``CollectiveOps``; only ``add`` has a gradient.

    Raises:
        ValueError: IPUs unknown or of another number than tensors, or an unknown op.
        popart_exception: tensors of different shapes or dtypes.
    """
    return _all_reduce(ts, ipus, op, "reduce", "reduce")


@op_debug_context
def all_reduce_identical_inputs(
    ts: list[Tensor], ipus: list[int] | None = None, op: CollectiveOps = "add"
) -> list[Tensor]:
    """Identity forward (the inputs are promised to be equal), all-reduce of the gradients.

    Arguments and errors are those of :func:`all_reduce`.
    """
    return _all_reduce(ts, ipus, op, "identity", "reduce")


@op_debug_context
def all_reduce_identical_grad_inputs(
    ts: list[Tensor], ipus: list[int] | None = None, op: CollectiveOps = "add"
) -> list[Tensor]:
    """All-reduce forward, identity for the gradients. Arguments and errors are those of
    :func:`all_reduce`."""
    return _all_reduce(ts, ipus, op, "reduce", "identity")


@gradient("AllReduce")
def _gradients(site: GradSite) -> Grads:
    attrs = site.attrs
    if attrs["op"] != "add":
        raise site.refusal(f"all_reduce has a gradient for 'add', not for {attrs['op']!r}")

    @functools.cache
    def reduced() -> list[Tensor]:
        grads = [site.grad(index) for index in range(len(site.op.outputs))]
        ipus = [value.ipu or 0 for value in site.op.outputs]
        return _all_reduce(grads, ipus, "add", attrs["backward"], attrs["forward"])

    return [
        functools.partial(lambda i: reduced()[i], index) for index in range(len(site.op.inputs))
    ]
