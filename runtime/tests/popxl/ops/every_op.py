"""A case for every op function: what it computes, from what, in which dtypes.

The cases are small: what is special about an op is tested beside its family. Together they make
sure that no op lacks a dtype, an in-place variant, a replica or an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import popxl
import torch
from numpy.random import Generator
from popxl import ops
from popxl.ops import var_updates as updates
from torch.nn import functional as F

Draw = Callable[[Generator, str], np.ndarray]

FLOATS = ("float16", "float32")
SIGNED = (*FLOATS, "int8", "int32")
NUMBERS = (*SIGNED, "uint8", "uint32")
ANYTHING = (*NUMBERS, "bool")


def of(*shape: int, low: float = -2.0) -> Draw:
    """An array of the case's dtype: floats in [low, 2), small integers, or bools."""

    def draw(rng: Generator, dtype: str) -> np.ndarray:
        if dtype in FLOATS:
            return np.asarray(rng.uniform(low, 2.0, shape), dtype)
        if dtype == "bool":
            return np.asarray(rng.integers(0, 2, shape), bool)
        least = 1 if low > 0 else 0 if dtype.startswith("u") else -4
        return np.asarray(rng.integers(least, 5, shape), dtype)

    return draw


def positive(*shape: int) -> Draw:
    return of(*shape, low=0.5)


def whole(high: int, *shape: int) -> Draw:
    """int32 below ``high``, whatever the case's dtype."""
    return lambda rng, _: np.asarray(rng.integers(0, high, shape), np.int32)


def flags(*shape: int) -> Draw:
    """Bools, whatever the case's dtype."""
    return lambda rng, _: np.asarray(rng.integers(0, 2, shape), bool)


def distinct(*shape: int) -> Draw:
    """Values without ties."""
    return lambda rng, dtype: rng.permutation(math.prod(shape)).reshape(shape).astype(dtype)


@dataclass(frozen=True)
class Case:
    """What ``build`` makes of tensors, ``oracle`` makes of arrays, whose floats are float64."""

    build: Callable[..., Any]
    oracle: Callable[..., Any]
    inputs: tuple[Draw, ...] = (of(3, 4),)
    dtypes: tuple[str, ...] = FLOATS
    refused: tuple[Draw, ...] | None = None  # inputs whose shapes do not fit
    one_dtype: bool = False  # whether inputs of several dtypes are refused


def by_torch(fn: Callable[..., Any]) -> Callable[..., Any]:
    """An oracle of torch tensors. torch does little with uint32, which int64 holds."""

    def tensor(array: Any) -> torch.Tensor:
        found = torch.tensor(np.asarray(array))
        return found.long() if found.dtype == torch.uint32 else found

    def oracle(*arrays: Any) -> Any:
        result = fn(*map(tensor, arrays))
        return [t.numpy() for t in result] if isinstance(result, tuple | list) else result.numpy()

    return oracle


def writing(case: Case, build: Callable[..., Any]) -> Case:
    """The case of an op that writes its first tensor: its result, and that tensor afterwards."""

    def both(t: popxl.Tensor, *others: popxl.Tensor) -> list[popxl.Tensor]:
        target = ops.identity(t)
        return [build(target, *others), target]

    oracle = case.oracle
    return Case(
        both, lambda *a: [oracle(*a)] * 2, case.inputs, case.dtypes, case.refused, case.one_dtype
    )


def viewing(build: Callable[..., Any], wanted: Callable[..., Any]) -> Case:
    """The case of an alias: the first tensor after 1 was added through a view of it.

    ``wanted`` adds it to an array.
    """

    def written(t: popxl.Tensor) -> popxl.Tensor:
        target = ops.identity(t)
        ops.add_(build(target), popxl.constant(1, t.dtype))
        return target

    return Case(written, wanted, dtypes=NUMBERS)


def _plus(where: Any) -> Callable[[np.ndarray], np.ndarray]:
    def add(x: np.ndarray) -> np.ndarray:
        result = x.copy()
        result[where] += 1
        return result

    return add


def _over_last_axis(op: Callable[..., Any]) -> Callable[[popxl.Tensor], Any]:
    return lambda t: op(t, -1)


