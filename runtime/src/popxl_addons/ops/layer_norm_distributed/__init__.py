"""Layer normalisation of an axis that is cut over replicas."""

from popxl_addons.ops.layer_norm_distributed.layer_norm_distributed import layer_norm_distributed

__all__ = [
    "layer_norm_distributed",
]
