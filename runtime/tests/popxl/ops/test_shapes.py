"""Ops that only move elements against NumPy, on shapes and arguments drawn at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import popart
import popxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from popxl import ops

from runtime.tests.popxl.ops.op_testing import (
    foreign_tensor,
    last_op,
    main_graph,
    run_ops,
    run_replicas,
    tensor,
)

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
BOUNDS = st.none() | st.integers(-8, 8)
FEW = settings(max_examples=25, derandomize=True)


def numbered(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Every element is another number."""
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


def check(build: Callable, oracle: Callable[[np.ndarray], object], shape: tuple[int, ...]) -> None:
    """Results of one replica, and of two with their own values, are NumPy's, to the bit."""
    x = numbered((2, *shape), np.float16)
    one, two = run_ops(build, x[0]), run_replicas(build, x)
    wanted = [oracle(x[replica]) for replica in range(2)]
    wanted = [[w] if isinstance(w, np.ndarray) else list(w) for w in wanted]
    for index, (found, both) in enumerate(zip(one, two, strict=True)):
        np.testing.assert_array_equal(found, wanted[0][index], strict=True)
        np.testing.assert_array_equal(both, np.stack([w[index] for w in wanted]), strict=True)


# -- reshape, flatten, squeeze ---------------------------------------------------------------


@FEW
@given(SHAPES, st.randoms(use_true_random=False))
def test_reshape(shape: tuple[int, ...], random: object):
    target = list(shape)
    random.shuffle(target)  # type: ignore[attr-defined]
    if len(target) > 2:
        target[1:3] = [target[1] * target[2]]
    with_unknown = [-1, *target[1:]]
    check(
        lambda t: [ops.reshape(t, tuple(target)), ops.reshape(t, with_unknown)],
        lambda x: [x.reshape(target)] * 2,
        shape,
    )


def test_reshape_to_and_from_scalars():
    check(lambda t: ops.reshape(t, ()), lambda x: x.reshape(()), (1, 1))
    (found,) = run_ops(lambda t: ops.reshape(t, (1, 1)), np.array(3.0, np.float32))
    np.testing.assert_array_equal(found, [[3.0]])


def test_reshape_of_a_transposed_tensor():
    check(lambda t: ops.reshape(ops.transpose(t), (6,)), lambda x: x.T.reshape(6), (2, 3))


def test_reshape_names_and_errors():
    with main_graph() as graph:
        t = tensor((2, 6))
        ops.reshape(t, (3, 4))
        assert last_op(graph) == ("Reshape", ["x_reshaped"])
        ops.reshape_(t, (3, 4))
        assert last_op(graph)[0] == "ReshapeInplace"
        for bad in ((0, 12), (-2, 6)):
            with pytest.raises(ValueError, match="Invalid shape value in reshape"):
                ops.reshape(t, bad)
        with pytest.raises(ValueError, match="at most one '-1'"):
            ops.reshape(t, (-1, -1))
        for bad in ((5, 2), (-1, 5), ()):
            with pytest.raises(popart.popart_exception, match="reshape of"):
                ops.reshape(t, bad)


def test_flatten():
    check(
        lambda t: [ops.flatten(t), ops.flatten_(t)],
        lambda x: [x.ravel()] * 2,
        (3, 1, 4),
    )


@pytest.mark.parametrize("axes", [None, [], [1], [-1], [3, 1], [-1, 1]], ids=str)
def test_squeeze(axes: list[int] | None):
    shape = (3, 1, 4, 1)
    wanted = None if axes is None else tuple(axes)
    check(lambda t: ops.squeeze(t, axes), lambda x: np.squeeze(x, wanted), shape)


def test_squeeze_errors():
    with main_graph():
        t = tensor((3, 1, 4))
        for axes in ([0], [1, 1], [1, -2], [3], [-4]):
            with pytest.raises(ValueError, match="squeeze"):
                ops.squeeze(t, axes)
        with pytest.raises(TypeError):
            ops.squeeze(t, 1)
        with pytest.raises(AttributeError):
            ops.squeeze(1.0)


# -- transpose -------------------------------------------------------------------------------


@FEW
@given(SHAPES, st.randoms(use_true_random=False))
def test_transpose(shape: tuple[int, ...], random: object):
    perm = list(range(len(shape)))
    random.shuffle(perm)  # type: ignore[attr-defined]
    check(
        lambda t: [ops.transpose(t, tuple(perm)), ops.transpose(t), t.T_],
        lambda x: [x.transpose(perm), x.T, x.T],
        shape,
    )