def _put(t: np.ndarray, at: np.ndarray, rows: np.ndarray) -> np.ndarray:
    result = t.copy()
    result[at[0] : at[0] + 1] = rows
    return result


def _flow(body: Callable[..., Any]) -> Callable[..., popxl.Graph]:
    """A graph of ``body`` for tensors like the given ones."""
    return lambda *ts: popxl.gcg().ir.create_graph(body, *ts)


def _conditional(flag: popxl.Tensor, x: popxl.Tensor, y: popxl.Tensor) -> Any:
    then, other = _flow(lambda t: t + t)(x), _flow(lambda t: t * t)(y)
    return ops.conditional(flag, then, other, [x], [y])


def _buffer(t: popxl.Tensor) -> popxl.RemoteBuffer:
    return popxl.remote_buffer(t.shape, t.dtype, 2)


def _load(x: popxl.Tensor) -> popxl.Tensor:
    buffer = _buffer(x)
    ops.remote_store(buffer, 1, x)
    return ops.remote_load(buffer, 1)


def _load_in_place(x: popxl.Tensor) -> list[popxl.Tensor]:
    buffer, target = _buffer(x), ops.init(x.shape, x.dtype)
    ops.remote_store(buffer, 1, x)
    return [ops.remote_load_(buffer, 1, target), target]


ONE, TWO = (of(3, 4),), (of(3, 4), of(4))
PLUS, IMAGE, KERNEL = (positive(3, 4),), of(2, 4, 5, 5), of(4, 4, 3, 3)
UNALIGNED = (of(3, 4), of(3))
_T = by_torch

