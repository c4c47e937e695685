"""The update terms of Adam, LAMB and AdaMax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from popxl import dtypes
from popxl.context import get_current_context, op_debug_context
from popxl.ops.add import add_
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.ops.var_updates.utils import _factor
from popxl.tensor import Tensor, constant
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec

_Factor = Optional[Union[float, Tensor]]


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    first, second, weight = specs[:3]
    for spec in (second, weight):
        if spec is not None and spec.shape != first.shape:
            raise popart_exception(f"adam updater: {spec} does not fit {first}")
    return [Spec(first.shape, (weight or first).dtype)]


define(OpDef("AdamUpdater", _infer))


def weight_decay_is_required(weight_decay: Union[None, float, Tensor]) -> bool:
    """Whether a decay is a tensor or a number other than 0."""
    return isinstance(weight_decay, Tensor) or bool(weight_decay)


def create_adamupdater(
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    ins: Any,
    mode: Any,
    weight: Optional[Tensor] = None,
    time_step: Optional[Tensor] = None,
    weight_decay: _Factor = None,
    beta1: _Factor = None,
    beta2: _Factor = None,
    epsilon: Union[float, Tensor] = 1e-07,
) -> Tensor:
    """The op behind the updaters: ``mode`` is ``"adam"``, ``"lamb"`` or ``"adamax"``.

    ``time_step`` is incremented in place, by an op of its own, before it is used. ``ins`` is kept
    for callers that pass PopART's map of inputs; it is not read.
    """
    tensors = {"acc_first_order": acc_first_order, "acc_second_order": acc_second_order}
    tensors |= {} if weight is None else {"weight": weight}
    tensors |= {} if time_step is None else {"time_step": time_step}
    check_in_graph(get_current_context().graph, **tensors)
    check_tensor_ipu_and_tile_set(**tensors)
    if time_step is not None:
        time_step = add_(time_step, constant(1.0, dtypes.float32, "one"))
    attrs: dict[str, Any] = {"mode": mode}
    inputs = [acc_first_order, acc_second_order, weight, time_step]
    factors = {"weight_decay": weight_decay, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
    for name, value in factors.items():
        attrs[name], factor = (None, None) if value is None else _factor(value)
        inputs.append(factor)
    return _create_op("AdamUpdater", inputs, attrs, ["Updater"])[0]


def _updater(
    mode: str,
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    weight: Tensor | None,
    time_step: Tensor | None,
    weight_decay: _Factor,
    beta1: _Factor,
    beta2: _Factor,
    epsilon: float | Tensor,
) -> Tensor:
    if weight_decay_is_required(weight_decay) and weight is None:
        raise ValueError("Weight decay requires weight to be connected.")
    missing = beta1 is None or (beta2 is None and mode != "adamax")
    if time_step is not None and missing:
        raise ValueError("Bias correction requires both beta1 and beta2, beside time_step.")
    return create_adamupdater(
        acc_first_order, acc_second_order, {}, mode, weight, time_step, weight_decay, beta1, beta2,
        epsilon,
    )  # fmt: skip


@op_debug_context
def adam_updater(
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    weight: Optional[Tensor] = None,
    time_step: Optional[Tensor] = None,
    weight_decay: Optional[Union[float, Tensor]] = None,
    beta1: Optional[Union[float, Tensor]] = None,
    beta2: Optional[Union[float, Tensor]] = None,
    epsilon: Union[float, Tensor] = 1e-07,
) -> Tensor:
    """``m / (sqrt(v) + epsilon) + weight_decay * weight``, which no variable has taken yet.

    Args:
        acc_first_order: m.
        acc_second_order: v, the shape of m.
        weight: the shape of m; needed for decay, and gives the result's dtype.
        time_step: float32 scalar variable, incremented in place; with it m and v are divided by
            ``1 - beta ** time_step`` first.
        weight_decay: number or scalar tensor.
        beta1: of m; needed with ``time_step``.
        beta2: of v; needed with ``time_step``.
        epsilon: number or scalar tensor.

    Raises:
        ValueError: decay without weight, or a time step without both betas.
    """
    return _updater(
        "adam", acc_first_order, acc_second_order, weight, time_step, weight_decay, beta1, beta2,
        epsilon,
    )  # fmt: skip


@op_debug_context
def lamb_updater(
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    weight: Optional[Tensor] = None,
    time_step: Optional[Tensor] = None,
    weight_decay: Optional[Union[float, Tensor]] = None,
    beta1: Optional[Union[float, Tensor]] = None,
    beta2: Optional[Union[float, Tensor]] = None,
    epsilon: Union[float, Tensor] = 1e-07,
) -> Tensor:
    """The formula of :func:`adam_updater`; LAMB's ratio comes with ``adam_var_update``."""
    return _updater(
        "lamb", acc_first_order, acc_second_order, weight, time_step, weight_decay, beta1, beta2,
        epsilon,
    )  # fmt: skip


@op_debug_context
def adamax_updater(
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    weight: Optional[Tensor] = None,
    time_step: Tensor = None,  # type: ignore[assignment]
    weight_decay: Optional[Union[float, Tensor]] = None,
    beta1: Union[float, Tensor] = 0.9,
    epsilon: Union[float, Tensor] = 1e-07,
) -> Tensor:
    """``m / (1 - beta1 ** time_step) / (v + epsilon) + weight_decay * weight``.

    See :func:`adam_updater`; ``time_step`` is required.

    Raises:
        ValueError: no ``time_step``, or decay without weight.
    """
    if time_step is None:
        raise ValueError("AdaMax requires time_step to be connected.")
    return _updater(
        "adamax", acc_first_order, acc_second_order, weight, time_step, weight_decay, beta1, None,
        epsilon,
    )  # fmt: skip
