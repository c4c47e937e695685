"""The Adam optimiser with decoupled weight decay."""

from typing import Any

import popxl
from popxl_addons.module import Module

__all__ = ["AdamOptimizerStep"]


class AdamOptimizerStep(Module):
    """One step for one variable, in place. Not implemented yet."""

    __not_implemented__ = True  # for the coverage document, as only build fails

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def build(
        self,
        var: popxl.TensorByRef,  # type: ignore[valid-type]
        grad: popxl.Tensor,
        replica_grouping: popxl.ReplicaGrouping | None = None,
        *,
        lr: float | popxl.Tensor,
        beta1: float | popxl.Tensor = 0.9,
        beta2: float | popxl.Tensor = 0.999,
        eps: float | popxl.Tensor = 1e-5,
        weight_decay: float | popxl.Tensor = 1e-2,
        first_order_dtype: popxl.dtype = popxl.float16,
        bias_correction: bool = True,
        loss_scaling: float | popxl.Tensor = 1,
        global_norm: popxl.Tensor | None = None,
        global_norm_max: float | popxl.Tensor | None = None,
    ) -> None:
        """Update `var`. Not implemented yet."""
        raise NotImplementedError("popxl_addons.AdamOptimizerStep is not implemented yet")