# function, oracle, inputs, dtypes
_ELEMENTWISE = [
    ("abs", np.abs, ONE, SIGNED),
    ("ceil", np.ceil, ONE, FLOATS),
    ("floor", np.floor, ONE, FLOATS),
    ("negate", np.negative, ONE, SIGNED),
    ("sign", np.sign, ONE, SIGNED),
    ("cos", np.cos, ONE, FLOATS),
    ("sin", np.sin, ONE, FLOATS),
    ("tanh", np.tanh, ONE, FLOATS),
    ("exp", np.exp, ONE, FLOATS),
    ("log", np.log, PLUS, FLOATS),
    ("log2", np.log2, PLUS, FLOATS),
    ("sqrt", np.sqrt, PLUS, FLOATS),
    ("relu", lambda x: np.maximum(x, x.dtype.type(0)), ONE, SIGNED),
    ("gelu", _T(lambda x: F.gelu(x, approximate="tanh")), ONE, FLOATS),
    ("geluerf", _T(F.gelu), ONE, FLOATS),
    ("swish", _T(F.silu), ONE, FLOATS),
    ("logical_not", np.logical_not, ONE, ANYTHING),
    ("isnan", np.isnan, ONE, FLOATS),
    ("isinf", np.isinf, ONE, FLOATS),
    ("isfinite", np.isfinite, ONE, FLOATS),
    ("identity", np.copy, ONE, ANYTHING),
    ("rename", np.copy, ONE, ANYTHING),
    ("print_tensor", np.copy, ONE, ANYTHING),
    ("io_tile_copy", np.copy, ONE, ANYTHING),
]
_BINARY = [
    ("add", np.add, TWO, NUMBERS),
    ("sub", np.subtract, TWO, NUMBERS),
    ("mul", np.multiply, TWO, NUMBERS),
    ("div", np.divide, (of(3, 4), positive(4)), FLOATS),
    ("fmod", np.fmod, (of(3, 4), positive(4)), NUMBERS),
    ("pow", np.power, (positive(3, 4), positive(4)), FLOATS),
    ("maximum", np.maximum, TWO, NUMBERS),
    ("equal", np.equal, TWO, ANYTHING),
    ("greater", np.greater, TWO, NUMBERS),
]
_REDUCTIONS = [
    ("sum", lambda x: x.sum(-1, dtype=x.dtype), ONE, NUMBERS),
    ("mean", lambda x: x.mean(-1), ONE, FLOATS),
    ("max", lambda x: x.max(-1), ONE, NUMBERS),
    ("min", lambda x: x.min(-1), ONE, NUMBERS),
    ("prod", lambda x: x.prod(-1, dtype=x.dtype), ONE, NUMBERS),
    ("median", _T(lambda x: x.median(-1).values), ONE, NUMBERS),
    ("l1", lambda x: np.abs(x).sum(-1), ONE, FLOATS),
    ("l2", lambda x: np.sqrt((x * x).sum(-1)), ONE, FLOATS),
    ("logsum", lambda x: np.log(x.sum(-1)), PLUS, FLOATS),
    ("logsumexp", lambda x: np.log(np.exp(x).sum(-1)), ONE, FLOATS),
    ("sumsquare", lambda x: (x * x).sum(-1, dtype=x.dtype), ONE, NUMBERS),
    ("softmax", _T(lambda x: x.softmax(-1)), ONE, FLOATS),
]
CASES: dict[str, Case] = {
    **{n: Case(getattr(ops, n), o, i, d) for n, o, i, d in _ELEMENTWISE},
    **{n: Case(getattr(ops, n), o, i, d, UNALIGNED, True) for n, o, i, d in _BINARY},
    **{n: Case(_over_last_axis(getattr(ops, n)), o, i, d) for n, o, i, d in _REDUCTIONS},
    "logical_and": Case(ops.logical_and, np.logical_and, TWO, ANYTHING, UNALIGNED),
    "logical_or": Case(ops.logical_or, np.logical_or, TWO, ANYTHING, UNALIGNED),
    "clip": Case(lambda t: ops.clip(t, -1, 0.5), lambda x: x.clip(-1, 0.5)),
    "clamp": Case(lambda t: ops.clamp(t, -1, 0.5), lambda x: x.clip(-1, 0.5)),
    "increment_mod": Case(
        lambda t: ops.increment_mod(t, 2, 3),
        lambda x: np.fmod(x + x.dtype.type(2), 3),
        PLUS,
        NUMBERS,
    ),
    "cast": Case(
        lambda t: ops.cast(t, popxl.float32), lambda x: x.astype("float32"), dtypes=ANYTHING
    ),
    "detach": Case(ops.detach, np.copy, dtypes=ANYTHING),
    "scaled_add": Case(
        lambda x, y: ops.scaled_add(x, y, 0.5, 2.0),
        lambda x, y: 0.5 * x + 2 * y,
        (of(3, 4), of(3, 4)),
        refused=(of(3, 4), of(4)),
    ),
    "where": Case(
        ops.where,
        np.where,
        (flags(3, 1), of(3, 4), of(4)),
        ANYTHING,
        (flags(3), of(4), of(4)),
    ),
    "cumsum": Case(
        lambda t: ops.cumsum(t, -1), lambda x: x.cumsum(-1, dtype=x.dtype), ONE, NUMBERS
    ),
    "argmax": Case(
        lambda t: ops.argmax(t, 1), lambda x: x.argmax(1), (distinct(3, 4),), NUMBERS, (of(4),)
    ),
    "argmin": Case(
        lambda t: ops.argmin(t, 1), lambda x: x.argmin(1), (distinct(3, 4),), NUMBERS, (of(4),)
    ),
    "topk": Case(
        lambda t: ops.topk(t, 2, 1, True, True),
        _T(lambda x: list(x.topk(2, 1))),
        (distinct(3, 4),),
        NUMBERS,
        (of(3, 1),),
    ),
    "histogram": Case(
        lambda t: ops.histogram(t, [-1.0, 0.0, 1.5], False),
        lambda x: np.histogram(x, [-9, -1, 0, 1.5, 9])[0],
        (of(12),),
        FLOATS,
    ),
    "lamb_square": Case(ops.lamb_square, lambda x: (x * x).sum(), dtypes=FLOATS),
    "matmul": Case(
        ops.matmul,
        np.matmul,
        (of(3, 4), of(4, 2)),
        (*FLOATS, "int32"),
        (of(3, 4), of(3, 4)),
    ),
    "conv": Case(
        lambda t, w: ops.conv(t, w, padding=(1, 1, 1, 1)),
        _T(lambda t, w: F.conv2d(t, w, padding=1)),
        (IMAGE, KERNEL),
        refused=(IMAGE, of(4, 3, 3, 3)),
    ),
    "conv_transpose": Case(
        ops.conv_transpose,
        _T(F.conv_transpose2d),
        (IMAGE, KERNEL),
        refused=(IMAGE, of(3, 4, 3, 3)),
    ),
    "average_pool": Case(
        lambda t: ops.average_pool(t, (2, 2)),
        _T(lambda t: F.avg_pool2d(t, 2, 1)),
        (IMAGE,),
        refused=(of(2, 4, 5),),
    ),
    "max_pool": Case(
        lambda t: ops.max_pool(t, (2, 2)),
        _T(lambda t: F.max_pool2d(t, 2, 1)),
        (IMAGE,),
        refused=(of(2, 4, 5),),
    ),
    "batch_norm_inference": Case(
        ops.batch_norm_inference,
        _T(lambda t, scale, bias, mean, var: F.batch_norm(t, mean, var, scale, bias)),
        (IMAGE, of(4), of(4), of(4), positive(4)),
        refused=(IMAGE, of(3), of(4), of(4), of(4)),
    ),
    "group_norm": Case(
        lambda t, w, b: ops.group_norm(t, w, b, 2),
        _T(lambda t, w, b: F.group_norm(t, 2, w, b)),
        (IMAGE, of(4), of(4)),
    ),
    "layer_norm": Case(
        ops.layer_norm,
        _T(lambda t, w, b: F.layer_norm(t, (4,), w, b)),
        (of(3, 4), of(4), of(4)),
    ),
    "interpolate": Case(
        lambda t: ops.interpolate(t, (1.0, 1.0, 2.0, 2.0), "linear"),
        _T(lambda t: F.interpolate(t, scale_factor=2, mode="bilinear")),
        (IMAGE,),
        refused=(of(2, 5),),
    ),
    "nll_loss": Case(
        lambda p, k: ops.nll_loss(ops.softmax(p, 1), k),
        _T(lambda p, k: F.cross_entropy(p, k.long())),
        (of(3, 4), whole(4, 3)),
        refused=(of(3, 4), whole(4, 2)),
    ),
    "nll_loss_with_softmax_grad": Case(
        lambda p, k: ops.nll_loss_with_softmax_grad(ops.softmax(p, 1), k)[1],
        lambda p, k: (_softmax(p) - np.eye(4)[k]) / 3,
        (of(3, 4), whole(4, 3)),
        refused=(of(3, 4), whole(4, 2)),
    ),
    "gather": Case(
        lambda t, i: ops.gather(t, i, 1),
        lambda x, i: np.take(x, i, 1),
        (of(3, 4), whole(4, 2, 2)),
        ANYTHING,
        (of(3), whole(3, 2)),
    ),
    "tied_gather": Case(
        ops.tied_gather,
        lambda x, i: x[i],
        (of(3, 4), whole(3, 2)),
        ANYTHING,
        (of(), whole(3, 2)),
    ),
    "groupedgather": Case(
        lambda t, i: ops.groupedgather(t, i, 1, 2),
        lambda x, i: np.stack([x[g][i[g]] for g in range(2)]),
        (of(2, 3), whole(3, 2, 2)),
        ANYTHING,
    ),
    "scatter": Case(
        ops.scatter,
        _T(lambda t, i, x: t.scatter(0, i.long(), x)),
        (of(3, 4), whole(3, 1, 4), of(1, 4)),
        ANYTHING,
        (of(3, 4), whole(3, 1, 4), of(2, 4)),
    ),
    "scatter_reduce": Case(
        lambda t, i: ops.scatter_reduce(t, i, "sum", axis_size=3),
        _T(lambda t, i: t.new_zeros(3, 4).scatter_add(0, i.long(), t)),
        (of(5, 4), whole(3, 5, 4)),
        NUMBERS,
        (of(5, 4), whole(3, 5, 4, 1)),
    ),
    "onehot": Case(
        lambda i, values: ops.onehot(i, popxl.constant(4), values, -1),
        lambda i, values: np.where(np.eye(4, dtype=bool)[i], values[1], values[0]),
        (whole(4, 3), of(2)),
        ANYTHING,
    ),
    "slice": Case(
        lambda t: ops.slice(t, 1, 3, axis=1), lambda x: x[:, 1:3], ONE, ANYTHING, (of(3),)
    ),
    "subsample": Case(
        lambda t: ops.subsample(t, [1, 2]), lambda x: x[:, ::2], ONE, ANYTHING, (of(3),)
    ),
    "split": Case(
        lambda t: ops.split(t, 2, 1), lambda x: np.split(x, 2, 1), ONE, ANYTHING, (of(3, 3),)
    ),
    "concat": Case(
        lambda a, b: ops.concat([a, b], 1),
        lambda a, b: np.concatenate([a, b], 1),
        (of(3, 4), of(3, 2)),
        ANYTHING,
        (of(3, 4), of(2, 2)),
        True,
    ),
    "reshape": Case(
        lambda t: t.reshape((2, -1)), lambda x: x.reshape(2, -1), ONE, ANYTHING, (of(3),)
    ),
    "flatten": Case(ops.flatten, np.ravel, ONE, ANYTHING),
    "squeeze": Case(
        lambda t: ops.squeeze(t, [0]), lambda x: x[0], (of(1, 4),), ANYTHING, (of(2, 4),)
    ),
    "transpose": Case(
        lambda t: ops.transpose(t, (1, 0)),
        np.transpose,
        ONE,
        ANYTHING,
        (of(3, 4, 1),),
    ),
    "dynamic_slice": Case(
        lambda t, at: ops.dynamic_slice(t, at, [0], [1], True),
        lambda x, at: x[at[0] : at[0] + 1],
        (of(3, 4), whole(3, 1)),
        ANYTHING,
        (of(3, 4), whole(3, 2)),
    ),
    "dynamic_update": Case(
        lambda t, at, rows: ops.dynamic_update(t, at, rows, [0], [1], True),
        _put,
        (of(3, 4), whole(3, 1), of(1, 4)),
        ANYTHING,
        (of(3, 4), whole(3, 2), of(1, 4)),
    ),
    "ipu_copy": Case(lambda t: ops.ipu_copy(t, 1, 0), np.copy, ONE, ANYTHING),
    "call": Case(
        lambda t: ops.call(_flow(lambda t: t + t)(t), t),
        lambda x: x + x,
        ONE,
        NUMBERS,
    ),
    "repeat": Case(
        lambda t: ops.repeat(_flow(lambda t: t + t)(t), 3, t),
        lambda x: x + x + x + x + x + x + x + x,
        (of(3, 4),),
        NUMBERS,
    ),
    "conditional": Case(
        _conditional,
        lambda flag, x, y: x + x if flag else y * y,
        (flags(), of(3, 4), of(3, 4)),
        NUMBERS,
    ),
    "host_load": Case(lambda t: [t], np.copy, ONE, ANYTHING),
    "remote_load": Case(_load, np.copy, ONE, ANYTHING),
    "remote_load_": Case(_load_in_place, lambda x: [x, x], ONE, ANYTHING),
    "detach_": viewing(ops.detach_, _plus(...)),
    "flatten_": viewing(ops.flatten_, _plus(...)),
    "reshape_": viewing(lambda t: t.reshape_((2, 6)), _plus(...)),
    "transpose_": viewing(ops.transpose_, _plus(...)),
    "slice_": viewing(lambda t: ops.slice_(t, 1, 3, axis=1), _plus((slice(None), slice(1, 3)))),
    "concat_": viewing(lambda t: ops.concat_([t]), _plus(...)),
}
_MATCHING = (of(3, 4), of(3, 4))
_UPDATES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "accumulate_": (lambda t, x: updates.accumulate_(t, x, 0.5), lambda t, x: t + 0.5 * x),
    "accumulate_square_": (
        lambda t, x: updates.accumulate_square_(t, x, 0.5),
        lambda t, x: t + 0.5 * x * x,
    ),
    "accumulate_mean_": (
        lambda t, x: updates.accumulate_mean_(t, x, 3),
        lambda t, x: 0.75 * t + 0.25 * x,
    ),
    "accumulate_moving_average_": (
        lambda t, x: updates.accumulate_moving_average_(t, x, 0.25),
        lambda t, x: 0.25 * t + 0.75 * x,
    ),
    "accumulate_moving_average_square_": (
        lambda t, x: updates.accumulate_moving_average_square_(t, x, 0.25),
        lambda t, x: 0.25 * t + 0.75 * x * x,
    ),
    "copy_var_update_": (updates.copy_var_update_, lambda t, x: x),
}
for _name, (_build, _oracle) in _UPDATES.items():
    CASES[_name] = writing(Case(_build, _oracle, _MATCHING, refused=(of(3, 4), of(2, 4))), _build)
