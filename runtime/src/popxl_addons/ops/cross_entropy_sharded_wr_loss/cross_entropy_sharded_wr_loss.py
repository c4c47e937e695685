"""Cross entropy of logits whose classes are cut over the IPUs of a replica."""

from __future__ import annotations

from collections.abc import Iterable

import popxl
from popart import popart_exception
from popxl import Tensor, ops
from popxl.context import op_debug_context
from popxl.ops.utils import check_in_graph
from popxl_addons.ops.cross_entropy_sharded_loss.cross_entropy_sharded_loss import losses

__all__ = ["cross_entropy_sharded_wr_loss"]


def handle_ipus(ts: list[Tensor], ipus: Iterable[int] | None) -> list[int]:
    """The IPU of each tensor: the given ones, or where the tensors are.

    Raises:
        ValueError: an IPU is neither given nor known.
    """
    if ipus is not None:
        return list(ipus)
    try:
        return [t.ipu for t in ts]
    except Exception as e:
        raise ValueError("Could not automatically infer the IPU of all tensors") from e


@op_debug_context
def cross_entropy_sharded_wr_loss(
    logits: list[Tensor], indices: list[Tensor], ipus: Iterable[int] | None = None
) -> Tensor:
    """The loss of each sample, (samples,), on the first IPU.

    Args:
        logits: on each IPU (samples, its classes), in the order of the classes.
        indices: on each IPU (samples,), the true classes, counted over all IPUs.
        ipus: where the tensors are (default: where the logits were made).

    Raises:
        ValueError: the lists have different lengths, logits and indices are on different IPUs, or
            an IPU is neither given nor known.
        popart_exception: wrong ranks or numbers of samples.
    """
    where = handle_ipus(logits, ipus)
    if not len(logits) == len(indices) == len(where):
        raise ValueError(
            "cross_entropy_sharded_wr_loss: expected one tensor of logits and of indices for each"
            f" IPU, got {len(logits)} and {len(indices)} for {len(where)}"
        )
    if ipus is None and handle_ipus(indices, None) != where:
        raise ValueError("cross_entropy_sharded_wr_loss: logits and indices are on different IPUs")
    check_in_graph(popxl.gcg(), *logits, *indices)
    for x, i in zip(logits, indices, strict=True):
        if x.rank != 2 or i.rank != 1 or x.shape[0] != i.shape[0]:
            raise popart_exception(
                "cross_entropy_sharded_wr_loss: expected logits (samples, classes) and indices"
                f" (samples,), got {x.shape} and {i.shape}"
            )
    with popxl.ipu(where[0]):
        copied = [
            x if ipu == where[0] else ops.ipu_copy(x, where[0], ipu)
            for x, ipu in zip(logits, where, strict=True)
        ]
        return losses(ops.concat(copied, axis=1), indices[0], lambda t, op: t, logits)
