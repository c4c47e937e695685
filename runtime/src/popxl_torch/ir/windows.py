"""Sizes and padding of sliding windows, for convolutions and pooling: pure integer arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popxl_torch.ir.errors import popart_exception


def check_lengths(rank: int, **lists: Sequence[int]) -> None:
    """Each list needs one entry per spatial axis, ``pads`` and ``out_pads`` two."""
    for name, values in lists.items():
        wanted = 2 * rank if name.endswith("pads") else rank
        if len(values) != wanted:
            raise popart_exception(
                f"{name} needs {wanted} values for {rank} spatial axes, not {list(values)}"
            )


def split_same(total: int, pad_type: str) -> tuple[int, int]:
    """``total`` as (begin, end): ``same_lower`` has the odd one at the beginning."""
    small = total // 2
    return (total - small, small) if pad_type == "same_lower" else (small, total - small)


def window_count(
    in_sizes: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]
) -> tuple[int, ...]:
    """Windows per spatial axis.

    Args:
        in_sizes: sizes of the input's spatial axes.
        kernel: sizes of the window.
        attrs: ``strides``, ``pads``, ``dilations``, ``pad_type`` and, optionally, ``ceil_mode``.

    Raises:
        popart_exception: an axis on which no window fits.
    """
    rank, pads, pad_type = len(in_sizes), attrs["pads"], attrs["pad_type"]
    result = []
    for i, (size, k) in enumerate(zip(in_sizes, kernel, strict=True)):
        stride = attrs["strides"][i]
        if pad_type == "not_set":
            free = size + pads[i] + pads[rank + i] - attrs["dilations"][i] * (k - 1) - 1
            steps = -(-free // stride) if attrs.get("ceil_mode") else free // stride
            count = steps + 1
        elif pad_type == "valid":  # PopART leaves dilation out of account
            count = -(-(size - k + 1) // stride)
        else:
            count = -(-size // stride)
        if count < 1:
            raise popart_exception(
                f"a window of {list(kernel)} does not fit an input of {list(in_sizes)}"
            )
        result.append(count)
    return tuple(result)


def window_pads(
    in_sizes: Sequence[int],
    out_sizes: Sequence[int],
    kernel: Sequence[int],
    attrs: Mapping[str, Any],
) -> list[tuple[int, int]]:
    """(begin, end) padding per axis so that exactly ``out_sizes`` windows fit; ends may be < 0."""
    result = []
    for i, (size, count, k) in enumerate(zip(in_sizes, out_sizes, kernel, strict=True)):
        span = (count - 1) * attrs["strides"][i] + attrs["dilations"][i] * (k - 1) + 1
        if attrs["pad_type"] == "not_set":
            begin = attrs["pads"][i]
        elif attrs["pad_type"] == "valid":
            begin = 0
        else:
            begin = split_same(max(span - size, 0), attrs["pad_type"])[0]
        result.append((begin, span - size - begin))
    return result


def transposed_windows(
    in_sizes: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(output sizes, elements cut off at each beginning) of a transposed convolution.

    Args:
        in_sizes: sizes of the input's spatial axes.
        kernel: sizes of the window.
        attrs: ``strides``, ``pads``, ``pad_type``, ``output_padding`` and ``output_shape``.

    Raises:
        popart_exception: pad type ``valid`` with an output shape, or lists of a wrong length.
    """
    rank, pads, wanted = len(in_sizes), attrs["pads"], attrs["output_shape"]
    extra = attrs["output_padding"] or (0,) * rank
    check_lengths(rank, output_padding=extra)
    if wanted and attrs["pad_type"] == "valid":
        raise popart_exception("conv_transpose: pad type valid with an output_shape")
    full = [
        stride * (size - 1) + k + more
        for stride, size, k, more in zip(attrs["strides"], in_sizes, kernel, extra, strict=True)
    ]
    if wanted:
        sizes = [int(size) for size in wanted[-rank:]]
    elif attrs["pad_type"] in ("same_upper", "same_lower"):
        sizes = [size * stride for size, stride in zip(in_sizes, attrs["strides"], strict=True)]
    else:
        pads = (0,) * (2 * rank) if attrs["pad_type"] == "valid" else pads
        sizes = [full[i] - pads[i] - pads[rank + i] for i in range(rank)]
        return tuple(sizes), tuple(pads[:rank])
    cut = [max(whole - size, 0) for whole, size in zip(full, sizes, strict=True)]
    return tuple(sizes), tuple(split_same(n, attrs["pad_type"])[0] for n in cut)
