"""Convolutions over any number of spatial axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, List, Literal, Optional, Tuple, get_args

from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient, gradient_op, to_shape
from popxl.ops.matmul import pow2scaled_attrs
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.opdef import OpDef, define
from popxl_torch.ir.records import Spec
from popxl_torch.ir.windows import check_lengths, transposed_windows, window_count

PadType = Literal["not_set", "same_upper", "same_lower", "valid"]


def _infer_conv(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, weight = specs[0], specs[1]
    spatial = _spatial_rank(t, weight)
    check_lengths(
        spatial, strides=attrs["strides"], dilations=attrs["dilations"], pads=attrs["pads"]
    )
    if t.shape[1] != weight.shape[1] * attrs["groups"] or weight.shape[0] % attrs["groups"]:
        raise popart_exception(
            f"conv: {attrs['groups']} groups do not fit input {t} and weight {weight}: expected"
            " weight (out, in/groups, *kernel) with out divisible by groups"
        )
    sizes = window_count(t.shape[2:], weight.shape[2:], attrs)
    return [Spec((t.shape[0], weight.shape[0], *sizes), attrs.get("dtype", t.dtype))]


def _infer_transpose(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    t, weight = specs[0], specs[1]
    spatial = _spatial_rank(t, weight)
    check_lengths(
        spatial, strides=attrs["strides"], dilations=attrs["dilations"], pads=attrs["pads"]
    )
    if t.shape[1] != weight.shape[0] or t.shape[1] % attrs["groups"]:
        raise popart_exception(
            f"conv_transpose: {attrs['groups']} groups do not fit input {t} and weight {weight}:"
            " expected weight (in, out/groups, *kernel)"
        )
    if any(d != 1 for d in attrs["dilations"]):
        raise popart_exception(f"conv_transpose: dilation must be 1s, not {attrs['dilations']}")
    sizes = transposed_windows(t.shape[2:], weight.shape[2:], attrs)[0]
    channels = weight.shape[1] * attrs["groups"]
    return [Spec((t.shape[0], channels, *sizes), attrs.get("dtype", t.dtype))]


def _spatial_rank(t: Any, weight: Any) -> int:
    if len(t.shape) < 3 or len(weight.shape) != len(t.shape):
        raise popart_exception(
            f"expected input (N, C, *spatial) and a weight of the same rank, got {t} and {weight}"
        )
    return len(t.shape) - 2


def _flops(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    return 2 * outs[0].nelms * ins[1].nelms // max(ins[1].shape[0], 1)


def _transpose_flops(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    return 2 * ins[0].nelms * ins[1].nelms // max(ins[1].shape[0], 1)


def _data_grad_flops(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    return 2 * ins[0].nelms * ins[1].nelms // max(ins[1].shape[0], 1)


def _weights_grad_flops(ins: Sequence[Any], outs: Sequence[Spec], attrs: Mapping[str, Any]) -> int:
    return 2 * ins[0].nelms * outs[0].nelms // max(outs[0].shape[0], 1)


define(OpDef("Conv", _infer_conv, flops=_flops))
define(OpDef("ConvTranspose", _infer_transpose, flops=_transpose_flops))


def _attrs(stride: Any, padding: Any, dilation: Any, groups: Any, pad_type: Any) -> dict[str, Any]:
    if pad_type not in get_args(PadType):
        raise ValueError(f"The pad type {pad_type!r} is not valid; use one of {get_args(PadType)}.")
    return {
        "strides": tuple(stride),
        "pads": tuple(padding),
        "dilations": tuple(dilation),
        "groups": int(groups),
        "pad_type": pad_type,
    }


def multi_conv_options(
    sess_opts: Any,
    attr_param: Any,
    available_memory_proportions: Any,
    partials_types: Any,
    enable_conv_dithering: Any,
) -> dict[str, Any]:
    """The IPU's tuning options of a convolution by name. They change no result here."""
    options = {
        "available_memory_proportions": available_memory_proportions,
        "partials_types": partials_types,
        "enable_conv_dithering": enable_conv_dithering,
    }
    return {name: list(value) for name, value in options.items() if value is not None}


@op_debug_context
def conv(
    t: Tensor,
    weight: Tensor,
    stride: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    padding: Optional[Tuple[int]] = (0, 0, 0, 0),  # type: ignore[assignment]
    dilation: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    groups: Optional[int] = 1,
    pad_type: Optional[PadType] = "not_set",
    available_memory_proportions: Optional[List[float]] = None,
    partials_types: Optional[List[str]] = None,
    enable_conv_dithering: Optional[List[int]] = None,
) -> Tensor:
    """Convolution without bias.

    Args:
        t: (N, C, *spatial).
        weight: (out, C/groups, *kernel).
        stride: one per spatial axis; the defaults suit two.
        padding: all begins, then all ends: (top, left, bottom, right).
        dilation: one per spatial axis.
        groups: number of channel groups.
        pad_type: ``not_set`` uses ``padding``; the others compute it.
        available_memory_proportions: a hint for IPUs; ignored.
        partials_types: a hint for IPUs; ignored.
        enable_conv_dithering: a hint for IPUs; ignored.

    Raises:
        ValueError: unknown pad type.
        popart_exception: lists of a wrong length, or groups that do not fit.
    """
    check_in_graph(get_current_context().graph, t=t, weight=weight)
    check_tensor_ipu_and_tile_set(t=t, weight=weight)
    attrs = _attrs(stride, padding, dilation, groups, pad_type)
    return _create_op("Conv", [t, weight], attrs, ["conv_out"])[0]


