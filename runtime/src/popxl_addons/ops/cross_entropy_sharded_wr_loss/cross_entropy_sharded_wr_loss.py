"""Cross entropy of logits whose classes are cut over the IPUs of a replica."""

from __future__ import annotations

from collections.abc import Iterable

from popxl import Tensor

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


def cross_entropy_sharded_wr_loss(
    logits: list[Tensor], indices: list[Tensor], ipus: Iterable[int] | None = None
) -> Tensor:
    """The loss of each sample, on the first IPU. Not implemented yet."""
    raise NotImplementedError(
        "popxl_addons.ops.cross_entropy_sharded_wr_loss is not implemented yet"
    )