def test_transpose_names_and_errors():
    with main_graph() as graph:
        t = tensor((2, 3))
        ops.transpose(t)
        assert last_op(graph) == ("Transpose", ["x_T"])
        ops.transpose_(t, (1, 0))
        assert last_op(graph)[0] == "TransposeInplace"
        with pytest.raises(ValueError, match="Values in permutation must be less than 2"):
            ops.transpose(t, (0, 2))
        for bad in ((0,), (0, 0), (0, 1, 1)):
            with pytest.raises(popart.popart_exception, match="no permutation"):
                ops.transpose(t, bad)
        with pytest.raises(AttributeError):
            ops.transpose(1.0)


# -- slice, subsample ------------------------------------------------------------------------


@FEW
@given(SHAPES, st.data())
def test_slice(shape: tuple[int, ...], data: st.DataObject):
    axes = data.draw(st.permutations(range(len(shape))))
    axes = axes[: data.draw(st.integers(1, len(shape)))]
    bounds, key = [], [slice(None)] * len(shape)
    for axis in axes:
        step = data.draw(st.sampled_from([1, -1, None]))
        part = slice(data.draw(BOUNDS), data.draw(BOUNDS), step)
        if not len(range(*part.indices(shape[axis]))):
            part = slice(None, None, step)
        bounds.append((part.start, part.stop, 1 if step is None else step))
        key[axis] = part
    start, stop, step = (list(column) for column in zip(*bounds, strict=True))
    given_axes = [axis - len(shape) if i % 2 else axis for i, axis in enumerate(axes)]
    check(
        lambda t: [
            ops.slice(t, start, stop, step, given_axes),
            ops.slice_(t, start, stop, step, given_axes),
        ],
        lambda x: [x[tuple(key)]] * 2,
        shape,
    )


@pytest.mark.parametrize("stop", range(-5, 6))
@pytest.mark.parametrize("start", range(-5, 6))
def test_slice_shapes_of_all_ranges(start: int, stop: int):
    with main_graph():
        for step in (1, -1):
            wanted = np.empty((4, 2))[:, start:stop:step].shape
            assert ops.slice(tensor((4, 2)), start, stop, step, 1).shape == wanted


def test_slice_without_bounds_is_the_tensor_itself():
    with main_graph():
        t = tensor((2, 3))
        assert ops.slice(t) is t
        assert ops.slice(t, axis=1) is t
        assert ops.slice_(t) is t


def test_slice_names_and_errors():
    with main_graph() as graph:
        t = tensor((4, 3))
        ops.slice(t, 1, 2)
        assert last_op(graph) == ("Slice", ["slice_out"])
        ops.slice_(t, 1, 2)
        assert last_op(graph)[0] == "SliceInplace"
        with pytest.raises(ValueError, match="must have same length"):
            ops.slice(t, [0, 1], [2])
        with pytest.raises(ValueError, match="must have same length"):
            ops.slice(t, [0, 1], [2, 3], axis=0)
        for axis in (2, -3):
            with pytest.raises(popart.popart_exception, match="out of range"):
                ops.slice(t, 0, 1, axis=axis)
        with pytest.raises(popart.popart_exception, match="out of range"):
            ops.slice(t, [0, 0, 0], [1, 1, 1])


def test_slice_with_strides_fails_in_the_session_only():
    with main_graph():
        assert ops.slice(tensor((5,)), 0, 5, 2).shape == (3,)
    with pytest.raises(popart.popart_exception, match="use subsample"):
        run_ops(lambda t: ops.slice(t, 0, 5, 2), numbered((5,)))


@FEW
@given(SHAPES, st.data())
def test_subsample(shape: tuple[int, ...], data: st.DataObject):
    count = data.draw(st.integers(1, len(shape)))
    strides = data.draw(st.lists(st.integers(1, 7), min_size=count, max_size=count))
    key = tuple(slice(None, None, stride) for stride in strides)
    check(lambda t: ops.subsample(t, tuple(strides)), lambda x: x[key], shape)


