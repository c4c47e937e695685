"""The gradient of every differentiable op against torch.autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import popxl
import pytest
import torch
import torch.nn.functional as F
from popxl import ops
from popxl.ops.add import add_all
from popxl.ops.gradients import differentiable_kinds
from popxl.ops.scatter_reduce import grouped_scatter_reduce

from runtime.tests.popxl.ops.op_testing import main_graph
from runtime.tests.popxl.transforms.grad_testing import (
    check_gradients,
    check_replicated_gradients,
    is_float,
    popxl_gradients,
)

SINGLE = 1e-6  # resampling's weights and random numbers are float32

rng = np.random.default_rng(20240607)


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def positive(*shape: int) -> np.ndarray:
    return rng.uniform(0.5, 2.0, size=shape)


def integers(high: int, *shape: int) -> np.ndarray:
    return rng.integers(0, high, size=shape).astype(np.int32)


def permuted(*shape: int) -> np.ndarray:
    """Indices along axis 0 that do not repeat."""
    order = np.argsort(rng.normal(size=shape), axis=0)
    return order.astype(np.int32)


def distinct(*shape: int) -> np.ndarray:
    """Well separated numbers in random order, so that no rounding changes which is greatest."""
    return rng.permutation(np.arange(np.prod(shape)) * 0.1 - 1.03).reshape(shape)


@dataclass(frozen=True)
class Case:
    """An op, torch's, and arrays to call both with."""

    build: Callable
    reference: Callable
    arrays: tuple[np.ndarray, ...]
    wrt: tuple[int, ...] | None = None
    rtol: float = 1e-9


def case(build: Callable, reference: Callable, *arrays: np.ndarray, **options: object) -> Case:
    return Case(build, reference, arrays, **options)


def long(t: torch.Tensor) -> torch.Tensor:
    return t.long()


ELEMENTWISE = {
    "abs": case(ops.abs, torch.abs, normal(3, 4)),
    "add": case(ops.add, torch.add, normal(3, 4), normal(3, 4)),
    "add_broadcast": case(ops.add, torch.add, normal(3, 1, 4), normal(2, 1)),
    "sum_of_several": case(
        lambda x, y: add_all([x, y, x]), lambda x, y: x + y + x, normal(3, 4), normal(3, 4)
    ),
    "add_scalar": case(ops.add, torch.add, normal(), normal(2, 3)),
    "sub_broadcast": case(ops.sub, torch.sub, normal(4), normal(3, 4)),
    "mul_broadcast": case(ops.mul, torch.mul, normal(2, 3, 1), normal(3, 4)),
    "mul_itself": case(lambda x: x * x, lambda x: x * x, normal(5)),
    "div_broadcast": case(ops.div, torch.div, normal(3, 4), positive(4)),
    "fmod": case(ops.fmod, torch.fmod, normal(3, 4) * 3, positive(4), wrt=(0,)),
    "pow": case(ops.pow, torch.pow, positive(3, 4), normal(4)),
    "pow_of_zero": case(
        ops.pow, torch.pow, np.array([0.0, 0.0, 2.0, 3.0]), np.array([2.0, 1.0, 0.0, -1.5])
    ),
    "exp": case(ops.exp, torch.exp, normal(3, 4)),
    "log": case(ops.log, torch.log, positive(3, 4)),
    "log2": case(ops.log2, torch.log2, positive(3, 4)),
    "sqrt": case(ops.sqrt, torch.sqrt, positive(3, 4)),
    "sin": case(ops.sin, torch.sin, normal(3, 4)),
    "cos": case(ops.cos, torch.cos, normal(3, 4)),
    "tanh": case(ops.tanh, torch.tanh, normal(3, 4)),
    "negate": case(ops.negate, torch.neg, normal(3, 4)),
    "relu": case(ops.relu, torch.relu, normal(3, 4)),
    "gelu": case(ops.gelu, lambda x: F.gelu(x, approximate="tanh"), normal(3, 4) * 2),
    "geluerf": case(ops.geluerf, F.gelu, normal(3, 4) * 2),
    "swish": case(ops.swish, F.silu, normal(3, 4) * 2),
    "clip": case(lambda x: ops.clip(x, -0.5, 0.7), lambda x: x.clamp(-0.5, 0.7), normal(4, 4)),
    "maximum": case(
        ops.maximum, lambda x, y, z: torch.maximum(torch.maximum(x, y), z), normal(3, 4), normal(4),
        normal(3, 1),
    ),
    "where": case(
        lambda x, y: ops.where(ops.greater(x, y), x * 2.0, y * 3.0),
        lambda x, y: torch.where(x > y, x * 2.0, y * 3.0),
        normal(3, 4),
        normal(4),
    ),
    "identity": case(ops.identity, torch.clone, normal(3)),
    "print_tensor": case(
        lambda x: ops.print_tensor(x, print_self=False), torch.clone, normal(3)
    ),
    "cast": case(
        lambda x: ops.cast(ops.cast(x, popxl.float32) * 2.0, popxl.float64),
        lambda x: (x.float() * 2.0).double(),
        normal(3, 4).astype(np.float32).astype(np.float64),
        rtol=SINGLE,
    ),
}  # fmt: skip


