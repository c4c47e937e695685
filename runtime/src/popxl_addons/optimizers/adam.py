"""The Adam optimiser with decoupled weight decay."""

import math
from functools import partial
from typing import Any

import numpy as np
import popxl
from popxl import ops
from popxl_addons.module import Module

__all__ = ["AdamOptimizerStep"]


class AdamOptimizerStep(Module):
    """One step of AdamW for one variable, in place.

    Its variables are the moments `first_order` and `second_order` (float32) and, with bias
    correction, the number of steps done, `step`; they start as zeros. Arguments are those of
    `Module`.
    """

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
        """Update `var`. Numbers are compiled in; tensors and specs become inputs, in this order.

        Args:
            var: the variable; a shard has a meta shape, and the moments are shards as well.
            grad: its gradient, times `loss_scaling`.
            replica_grouping: of the moments (default all replicas in one group).
            lr: learning rate; the decay is multiplied by it.
            beta1: share of the first moment that is kept.
            beta2: share of the second moment that is kept.
            eps: added to the root of the second moment.
            weight_decay: share of `var` that is subtracted.
            first_order_dtype: of the first moment.
            bias_correction: divide the moments by what they lack after few steps.
            loss_scaling: what the loss was multiplied by.
            global_norm: norm of all gradients, float32 scalar.
            global_norm_max: gradients are scaled down to this norm. Needed with `global_norm`.

        Raises:
            AssertionError: `global_norm` without `global_norm_max`.
        """
        with popxl.in_sequence():
            scale = _scale(loss_scaling, global_norm, global_norm_max)
            if scale is not None:
                grad = ops.cast(grad, popxl.float32) * scale
            first = self._moment("first_order", var, first_order_dtype, replica_grouping)
            second = self._moment("second_order", var, popxl.float32, replica_grouping)
            step = None
            if bias_correction:
                step = self.add_variable_input("step", _zero, popxl.float32, by_ref=True)
            ops.var_updates.accumulate_moving_average_(first, grad, f=beta1)
            ops.var_updates.accumulate_moving_average_square_(second, grad, f=beta2)
            decays = isinstance(weight_decay, popxl.Tensor) or weight_decay != 0
            update = ops.var_updates.adam_updater(
                first,
                second,
                weight=var,
                time_step=step,
                weight_decay=weight_decay if decays else None,
                beta1=beta1,
                beta2=beta2,
                epsilon=eps,
            )
            ops.scaled_add_(var, update, b=-lr)

    def _moment(
        self,
        name: str,
        var: popxl.Tensor,
        dtype: popxl.dtype,
        replica_grouping: popxl.ReplicaGrouping | None,
    ) -> popxl.Tensor:
        data_iter = partial(np.zeros, var.meta_shape or var.shape, dtype.as_numpy())
        if not var.meta_shape:
            return self.add_variable_input(name, data_iter, dtype, True, replica_grouping)
        shards = math.prod(var.meta_shape) // math.prod(var.shape)
        return self.add_replica_sharded_variable_input(
            name, data_iter, dtype, True, replica_grouping, shards
        )


def _zero() -> np.ndarray:
    return np.zeros((), np.float32)


def _scale(
    loss_scaling: float | popxl.Tensor,
    global_norm: popxl.Tensor | None,
    global_norm_max: float | popxl.Tensor | None,
) -> popxl.Tensor | None:
    """What gradients are multiplied by, a float32 scalar; None for 1."""
    scale = None
    if isinstance(loss_scaling, popxl.Tensor):
        scale = 1.0 / ops.cast(loss_scaling, popxl.float32)
    elif loss_scaling != 1:
        scale = popxl.constant(1 / loss_scaling, popxl.float32)
    if global_norm is None:
        return scale
    if global_norm_max is None:
        raise AssertionError("AdamOptimizerStep: global_norm needs global_norm_max")
    norm = ops.cast(global_norm, popxl.float32)
    limit = (
        ops.cast(global_norm_max, popxl.float32)
        if isinstance(global_norm_max, popxl.Tensor)
        else popxl.constant(global_norm_max, popxl.float32)
    )
    clipped = limit / ops.maximum(norm, limit)
    return clipped if scale is None else scale * clipped
