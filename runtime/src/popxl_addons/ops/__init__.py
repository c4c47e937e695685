"""Ops that popxl does not have. Those with a package of their own are imported from there."""

from popxl_addons.ops import fp8_utils, replicated_strided_collectives, streams
from popxl_addons.ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from popxl_addons.ops.fp8_amax_scale import fp8_amax_scale
from popxl_addons.ops.streams import host_load, host_store

__all__ = [
    "cross_entropy",
    "cross_entropy_with_grad",
    "fp8_amax_scale",
    "fp8_utils",
    "host_load",
    "host_store",
    "replicated_strided_collectives",
    "streams",
]