def _reductions() -> dict[str, Case]:
    found = {}
    references = {
        "sum": lambda x, axes, keep: x.sum(axes, keep),
        "mean": lambda x, axes, keep: x.mean(axes, keep),
        "max": lambda x, axes, keep: x.amax(axes, keep),
        "min": lambda x, axes, keep: x.amin(axes, keep),
        "l1": lambda x, axes, keep: x.abs().sum(axes, keep),
        "l2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
        "logsum": lambda x, axes, keep: x.abs().sum(axes, keep).log(),
        "logsumexp": lambda x, axes, keep: x.logsumexp(axes, keep),
        "sumsquare": lambda x, axes, keep: x.square().sum(axes, keep),
    }
    for name, reference in references.items():
        for axes, keep in (((0, 1, 2), False), ((1,), True), ((0, 2), False)):

            def build(x: popxl.Tensor, name=name, axes=axes, keep=keep) -> popxl.Tensor:
                x = ops.abs(x) if name == "logsum" else x
                return getattr(ops, name)(x, axes, keep)

            def wanted(x: torch.Tensor, reference=reference, axes=axes, keep=keep) -> torch.Tensor:
                return reference(x, axes, keep)

            found[f"{name}_{axes}_{keep}"] = case(build, wanted, distinct(3, 4, 2))
    return found


REDUCTIONS = {
    **_reductions(),
    "prod": case(lambda x: ops.prod(x, 1), lambda x: x.prod(1), normal(3, 4, 2)),
    "prod_zeros": case(
        lambda x: ops.prod(x, 0), lambda x: x.prod(0),
        np.array([[0.0, 0.0, 1.5], [2.0, 0.0, 3.0], [3.0, 1.0, 0.5]]),
    ),
    "median": case(
        lambda x: ops.median(x, 1), lambda x: x.median(1).values, distinct(3, 4, 2)
    ),
    "median_all": case(ops.median, lambda x: x.median(), distinct(3, 4)),
    "cumsum": case(lambda x: ops.cumsum(x, 1), lambda x: x.cumsum(1), normal(3, 4)),
    "topk": case(
        lambda x: ops.topk(x, 2, 1, True, True)[0], lambda x: x.topk(2, 1).values, distinct(3, 4)
    ),
    "softmax": case(lambda x: ops.softmax(x, 1), lambda x: x.softmax(1), normal(3, 4, 2)),
}  # fmt: skip

PRODUCTS = {
    "matmul": case(ops.matmul, torch.matmul, normal(3, 4), normal(4, 5)),
    "matmul_batch": case(ops.matmul, torch.matmul, normal(2, 3, 4), normal(2, 4, 5)),
    "matmul_rows": case(ops.matmul, torch.matmul, normal(2, 2, 3, 4), normal(4, 5)),
    "matmul_broadcast": case(ops.matmul, torch.matmul, normal(2, 1, 3, 4), normal(5, 4, 2)),
    "matmul_left": case(ops.matmul, torch.matmul, normal(3, 4), normal(2, 4, 5)),
    "matmul_vector_matrix": case(ops.matmul, torch.matmul, normal(4), normal(2, 4, 5)),
    "matmul_matrix_vector": case(ops.matmul, torch.matmul, normal(2, 3, 4), normal(4)),
    "matmul_vectors": case(ops.matmul, torch.matmul, normal(4), normal(4)),
}


