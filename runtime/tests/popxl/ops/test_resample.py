"""Resizing and region sampling against torch and against loops over samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import popart
import popxl
import pytest
import torch
from numpy.random import Generator
from popxl import ops
from torch.nn import functional

from runtime.tests.popxl.ops.op_agreement import assert_op
from runtime.tests.popxl.ops.op_testing import last_op, main_graph, run_ops, tensor

# What torch calls PopXL's modes, and the coordinates that torch has for them.
TORCH = [
    ("linear", "half_pixel", {"mode": "bilinear", "align_corners": False}),
    ("linear", "align_corners", {"mode": "bilinear", "align_corners": True}),
    ("cubic", "half_pixel", {"mode": "bicubic", "align_corners": False}),
    ("cubic", "align_corners", {"mode": "bicubic", "align_corners": True}),
]


@pytest.mark.parametrize("scales", [(2.0, 3.0), (1.5, 0.5), (1.0, 2.0)])
@pytest.mark.parametrize(("mode", "transformation", "options"), TORCH)
def test_interpolate_as_torch(
    rng: Generator,
    mode: Any,
    transformation: Any,
    options: dict[str, Any],
    scales: tuple[float, float],
):
    def oracle(x: np.ndarray) -> np.ndarray:
        return functional.interpolate(
            torch.from_numpy(x), scale_factor=scales, recompute_scale_factor=False, **options
        ).numpy()

    first, second = ([rng.normal(size=(2, 3, 6, 4)).astype(np.float32)] for _ in "ab")
    assert_op(
        lambda t: ops.interpolate(
            t, (1.0, 1.0, *scales), mode, coordinate_transformation_mode=transformation
        ),
        oracle,
        first,
        second,
    )


@pytest.mark.parametrize(
    ("nearest", "transformation", "positions"),
    [
        ("floor", "asymmetric", [0, 0, 0, 1, 1, 1, 2, 2]),  # i / 2.667
        ("ceil", "asymmetric", [0, 1, 1, 2, 2, 2, 2, 2]),
        ("round_prefer_floor", "align_corners", [0, 0, 1, 1, 1, 1, 2, 2]),  # 2 i / 7
        ("round_prefer_ceil", "align_corners", [0, 0, 1, 1, 1, 1, 2, 2]),
    ],
)
def test_nearest(rng: Generator, nearest: Any, transformation: Any, positions: list[int]):
    x = rng.normal(size=(2, 3)).astype(np.float16)
    (found,) = run_ops(
        lambda t: ops.interpolate(t, (1.0, 8 / 3), "nearest", nearest, transformation), x
    )
    np.testing.assert_array_equal(found, x[:, positions])


@pytest.mark.parametrize(
    ("nearest", "positions"), [("round_prefer_floor", [0, 2]), ("round_prefer_ceil", [1, 3])]
)
def test_halfway_between_two_elements(rng: Generator, nearest: Any, positions: list[int]):
    """Half as many results stand for coordinates 0.5 and 2.5."""
    x = rng.normal(size=4).astype(np.float32)
    (found,) = run_ops(lambda t: ops.interpolate(t, (0.5,), "nearest", nearest), x)
    np.testing.assert_array_equal(found, x[positions])


def test_one_result_of_pytorch_half_pixel_is_the_first_element(rng: Generator):
    x = rng.normal(size=4).astype(np.float32)
    found = run_ops(
        lambda t: [
            ops.interpolate(t, (0.25,), "linear", "floor", how)
            for how in ("pytorch_half_pixel", "half_pixel", "tf_crop_and_resize")
        ],
        x,
    )
    np.testing.assert_allclose(np.concatenate(found), [x[0], *[(x[1] + x[2]) / 2] * 2], rtol=1e-6)


def test_arguments_of_interpolate():
    with main_graph() as graph:
        t = tensor((1, 1, 2, 2))
        ops.interpolate(t)
        assert last_op(graph) == ("Resize", ["interpolate_out"])
        for wrong in (
            {"mode": "area"},
            {"nearest_mode": "round"},
            {"coordinate_transformation_mode": "corners"},
        ):
            with pytest.raises(ValueError, match="is not valid"):
                ops.interpolate(t, **wrong)
        with pytest.raises(popart.popart_exception, match="scale factors"):
            ops.interpolate(t, (2.0, 2.0))


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C,) sample; 0 if further than one element outside."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(image.shape[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def regions(size: tuple[int, int], scale: float, ratio: int) -> Any:
    def run(t: np.ndarray, rois: np.ndarray, index: np.ndarray) -> np.ndarray:
        result = np.zeros((len(rois), t.shape[1], *size))
        for r, roi in enumerate(rois):
            x1, y1, x2, y2 = roi * scale
            height, width = max(y2 - y1, 1) / size[0], max(x2 - x1, 1) / size[1]
            rows, columns = ratio or math.ceil(height), ratio or math.ceil(width)
            for i, j in np.ndindex(*size):
                samples = [
                    bilinear(
                        t[index[r]],
                        y1 + (i + (k + 0.5) / rows) * height,
                        x1 + (j + (m + 0.5) / columns) * width,
                    )
                    for k, m in np.ndindex(rows, columns)
                ]
                result[r, :, i, j] = np.mean(samples, 0)
        return result

    return run


@pytest.mark.parametrize(("scale", "ratio"), [(1.0, 2), (0.5, 1), (0.25, 0), (1.0, 0)])
def test_roi_align(rng: Generator, scale: float, ratio: int):
    def inputs() -> list[np.ndarray]:
        corners = rng.uniform(-3, 10, (4, 2)) / scale
        ends = corners + rng.uniform(0, 9, (4, 2)) / scale
        return [
            rng.normal(size=(2, 3, 9, 8)).astype(np.float32),
            np.concatenate([corners, ends], 1).astype(np.float32),
            rng.integers(0, 2, 4).astype(np.int32),
        ]

    assert_op(
        lambda t, r, i: ops.roi_align(t, r, i, (3, 2), scale, ratio),
        regions((3, 2), scale, ratio),
        inputs(),
        inputs(),
    )


@pytest.mark.parametrize(
    ("t", "rois", "index", "size"),
    [
        ((3, 9, 8), (4, 4), (4,), (2, 2)),
        ((1, 3, 9, 8), (4, 5), (4,), (2, 2)),
        ((1, 3, 9, 8), (4,), (4,), (2, 2)),
        ((1, 3, 9, 8), (4, 4), (3,), (2, 2)),
        ((1, 3, 9, 8), (4, 4), (4,), (2,)),
    ],
)
def test_roi_align_that_does_not_fit(t: Any, rois: Any, index: Any, size: Any):
    with main_graph():
        tensors = [tensor(t), tensor(rois), tensor(index, popxl.int32)]
        with pytest.raises(popart.popart_exception, match="roi_align"):
            ops.roi_align(*tensors, size, 1.0, 0)


def test_kind_and_name_of_roi_align():
    with main_graph() as graph:
        ops.roi_align(
            tensor((1, 3, 9, 8)), tensor((4, 4)), tensor((4,), popxl.int32), (2, 2), 1.0, 0
        )
        assert last_op(graph) == ("RoiAlign", ["roi_align_out"])