def test_subsample_arguments():
    check(lambda t: ops.subsample(t, 2), lambda x: x[::2], (5, 3))
    with main_graph() as graph:
        t = tensor((4, 3))
        strides = [2]
        ops.subsample(t, strides)
        assert strides == [2, 1]
        assert last_op(graph) == ("Subsample", ["subsample_out"])
        with pytest.raises(ValueError, match="3 strides"):
            ops.subsample(t, [1, 1, 1])
        with pytest.raises(popart.popart_exception, match="must be positive"):
            ops.subsample(t, [0])


# -- concat, split ---------------------------------------------------------------------------


@FEW
@given(SHAPES, st.data())
def test_concat_and_split_are_inverse(shape: tuple[int, ...], data: st.DataObject):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    cuts = sorted(data.draw(st.sets(st.integers(1, size), max_size=3)) - {size})
    sizes = np.diff([0, *cuts, size]).tolist()

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        parts = ops.split(t, sizes, axis)
        return [*parts, ops.concat(parts, axis), ops.concat_(iter(parts), axis)]

    check(build, lambda x: [*np.split(x, cuts, axis), x, x], shape)


def test_concat_of_a_varying_and_a_uniform_tensor():
    y = numbered((2, 3))
    check(
        lambda t: ops.concat([t, popxl.constant(y, popxl.float16)], -1),
        lambda x: np.concatenate([x, y.astype(np.float16)], -1),
        (2, 4),
    )


def test_split_into_equal_parts():
    check(lambda t: ops.split(t, 3, -1), lambda x: np.split(x, 3, -1), (2, 6))
    with main_graph() as graph:
        t = tensor((4, 6))
        assert isinstance(ops.split(t, 2), list)
        assert last_op(graph) == ("Split", ["x_split_0", "x_split_1"])
        with pytest.raises(ValueError, match="does not equally divide"):
            ops.split(t, 4, 1)
        with pytest.raises(popart.popart_exception, match="do not sum"):
            ops.split(t, [2, 3], 1)
        with pytest.raises(popart.popart_exception, match="out of range"):
            ops.split(t, 2, 2)


def test_concat_names_and_errors():
    foreign = foreign_tensor()
    with main_graph() as graph:
        t = tensor((2, 3))
        ops.concat([t])
        assert last_op(graph) == ("Concat", ["concat_out"])
        ops.concat_((t, t), -1)
        assert last_op(graph)[0] == "ConcatInplace"
        with pytest.raises(ValueError, match="at least one"):
            ops.concat([])
        with pytest.raises(TypeError, match="same dtype"):
            ops.concat([t, tensor((2, 3), popxl.float16)])
        with pytest.raises(AttributeError):
            ops.concat([t, 1.0])
        with pytest.raises(ValueError, match="not in the current Graph"):
            ops.concat([t, foreign])
        for other, axis in (((2, 4), 0), ((2,), 0), ((2, 3), 2), ((2, 3), -3)):
            with pytest.raises(popart.popart_exception, match="concat"):
                ops.concat([t, tensor(other)], axis)


# -- aliases ---------------------------------------------------------------------------------

ALIASES: dict[str, tuple[Callable, Callable]] = {
    "reshape_": (lambda t: ops.reshape_(t, (6, 2)), lambda x: x.reshape(6, 2)),
    "flatten_": (ops.flatten_, lambda x: x.reshape(-1)),
    "transpose_": (ops.transpose_, lambda x: x.T),
    "slice_": (lambda t: ops.slice_(t, 1, 3, axis=1), lambda x: x[:, 1:3]),
    "slice_ backwards": (
        lambda t: ops.slice_(t, [None, 3], [None, 0], [-1, -1]),
        lambda x: x[::-1, 3:0:-1],
    ),
    "alias of an alias": (
        lambda t: ops.slice_(ops.transpose_(t), 1, 3),
        lambda x: x.T[1:3],
    ),
}


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("replicas", [1, 2])
def test_writing_through_an_alias(name: str, replicas: int, rng: Generator):
    alias, view = ALIASES[name]
    x = rng.normal(size=(replicas, 3, 4)).astype(np.float32)

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        copy = ops.reshape(t, (12,))
        view_of_t = alias(t)
        ops.add_(view_of_t, popxl.constant(10.0))
        return [copy, t, view_of_t]

    found = run_ops(build, x if replicas > 1 else x[0], replicas=replicas)
    copy, written, viewed = (part.reshape(replicas, *part.shape[replicas > 1 :]) for part in found)
    for replica in range(replicas):
        wanted = x[replica].copy()
        view(wanted)[...] += np.float32(10)
        np.testing.assert_array_equal(copy[replica], x[replica].ravel())
        np.testing.assert_array_equal(written[replica], wanted)
        np.testing.assert_array_equal(viewed[replica], view(wanted))