def _conv(**options: object) -> tuple[Callable, Callable]:
    def build(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
        return ops.conv(x, w, **options)

    def reference(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        stride, dilation = options.get("stride", (1, 1)), options.get("dilation", (1, 1))
        pads = options.get("padding", (0, 0, 0, 0))
        if options.get("pad_type") == "same_upper":
            pads = (0, 1, 1, 1)  # for the shapes used here
        x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
        return F.conv2d(x, w, None, stride, 0, dilation, options.get("groups", 1))

    return build, reference


def _pool(kind: str, padded: int = 0, **options: object) -> tuple[Callable, Callable]:
    kernel, stride = options["kernel_size"], options.get("stride", (1, 1))

    def build(x: popxl.Tensor) -> popxl.Tensor:
        return getattr(ops, kind)(x, padding=(padded,) * 4, **options)

    def reference(x: torch.Tensor) -> torch.Tensor:
        if kind == "max_pool":
            dilation = options.get("dilation", (1, 1))
            return F.max_pool2d(
                x, kernel, stride, padded, dilation, options.get("ceil_mode", False)
            )
        return F.avg_pool2d(x, kernel, stride, padded, count_include_pad=False)

    return build, reference


def _group_norm(groups: int) -> tuple[Callable, Callable]:
    def build(x: popxl.Tensor, w: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
        return ops.group_norm(x, w, b, groups, 1e-5)

    return build, lambda x, w, b: F.group_norm(x, groups, w, b, 1e-5)


NETWORK = {
    "conv": case(*_conv(), normal(2, 3, 5, 6), normal(4, 3, 3, 2)),
    "conv_strided": case(
        *_conv(stride=(2, 2), padding=(1, 2, 0, 1)), normal(2, 3, 7, 6), normal(4, 3, 3, 2)
    ),
    "conv_groups": case(
        *_conv(groups=2, dilation=(2, 1), padding=(1, 1, 1, 1)),
        normal(2, 4, 7, 6), normal(6, 2, 3, 2),
    ),
    "conv_same": case(
        *_conv(stride=(2, 1), pad_type="same_upper"), normal(1, 2, 6, 5), normal(3, 2, 3, 3)
    ),
    "average_pool": case(
        *_pool("average_pool", kernel_size=(2, 3), stride=(2, 1)), normal(2, 3, 5, 6)
    ),
    "average_pool_padded": case(
        *_pool("average_pool", 1, kernel_size=(3, 3), stride=(2, 2)), normal(2, 3, 5, 6)
    ),
    "max_pool": case(*_pool("max_pool", kernel_size=(2, 3), stride=(2, 1)), distinct(2, 3, 5, 6)),
    "max_pool_padded": case(
        *_pool("max_pool", 1, kernel_size=(3, 3), stride=(2, 2), dilation=(1, 2), ceil_mode=True),
        distinct(2, 3, 6, 7),
    ),
    "group_norm": case(*_group_norm(2), normal(3, 6, 4), normal(6), normal(6)),
    "layer_norm": case(
        ops.layer_norm, lambda x, w, b: F.layer_norm(x, (5,), w, b), normal(3, 5), normal(5),
        normal(5),
    ),
    "nll": case(
        lambda x, t: ops.nll_loss(ops.softmax(x, -1), t),
        lambda x, t: F.nll_loss(x.log_softmax(-1), long(t)),
        normal(4, 5), integers(5, 4),
    ),
    "nll_none": case(
        lambda x, t: ops.nll_loss(ops.softmax(x, -1), t, reduction="none"),
        lambda x, t: F.cross_entropy(x.movedim(-1, 1), long(t), reduction="none"),
        normal(2, 4, 5), integers(5, 2, 4),
    ),
    "nll_ignored": case(
        lambda x, t: ops.nll_loss(x, t, ignore_index=2, log_prob=True),
        lambda x, t: F.nll_loss(x, long(t), ignore_index=2),
        normal(6, 3), np.array([0, 2, 1, 2, 0, 1], np.int32),
    ),
    "nll_sum": case(
        lambda x, t: ops.nll_loss(x, t, reduction="sum"),
        lambda x, t: F.nll_loss(x.log(), long(t), reduction="sum"),
        positive(6, 3), integers(3, 6),
    ),
    "interpolate_linear": case(
        lambda x: ops.interpolate(x, (1.0, 1.0, 2.0, 1.5), "linear"),
        lambda x: F.interpolate(
            x, scale_factor=(2.0, 1.5), mode="bilinear", recompute_scale_factor=False
        ),
        normal(1, 2, 3, 4), rtol=SINGLE,
    ),
    "interpolate_nearest": case(
        lambda x: ops.interpolate(
            x, (1.0, 1.0, 2.0, 2.0), "nearest", "floor", "asymmetric"
        ),
        lambda x: F.interpolate(x, scale_factor=(2.0, 2.0), mode="nearest"),
        normal(1, 2, 3, 4),
    ),
}  # fmt: skip


def _grouped(t: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return torch.stack([part[long(rows)] for part, rows in zip(t, indices, strict=True)])


def _scatter_reduce(mode: str) -> tuple[Callable, Callable]:
    names = {"sum": "sum", "min": "amin", "max": "amax"}

    def build(x: popxl.Tensor, i: popxl.Tensor, start: popxl.Tensor) -> popxl.Tensor:
        return ops.scatter_reduce(x, i, mode, start)

    def reference(x: torch.Tensor, i: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        i = long(i).reshape(-1, 1).expand(x.shape)
        if mode == "none":
            return start.scatter(0, i, x)
        return start.scatter_reduce(0, i, x, names[mode])

    return build, reference


INDEXING = {
    "gather": case(ops.gather, lambda x, i: x[long(i)], normal(5, 3), integers(5, 2, 4)),
    "gather_axis": case(
        lambda x, i: ops.gather(x, i, 1), lambda x, i: x[:, long(i)],
        normal(3, 5, 2), integers(5, 6),
    ),
    "gather_out_of_range": case(
        lambda x, i: ops.gather(x, i, zero_OOR=True),
        lambda x, i: torch.cat([x, x.new_zeros(1, 3)])[long(i)],
        normal(5, 3), np.array([0, 5, 3, 5, 3], np.int32),
    ),
    "tied_gather": case(ops.tied_gather, lambda x, i: x[long(i)], normal(5, 3), integers(5, 7)),
    "groupedgather": case(
        lambda x, i: ops.groupedgather(x, i, 1, 2), _grouped, normal(2, 5, 3), integers(5, 2, 4)
    ),
    "scatter": case(
        ops.scatter, lambda x, i, v: x.scatter(0, long(i), v), normal(5, 3),
        permuted(5, 3)[:2].copy(), normal(2, 3),
    ),
    "scatter_reduce_sum": case(
        lambda x, i: ops.scatter_reduce(x, i, "sum", axis_size=4),
        lambda x, i: x.new_zeros(4, 3).index_add(0, long(i), x), normal(6, 3), integers(4, 6),
    ),
    "scatter_reduce_start": case(
        *_scatter_reduce("sum"), distinct(6, 3), integers(4, 6), normal(4, 3)
    ),
    "scatter_reduce_max": case(
        *_scatter_reduce("max"), distinct(6, 3), integers(4, 6), normal(4, 3)
    ),
    "scatter_reduce_min": case(
        *_scatter_reduce("min"), distinct(6, 3), integers(4, 6), normal(4, 3)
    ),
    "scatter_reduce_none": case(
        *_scatter_reduce("none"), distinct(3, 3), permuted(5)[:3].copy(), normal(5, 3)
    ),
    "grouped_scatter_reduce": case(
        lambda x, i: grouped_scatter_reduce(x, i, "sum", axis=1, axis_size=4, group_size=2),
        lambda x, i: torch.stack(
            [x.new_zeros(4, 2).index_add(0, long(rows), part)
             for part, rows in zip(x, i, strict=True)]
        ),
        normal(2, 5, 2), integers(4, 2, 5),
    ),
    "onehot": case(
        lambda t, v: ops.onehot(t, popxl.constant(4, popxl.int32), v, 0),
        lambda t, v: torch.where(F.one_hot(long(t), 4).movedim(-1, 0) == 1, v[1], v[0]),
        integers(4, 2, 3), normal(2),
    ),
    "slice": case(
        lambda x: ops.slice(x, [1, 3], [3, 0], [1, -1], [0, 2]),
        lambda x: x[1:3, :, 1:4].flip(2), normal(4, 2, 5),
    ),
    "slice_": case(lambda x: ops.slice_(x, 1, 3) * 2.0, lambda x: x[1:3] * 2.0, normal(4, 2)),
    "subsample": case(
        lambda x: ops.subsample(x, [2, 3]), lambda x: x[::2, ::3], normal(5, 7, 2)
    ),
    "split": case(
        lambda x: ops.split(x, [1, 3], 1), lambda x: x.split([1, 3], 1), normal(3, 4)
    ),
    "split_partly_used": case(
        lambda x: ops.split(x, 3)[1] * 2.0, lambda x: x.split(1)[1] * 2.0, normal(3, 4)
    ),
    "concat": case(
        lambda x, y, z: ops.concat([x, y, z], 1) * 2.0,
        lambda x, y, z: torch.cat([x, y, z], 1) * 2.0, normal(2, 1), normal(2, 3), normal(2, 2),
    ),
    "concat_": case(
        lambda x, y: ops.concat_([x, y]) * 2.0, lambda x, y: torch.cat([x, y]) * 2.0,
        normal(2, 1), normal(3, 1),
    ),
    "reshape": case(lambda x: x.reshape((4, 3)) * 2.0, lambda x: x.reshape(4, 3) * 2.0,
                    normal(2, 6)),
    "reshape_": case(lambda x: x.reshape_((4, 3)) * 2.0, lambda x: x.reshape(4, 3) * 2.0,
                     normal(2, 6)),
    "flatten": case(ops.flatten, torch.flatten, normal(2, 6)),
    "squeeze": case(ops.squeeze, torch.squeeze, normal(2, 1, 3)),
    "transpose": case(
        lambda x: x.transpose((2, 0, 1)), lambda x: x.permute(2, 0, 1), normal(2, 3, 4)
    ),
    "transpose_": case(
        lambda x: x.transpose_((2, 0, 1)) * 2.0, lambda x: x.permute(2, 0, 1) * 2.0, normal(2, 3, 4)
    ),
    "dynamic_slice": case(
        lambda x, i: ops.dynamic_slice(x, i, [1], [2], True), lambda x, i: x[:, 1:3],
        normal(3, 4), np.array([1], np.int32),
    ),
    "dynamic_update": case(
        lambda x, i, u: ops.dynamic_update(x, i, u, [1], [2], True),
        lambda x, i, u: torch.cat([x[:, :1], u, x[:, 3:]], 1),
        normal(3, 4), np.array([1], np.int32), normal(3, 2),
    ),
    "indexing": case(lambda x: x[1:, ::-1], lambda x: x[1:].flip(1), normal(3, 4)),
}  # fmt: skip

CASES = {**ELEMENTWISE, **REDUCTIONS, **PRODUCTS, **NETWORK, **INDEXING}


@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str):
    found = CASES[name]
    check_gradients(
        found.build, found.reference, *found.arrays, wrt=found.wrt, rtol=found.rtol,
        atol=found.rtol / 10,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradient_on_replicas(name: str):
    found = CASES[name]
    wrt = found.wrt or [i for i, array in enumerate(found.arrays) if is_float(array)]
    second = [array * 1.25 if is_float(array) else array for array in found.arrays]
    check_replicated_gradients(
        found.build, found.reference, found.arrays, second, wrt, rtol=found.rtol
    )


@pytest.mark.parametrize("op", [ops.ceil, ops.floor, ops.sign])
def test_steps_have_gradient_zero(op: Callable):
    check_gradients(
        lambda x: op(x) * 3.0 + x, lambda x: x.detach() * 0 + x + 3 * _step(op, x), normal(3, 4)
    )


def _step(op: Callable, x: torch.Tensor) -> torch.Tensor:
    return getattr(torch, op.__name__)(x).detach()


def test_detach_stops_the_gradient():
    check_gradients(lambda x: ops.detach(x) * x, lambda x: x.detach() * x, normal(3, 4))


@pytest.mark.parametrize("shaped", [False, True])
def test_dropout_drops_the_same_elements_backwards(shaped: bool):
    """Both are linear in t, so that the gradient of the sum is the output for ones."""
    seed, x = np.array([7, 9], np.uint32), normal(6, 8)

    def build(t: popxl.Tensor, s: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        if shaped:
            return ops.shaped_dropout(t, s, (6, 1), 0.5)
        return ops.dropout(t, s, 0.5)

    outputs, upstream, grads = popxl_gradients(build, [x, seed], [0], np.random.default_rng(1))
    mask = outputs[0] / x
    assert set(np.round(np.unique(mask), 6)) == {0.0, 2.0}
    np.testing.assert_allclose(grads[0], upstream[0] * mask, rtol=1e-12)


def test_roi_align():
    image, regions = normal(2, 3, 6, 7), np.array([[0.5, 1.0, 4.5, 5.0], [1.0, 0.0, 6.0, 3.0]])
    batch = np.array([1, 0], np.int32)

    def reference(x: torch.Tensor, rois: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [_region(x[i], roi) for i, roi in zip(index.tolist(), rois.tolist(), strict=True)]
        )

    check_gradients(
        lambda x, r, i: ops.roi_align(x, r, i, (2, 2), 1.0, 2),
        reference, image, regions, batch, wrt=(0,), rtol=SINGLE, atol=SINGLE,
    )  # fmt: skip


def _region(image: torch.Tensor, roi: list[float]) -> torch.Tensor:
    """Mean of 2 x 2 bilinear samples in each of 2 x 2 bins."""
    x1, y1, x2, y2 = roi
    ys = [y1 + (y2 - y1) * (k + 0.5) / 4 for k in range(4)]
    xs = [x1 + (x2 - x1) * (k + 0.5) / 4 for k in range(4)]
    samples = torch.stack([torch.stack([_bilinear(image, y, x) for x in xs]) for y in ys])
    return samples.reshape(2, 2, 2, 2, -1).mean((1, 3)).movedim(-1, 0)


def _bilinear(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    height, width = image.shape[1:]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    upper = image[:, top, left] * (1 - u) + image[:, top, right] * u
    lower = image[:, bottom, left] * (1 - u) + image[:, bottom, right] * u
    return upper * (1 - v) + lower * v


def test_scaled_losses_of_unlikely_labels_do_not_overflow():
    """The probability of a label vanishes in float16; its gradient is that of the scaled loss."""
    x = np.array([[12.0, -6.0, 0.0]], np.float16)
    labels, scale = np.array([1], np.int32), 1024.0

    def build(x: popxl.Tensor, t: popxl.Tensor) -> popxl.Tensor:
        return ops.nll_loss(ops.softmax(x, -1), t) * scale

    (_, (upstream,), (found,)) = popxl_gradients(build, [x, labels], [0], np.random.default_rng(2))
    wanted = np.array([[1.0, -1.0, 0.0]]) * scale * float(upstream)
    np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_probabilities_of_a_loss_may_have_other_uses(reduction: str):
    def build(x: popxl.Tensor, t: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        probs = ops.softmax(x, -1)
        return ops.nll_loss(probs, t, reduction=reduction), probs * 2.0

    def reference(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.cross_entropy(x, long(t), reduction=reduction), x.softmax(-1) * 2.0

    check_gradients(build, reference, normal(4, 3), integers(3, 4))


def test_float16_gradients_have_the_dtype_of_their_tensors():
    x, w = normal(3, 4).astype(np.float16), normal(4, 5).astype(np.float16)
    check_gradients(
        lambda x, w: ops.cast(ops.gelu(x @ w), popxl.float32) * 2.0,
        lambda x, w: F.gelu((x.float() @ w.float()).half().float(), approximate="tanh") * 2.0,
        x, w, rtol=5e-3, atol=5e-3,
    )  # fmt: skip


def test_a_wide_scalar_factor_of_half_tensors_has_a_wide_gradient():
    x, scale = normal(3, 4).astype(np.float16), np.array(1.5, np.float32)
    check_gradients(
        lambda x, s: ops.cast(x * s, popxl.float32), lambda x, s: x.float() * s, x, scale,
        rtol=1e-2, atol=1e-2,
    )  # fmt: skip


def test_all_reduce_on_one_replica():
    check_gradients(
        lambda x, y: ops.collectives.all_reduce([x, y], [0, 1]),
        lambda x, y: (x + y, x + y), normal(3), normal(3),
    )  # fmt: skip


TESTED_ELSEWHERE = {
    "AllReduce", "Detach", "Dropout", "ShapedDropout", "RoiAlign", "ReplicatedAllGather",
    "ReplicatedSlice", "ReplicatedReduceScatter", "Ceil", "Floor", "Sign",
    "And", "Equal", "Greater", "Not", "Or",
    "RotaryPosEmbed", "ReplicatedAllReduceTP", "IdenticalInputsTP",
    "CrossEntropySharded",
}  # fmt: skip


def test_every_kind_with_a_gradient_has_a_case():
    kinds = set()
    for found in CASES.values():
        with main_graph() as main:
            inputs = [ops.init(a.shape, popxl.dtype.as_dtype(a.dtype)) for a in found.arrays]
            graph = main.ir.create_graph(found.build, *inputs)
        kinds |= {op.kind for op in graph._record.ops}
    assert set(differentiable_kinds()) - TESTED_ELSEWHERE <= kinds
