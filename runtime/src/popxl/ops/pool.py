"""Pooling over any number of spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Tuple, get_args

from popxl.context import get_current_context, op_debug_context
from popxl.ops.conv import PadType
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, like_last, to_shape
from popxl.ops.utils import _create_op, check_in_graph
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec
from popxl_torch.ir.windows import check_lengths, window_count


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    (t,) = specs
    kernel, rank = attrs["kernel_size"], len(t.shape) - 2
    lists = {name: attrs[name] for name in _DEFAULT_OF}
    check_lengths(max(rank, 0), kernel_size=kernel, **lists)
    if attrs.get("storage_order", "row") != "row":
        raise popart_exception("max_pool supports storage order row only")
    spread = [d * (n - 1) + 1 for n, d in zip(t.shape[2:], attrs["in_dilations"], strict=True)]
    sizes = window_count(spread, kernel, attrs)
    added = [attrs["out_pads"][i] + attrs["out_pads"][rank + i] for i in range(rank)]
    sizes = tuple(size + more for size, more in zip(sizes, added, strict=True))
    return [Spec((*t.shape[:2], *sizes), t.dtype)]


def _flops(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    count = outs[0].nelms
    for size in attrs["kernel_size"]:
        count *= size
    return count


_DEFAULT_OF = {"strides": 1, "pads": 0, "out_pads": 0, "dilations": 1, "in_dilations": 1}

define(OpDef("AveragePool", _infer, flops=_flops))
define(OpDef("MaxPool", _infer, flops=_flops))


def receptive_attributes(
    strides: Any,
    pads: Any,
    out_pads: Any,
    dilations: Any,
    in_dilations: Any,
    auto_pad: Any,
    ceil_mode: Any,
) -> dict[str, Any]:
    """The window's attributes by name; None leaves a list to its default.

    Raises:
        KeyError: unknown ``auto_pad``.
    """
    if auto_pad not in get_args(PadType):
        raise KeyError(auto_pad)
    lists = {
        "strides": strides,
        "pads": pads,
        "out_pads": out_pads,
        "dilations": dilations,
        "in_dilations": in_dilations,
    }
    given = {name: tuple(value) for name, value in lists.items() if value is not None}
    return {**given, "pad_type": auto_pad, "ceil_mode": bool(ceil_mode)}


def _pool(kind: str, t: Tensor, kernel_size: Any, attrs: dict[str, Any], name: str) -> Tensor:
    check_in_graph(get_current_context().graph, t=t)
    kernel = tuple(kernel_size)
    for key, default in _DEFAULT_OF.items():
        length = len(kernel) * (2 if key.endswith("pads") else 1)
        attrs.setdefault(key, (default,) * length)
    return _create_op(kind, [t], {**attrs, "kernel_size": kernel}, [name])[0]


@op_debug_context
def average_pool(
    t: Tensor,
    kernel_size: Tuple[int],
    stride: Optional[Tuple[int]] = None,
    padding: Optional[Tuple[int]] = None,
    out_pads: Optional[Tuple[int]] = None,
    dilation: Optional[Tuple[int]] = None,
    in_dilations: Optional[Tuple[int]] = None,
    auto_pad: Optional[PadType] = "not_set",
    ceil_mode: bool = False,
) -> Tensor:
    """Mean over windows; padding does not count.

    Args:
        t: (N, C, *spatial).
        kernel_size: one per spatial axis.
        stride: default 1 everywhere, whatever the kernel's size.
        padding: all begins, then all ends; default 0.
        out_pads: zeros around the result, ordered as ``padding``.
        dilation: spacing inside the window.
        in_dilations: spacing between the input's elements.
        auto_pad: ``not_set`` uses ``padding``; the others compute it.
        ceil_mode: round the size up, for ``not_set``.

    Raises:
        KeyError: unknown ``auto_pad``.
        popart_exception: lists of a wrong length, or a window that does not fit.
    """
    attrs = receptive_attributes(
        stride, padding, out_pads, dilation, in_dilations, auto_pad, ceil_mode
    )
    return _pool("AveragePool", t, kernel_size, attrs, "averagepool_out")


@op_debug_context
def max_pool(
    t: Tensor,
    kernel_size: Tuple[int],
    stride: Optional[Tuple[int]] = None,
    padding: Optional[Tuple[int]] = None,
    out_pads: Optional[Tuple[int]] = None,
    dilation: Optional[Tuple[int]] = None,
    in_dilations: Optional[Tuple[int]] = None,
    auto_pad: Optional[PadType] = "not_set",
    ceil_mode: bool = False,
    storage_order: Literal["row", "column"] = "row",
) -> Tensor:
    """Maximum over windows. ``storage_order`` must be ``"row"``; see :func:`average_pool`."""
    attrs = receptive_attributes(
        stride, padding, out_pads, dilation, in_dilations, auto_pad, ceil_mode
    )
    attrs["storage_order"] = storage_order
    return _pool("MaxPool", t, kernel_size, attrs, "maxpool_out")


define(OpDef("AveragePoolGrad", to_shape, flops=_flops))
define(OpDef("MaxPoolGrad", like_last, flops=_flops))


@gradient("AveragePool")
def _gradients_0(site: GradSite) -> Grads:
    def grad() -> Tensor:
        return gradient_op("AveragePoolGrad", site.grad(), **site.attrs, shape=site.in_spec().shape)

    return [grad]


@gradient("MaxPool")
def _gradients_1(site: GradSite) -> Grads:
    def grad() -> Tensor:
        return gradient_op("MaxPoolGrad", site.grad(), site.output(), site.input(), **site.attrs)

    return [grad]