def test_writing_through_a_concatenation(rng: Generator):
    x, y = (rng.normal(size=(2, size)).astype(np.float32) for size in (3, 4))

    def build(s: popxl.Tensor, t: popxl.Tensor) -> list[popxl.Tensor]:
        ops.relu_(ops.concat_([s, t], 1))
        return [s, t]

    left, right = run_ops(build, x, y)
    np.testing.assert_array_equal(left, np.maximum(x, 0))
    np.testing.assert_array_equal(right, np.maximum(y, 0))


def test_writing_the_source_shows_in_its_alias_but_not_in_a_copy(rng: Generator):
    x = rng.normal(size=(3, 4)).astype(np.float32)

    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        alias, copy = ops.transpose_(t), ops.transpose(t)
        ops.relu_(t)
        return [alias, copy]

    alias, copy = run_ops(build, x)
    np.testing.assert_array_equal(alias, np.maximum(x, 0).T)
    np.testing.assert_array_equal(copy, x.T)


# -- init ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint32", "float16", "float32"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_init_is_zero(dtype: str, replicas: int):
    x = np.ones((replicas, 1) if replicas > 1 else (1,), np.float32)
    build = lambda t: ops.init((2, 3), popxl.dtype.from_name(dtype))  # noqa: E731
    (found,) = run_ops(build, x, replicas=replicas)
    assert found.dtype == np.dtype(dtype)
    assert found.shape == ((2, 3) if replicas == 1 else (2, 2, 3))
    assert not found.any()


def test_init_can_be_written_more_than_once():
    def build(t: popxl.Tensor) -> list[popxl.Tensor]:
        zeros = ops.init((3,), popxl.float32)
        ops.add_(zeros, t)
        ops.add_(zeros, t)
        return [zeros, ops.init((3,), popxl.float32)]

    x = numbered((3,))
    written, fresh = run_ops(build, x)
    np.testing.assert_array_equal(written, 2 * x)
    assert not fresh.any()


def test_init_names_and_errors():
    with main_graph() as graph:
        ops.init((2,), popxl.float32)
        assert last_op(graph) == ("Init", ["t"])
        t = ops.init([4], popxl.float16, "state", "undef", [2, 2])
        assert (t.name, t.shape, t.meta_shape) == ("state", (4,), (2, 2))
        with pytest.raises(ValueError, match="Unknown init_type"):
            ops.init((2,), popxl.float32, init_type="ones")


SINGLE = {
    "reshape": lambda t: ops.reshape(t, (2,)),
    "flatten": ops.flatten,
    "slice": lambda t: ops.slice(t, 0, 1),
    "split": lambda t: ops.split(t, 1),
    "subsample": lambda t: ops.subsample(t, 1),
}


@pytest.mark.parametrize("name", SINGLE)
def test_takes_tensors_of_the_current_graph_only(name: str):
    foreign = foreign_tensor()
    with main_graph():
        with pytest.raises(TypeError, match="not a Tensor"):
            SINGLE[name](1.0)
        with pytest.raises(ValueError, match="not in the current Graph"):
            SINGLE[name](foreign)


def test_chains_of_views(rng: Generator):
    """Every order of four views, composed: what a kernel gets need not be contiguous."""
    steps: list[tuple[Callable, Callable]] = [
        (lambda t: ops.transpose(t), lambda x: x.T),
        (lambda t: ops.slice(t, 1, None), lambda x: x[1:]),
        (lambda t: ops.reshape(t, (-1, 2)), lambda x: x.reshape(-1, 2)),
        (lambda t: ops.slice(t, None, None, -1, 0), lambda x: x[::-1]),
    ]
    for order in itertools.permutations(steps, 3):
        x = numbered((4, 6), np.float16)
        wanted = x
        try:
            for _, view in order:
                wanted = view(wanted)
        except ValueError:
            continue

        def build(t: popxl.Tensor, order: tuple = order) -> popxl.Tensor:
            for op, _ in order:
                t = op(t)
            return t

        (found,) = run_ops(build, x)
        np.testing.assert_array_equal(found, wanted)
