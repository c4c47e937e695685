"""Cross entropy of logits that are cut over replicas."""

from popxl_addons.ops.cross_entropy_sharded_loss.cross_entropy_sharded_loss import (
    cross_entropy_sharded_loss,
)

__all__ = [
    "cross_entropy_sharded_loss",
]
