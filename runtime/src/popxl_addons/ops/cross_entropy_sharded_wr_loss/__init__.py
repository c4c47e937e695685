"""Cross entropy of logits that are cut over the IPUs of a replica."""

from popxl_addons.ops.cross_entropy_sharded_wr_loss.cross_entropy_sharded_wr_loss import (
    cross_entropy_sharded_wr_loss,
)

__all__ = [
    "cross_entropy_sharded_wr_loss",
]
