"""Convolutions against torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import popart
import pytest
import torch
from numpy.random import Generator
from popxl import ops
from torch.nn import functional

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, tensor

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {2: functional.conv_transpose2d}


def conv_oracle(pads: list[int], **options: Any) -> Any:
    """``pads`` in PopXL's order: all begins, then all ends."""

    def run(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        rank = x.ndim - 2
        pairs = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
        padded = torch.from_numpy(np.pad(x, pairs))
        return CONV[rank](padded, torch.from_numpy(w), **options).numpy()

    return run


# input, weight, arguments of ops.conv, padding that they mean, arguments of torch
CASES = [
    ((2, 4, 9, 8), (6, 4, 3, 3), {}, [0, 0, 0, 0], {}),
    ((1, 4, 9, 8), (6, 4, 3, 3), {"padding": (1, 1, 1, 1)}, [1, 1, 1, 1], {}),
    ((1, 4, 9, 8), (6, 4, 3, 2), {"padding": (1, 0, 2, 1)}, [1, 0, 2, 1], {}),
    ((1, 4, 9, 8), (6, 4, 3, 3), {"stride": (2, 3)}, [0, 0, 0, 0], {"stride": (2, 3)}),
    (
        (1, 4, 9, 8),
        (6, 2, 3, 3),
        {"groups": 2, "dilation": (2, 1), "padding": [2, 1, 2, 1]},
        [2, 1, 2, 1],
        {"groups": 2, "dilation": (2, 1)},
    ),
    # ceil(9 / 2) = 5 windows span 11 of 9 elements, ceil(8 / 2) = 4 span 9 of 8
    (
        (1, 3, 9, 8),
        (2, 3, 3, 3),
        {"stride": (2, 2), "pad_type": "same_upper", "padding": (7, 7, 7, 7)},
        [1, 0, 1, 1],
        {"stride": 2},
    ),
    (
        (1, 3, 9, 8),
        (2, 3, 3, 3),
        {"stride": (2, 2), "pad_type": "same_lower"},
        [1, 1, 1, 0],
        {"stride": 2},
    ),
    (
        (1, 3, 9, 8),
        (2, 3, 3, 3),
        {"stride": (2, 2), "pad_type": "valid", "padding": (1, 1, 1, 1)},
        [0, 0, 0, 0],
        {"stride": 2},
    ),
    (
        (2, 3, 9),
        (2, 3, 4),
        {"stride": (2,), "padding": (1, 2), "dilation": (1,)},
        [1, 2],
        {"stride": 2},
    ),
    (
        (1, 2, 5, 4, 6),
        (3, 2, 2, 2, 3),
        {"stride": (1, 1, 2), "padding": (1, 0, 0, 0, 1, 0), "dilation": (1, 1, 1)},
        [1, 0, 0, 0, 1, 0],
        {"stride": (1, 1, 2)},
    ),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("shape", "weight", "arguments", "pads", "options"), CASES)
def test_conv(
    rng: Generator,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    arguments: dict[str, Any],
    pads: list[int],
    options: dict[str, Any],
    dtype: type,
):
    first, second = ([rng.normal(size=s).astype(dtype) for s in (shape, weight)] for _ in "ab")
    assert_op(lambda x, w: ops.conv(x, w, **arguments), conv_oracle(pads, **options), first, second)


def cut(pads: list[int], **options: Any) -> Any:
    """Transposed convolution without padding, then ``pads`` cut off (negative: zeros added)."""

    def run(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        rank = x.ndim - 2
        full = TRANSPOSED[rank](torch.from_numpy(x), torch.from_numpy(w), **options).numpy()
        added = [(0, 0), (0, 0), *((0, max(-pads[rank + i], 0)) for i in range(rank))]
        full = np.pad(full, added)
        window = tuple(
            slice(pads[i], full.shape[i + 2] - max(pads[rank + i], 0)) for i in range(rank)
        )
        return full[(..., *window)]

    return run


# With stride 2 and kernel 3, 5 x 4 elements give 11 x 9 before anything is cut.
TRANSPOSED_CASES = [
    ((4, 3, 3, 3), {}, [0, 0, 0, 0], {}),
    ((4, 3, 3, 3), {"stride": (2, 2)}, [0, 0, 0, 0], {"stride": 2}),
    ((4, 3, 3, 3), {"stride": (2, 2), "padding": (1, 0, 2, 1)}, [1, 0, 2, 1], {"stride": 2}),
    (
        (4, 3, 3, 3),
        {"stride": (2, 2), "padding": (1, 1, 1, 1), "output_padding": (1, 1)},
        [1, 1, 0, 0],
        {"stride": 2},
    ),
    ((4, 3, 3, 3), {"groups": 2, "stride": (2, 2)}, [0, 0, 0, 0], {"stride": 2, "groups": 2}),
    ((4, 3, 3, 3), {"stride": (2, 2), "output_shape": (10, 8)}, [0, 0, 1, 1], {"stride": 2}),
    ((4, 3, 3, 3), {"stride": (2, 2), "output_shape": (2, 3, 9, 8)}, [1, 0, 1, 1], {"stride": 2}),
    ((4, 3, 3, 3), {"stride": (2, 2), "pad_type": "same_upper"}, [0, 0, 1, 1], {"stride": 2}),
    ((4, 3, 3, 3), {"stride": (2, 2), "pad_type": "same_lower"}, [1, 1, 0, 0], {"stride": 2}),
]


@pytest.mark.parametrize(("weight", "arguments", "pads", "options"), TRANSPOSED_CASES)
def test_conv_transpose(
    rng: Generator,
    weight: tuple[int, ...],
    arguments: dict[str, Any],
    pads: list[int],
    options: dict[str, Any],
):
    shapes = ((2, 4, 5, 4), weight)
    first, second = ([rng.normal(size=s).astype(np.float32) for s in shapes] for _ in "ab")
    assert_op(
        lambda x, w: ops.conv_transpose(x, w, **arguments), cut(pads, **options), first, second
    )


def test_kinds_and_names():
    with main_graph() as graph:
        x = tensor((1, 2, 4, 4))
        ops.conv(x, tensor((3, 2, 1, 1)))
        assert last_op(graph) == ("Conv", ["conv_out"])
        ops.conv_transpose(x, tensor((2, 3, 1, 1)))
        assert last_op(graph) == ("ConvTranspose", ["convtranspose_out"])


def test_valid_leaves_dilation_out_of_account():
    """(quirk) ceil((9 - 3 + 1) / 2) windows, though a dilated one covers 5 elements."""
    with main_graph():
        out = ops.conv(
            tensor((1, 1, 9, 9)), tensor((1, 1, 3, 3)), (2, 2), dilation=(2, 2), pad_type="valid"
        )
        assert out.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("weight", "arguments"),
    [
        ((6, 3, 3, 3), {}),
        ((6, 4, 3, 3), {"groups": 2}),
        ((6, 4, 3), {}),
        ((6, 4, 3, 3), {"stride": (1,)}),
        ((6, 4, 3, 3), {"padding": (1, 1)}),
        ((6, 4, 3, 3), {"dilation": (1, 1, 1)}),
        ((6, 4, 10, 3), {}),
    ],
)
def test_conv_that_does_not_fit(weight: tuple[int, ...], arguments: dict[str, Any]):
    with main_graph(), pytest.raises(popart.popart_exception):
        ops.conv(tensor((1, 4, 9, 8)), tensor(weight), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dilation": (2, 1)},
        {"groups": 3},
        {"pad_type": "valid", "output_shape": (4, 4)},
        {"output_padding": (1,)},
    ],
)
def test_conv_transpose_that_does_not_fit(arguments: dict[str, Any]):
    with main_graph(), pytest.raises(popart.popart_exception):
        ops.conv_transpose(tensor((1, 4, 5, 4)), tensor((4, 3, 3, 3)), **arguments)


def test_unknown_pad_type():
    with main_graph(), pytest.raises(ValueError, match="is not valid"):
        ops.conv(tensor((1, 4, 5, 4)), tensor((4, 4, 3, 3)), pad_type="same")