CASES |= {
    "accumulator_scale_": writing(
        Case(updates.accumulator_scale_, lambda t: 0.5 * t),
        lambda t: updates.accumulator_scale_(t, 0.5),
    ),
    "accumulator_zero_": writing(
        Case(updates.accumulator_zero_, lambda t: 0 * t), updates.accumulator_zero_
    ),
    "sparse_accumulate_": writing(
        Case(
            updates.sparse_accumulate_, lambda t, x, i: t + _rows(x, i),
            (of(3, 4), of(2, 4), whole(3, 2)),
        ),
        updates.sparse_accumulate_,
    ),
    "adam_updater": Case(
        lambda m, v: updates.adam_updater(m, v, epsilon=0.5), lambda m, v: m / (np.sqrt(v) + 0.5),
        (of(3, 4), positive(3, 4)), FLOATS,
    ),
    "lamb_updater": Case(
        lambda m, v: updates.lamb_updater(m, v, epsilon=0.5), lambda m, v: m / (np.sqrt(v) + 0.5),
        (of(3, 4), positive(3, 4)), FLOATS,
    ),
    "adam_var_update": writing(
        Case(updates.adam_var_update, lambda t, x: t - 0.5 * x, _MATCHING, FLOATS),
        lambda t, x: updates.adam_var_update(
            t, x, popxl.constant(1.0), popxl.constant(1.0), popxl.constant(0.5), 65500.0
        ),
    ),
    "increment_mod_": writing(CASES["increment_mod"], lambda t: ops.increment_mod_(t, 2, 3)),
    "scaled_add_": writing(
        CASES["scaled_add"], lambda x, y: ops.scaled_add_(x, y, 0.5, 2.0)
    ),
    "dynamic_update_": writing(
        CASES["dynamic_update"],
        lambda t, at, rows: ops.dynamic_update_(t, at, rows, [0], [1], True),
    ),
    **{f"{n}_": writing(CASES[n], getattr(ops, f"{n}_"))
       for n in ("add", "exp", "gelu", "geluerf", "relu", "swish")},
}  # fmt: skip
COLLECTIVES = (
    "all_reduce", "all_reduce_identical_inputs", "all_reduce_identical_grad_inputs",
    "replica_sharded_slice", "replicated_all_gather", "replicated_all_reduce",
    "replicated_all_reduce_", "replicated_reduce_scatter", "replicated_slice",
)  # fmt: skip
ELSEWHERE = {
    "test_collectives.py": COLLECTIVES,
    "test_random.py": (
        "random_normal", "random_uniform", "dropout", "shaped_dropout", "split_random_seed",
    ),
    "test_float8_casts.py": ("pow2scale_cast_from_fp8", "pow2scale_cast_to_fp8"),
    "test_float8_products.py": (
        "matmul_pow2scaled", "conv_pow2scaled", "conv_transpose_pow2scaled",
    ),
    "test_resample.py": ("roi_align",),
    "var_updates/test_var_updates.py": ("adamax_updater",),
    "test_shapes.py": ("init",),
}  # fmt: skip
"""Ops that this table leaves out: their values are no function of one replica's inputs, or their
inputs are not made by a dtype and a shape."""


def _rows(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Rows of ``x`` added up at ``indices`` of three rows."""
    result = np.zeros((3, x.shape[1]))
    np.add.at(result, indices, x)
    return result


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)