@op_debug_context
def conv_transpose(
    t: Tensor,
    weight: Tensor,
    stride: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    padding: Optional[Tuple[int]] = (0, 0, 0, 0),  # type: ignore[assignment]
    dilation: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    groups: Optional[int] = 1,
    pad_type: Optional[PadType] = "not_set",
    output_padding: Optional[Tuple[int]] = (),  # type: ignore[assignment]
    output_shape: Optional[Tuple[int]] = (),  # type: ignore[assignment]
    available_memory_proportions: Optional[List[float]] = None,
    partials_types: Optional[List[str]] = None,
    enable_conv_dithering: Optional[List[int]] = None,
) -> Tensor:
    """Transposed convolution without bias.

    Args:
        t: (N, C, *spatial).
        weight: (C, out/groups, *kernel).
        stride: one per spatial axis.
        padding: elements cut off the result, all begins, then all ends.
        dilation: must be 1s.
        groups: number of channel groups.
        pad_type: see :func:`conv`.
        output_padding: elements added at the ends.
        output_shape: forces the size: the spatial sizes, or the full shape.
        available_memory_proportions: a hint for IPUs; ignored.
        partials_types: a hint for IPUs; ignored.
        enable_conv_dithering: a hint for IPUs; ignored.

    Raises:
        ValueError: unknown pad type.
        popart_exception: lists of a wrong length, groups that do not fit, dilation other than 1,
            or ``valid`` with an ``output_shape``.
    """
    check_in_graph(get_current_context().graph, t=t, weight=weight)
    check_tensor_ipu_and_tile_set(t=t, weight=weight)
    attrs = _attrs(stride, padding, dilation, groups, pad_type)
    attrs["output_padding"] = tuple(output_padding or ())
    attrs["output_shape"] = tuple(output_shape or ())
    return _create_op("ConvTranspose", [t, weight], attrs, ["convtranspose_out"])[0]


@op_debug_context
def conv_pow2scaled(
    t: Tensor,
    weight: Tensor,
    log2_scale: Tensor,
    stride: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    padding: Optional[Tuple[int]] = (0, 0, 0, 0),  # type: ignore[assignment]
    dilation: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    groups: Optional[int] = 1,
    pad_type: Optional[PadType] = "not_set",
    available_memory_proportions: Optional[List[float]] = None,
    enable_conv_dithering: Optional[List[int]] = None,
) -> Tensor:
    """float8 convolution times ``2 ** log2_scale``, as float16.

    Arguments as in :func:`conv` and :func:`popxl.ops.matmul_pow2scaled`, which also say what is
    raised.
    """
    attrs = pow2scaled_attrs(t, weight, log2_scale)
    check_in_graph(get_current_context().graph, t=t, weight=weight, log2_scale=log2_scale)
    check_tensor_ipu_and_tile_set(t=t, weight=weight, log2_scale=log2_scale)
    attrs |= _attrs(stride, padding, dilation, groups, pad_type)
    return _create_op("Conv", [t, weight, log2_scale], attrs, ["conv_out"])[0]


@op_debug_context
def conv_transpose_pow2scaled(
    t: Tensor,
    weight: Tensor,
    log2_scale: Tensor,
    stride: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    padding: Optional[Tuple[int]] = (0, 0, 0, 0),  # type: ignore[assignment]
    dilation: Optional[Tuple[int]] = (1, 1),  # type: ignore[assignment]
    groups: Optional[int] = 1,
    pad_type: Optional[PadType] = "not_set",
    output_padding: Optional[Tuple[int]] = (),  # type: ignore[assignment]
    output_shape: Optional[Tuple[int]] = (),  # type: ignore[assignment]
    available_memory_proportions: Optional[List[float]] = None,
    enable_conv_dithering: Optional[List[int]] = None,
) -> Tensor:
    """float8 transposed convolution times ``2 ** log2_scale``, as float16.

    Arguments as in :func:`conv_transpose` and :func:`popxl.ops.matmul_pow2scaled`, which also say
    what is raised.
    """
    attrs = pow2scaled_attrs(t, weight, log2_scale)
    check_in_graph(get_current_context().graph, t=t, weight=weight, log2_scale=log2_scale)
    check_tensor_ipu_and_tile_set(t=t, weight=weight, log2_scale=log2_scale)
    attrs |= _attrs(stride, padding, dilation, groups, pad_type)
    attrs["output_padding"] = tuple(output_padding or ())
    attrs["output_shape"] = tuple(output_shape or ())
    return _create_op("ConvTranspose", [t, weight, log2_scale], attrs, ["convtranspose_out"])[0]


define(OpDef("ConvDataGrad", to_shape, flops=_data_grad_flops))
define(OpDef("ConvWeightsGrad", to_shape, flops=_weights_grad_flops))


@gradient("Conv")
def _gradients(site: GradSite) -> Grads:
    if len(site.op.inputs) > 2:
        raise site.refusal("float8 convolutions have no gradient")

    def of_data() -> Tensor:
        shape = site.in_spec(0).shape
        return gradient_op("ConvDataGrad", site.grad(), site.input(1), **site.attrs, shape=shape)

    def of_weight() -> Tensor:
        shape = site.in_spec(1).shape
        return gradient_op("ConvWeightsGrad", site.grad(), site.input(0), **site.attrs, shape=shape)

    return [of_data, of_weight]
