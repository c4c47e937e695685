"""Cut, repeat and pad host arrays for replicas. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

__all__ = [
    "handle_negative_axis",
    "pad_axis",
    "repeat",
    "repeat_axis",
    "repeat_shard",
    "shard",
    "shard2D",
    "split2D",
    "squeeze_safe",
    "tensor_parallel_input",
    "unshard",
    "unshard2D",
    "unshard_arrays",
]


def handle_negative_axis(x: np.ndarray, axis: int) -> int:
    """`axis` counted from the front.

    Raises:
        IndexError: `x` has no such axis.
    """
    rank = np.ndim(x)
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} is out of range for an array of rank {rank}")
    return axis % rank


def shard(x: np.ndarray, n: int, axis: int) -> np.ndarray:
    """`n` equal parts of `axis`, stacked on a new leading axis: (n, ..., size/n, ...)."""
    return np.stack(np.split(x, n, axis=axis))


def unshard_arrays(xs: list[np.ndarray], axis: int) -> np.ndarray:
    """Arrays with a leading axis of size 1, joined on `axis` (not counting the leading one).

    Raises:
        ValueError: the arrays differ in rank.
    """
    ranks = [np.ndim(x) for x in xs]
    if len(set(ranks)) != 1:
        raise ValueError(f"unshard_arrays: arrays of one rank are expected, got ranks {ranks}")
    return unshard(np.concatenate(xs, axis=0), axis)


def unshard(x: np.ndarray, axis: int) -> np.ndarray:
    """The inverse of `shard`: parts along the leading axis joined on `axis` of the result."""
    parts = [part.squeeze(0) for part in np.split(x, x.shape[0], axis=0)]
    return np.concatenate(parts, axis=axis)


def repeat(x: np.ndarray, n: int, axis: int = 0) -> np.ndarray:
    """`n` copies of `x` on a new axis."""
    return np.repeat(np.expand_dims(x, axis), n, axis)


def repeat_axis(x: np.ndarray, n: int, axis: int = 0) -> np.ndarray:
    """`x` with an axis tiled `n` times."""
    return np.concatenate([x] * n, axis=axis)


def split2D(x: np.ndarray, n_1: int, n_2: int, axis_1: int, axis_2: int) -> list[list[np.ndarray]]:
    """`n_1` lists of `n_2` parts, cut along two axes."""
    return [np.split(part, n_2, axis=axis_2) for part in np.split(x, n_1, axis=axis_1)]


def shard2D(x: np.ndarray, n_1: int, n_2: int, axis_1: int, axis_2: int) -> np.ndarray:
    """`shard` over two axes, `axis_1` outermost: a leading axis of n_1 * n_2."""
    return np.stack([part for row in split2D(x, n_1, n_2, axis_1, axis_2) for part in row])


def unshard2D(x: np.ndarray, n_1: int, n_2: int, axis_1: int, axis_2: int) -> np.ndarray:
    """The inverse of `shard2D`."""
    assert x.shape[0] == n_1 * n_2, f"leading axis {x.shape[0]}, expected {n_1} * {n_2}"
    rows = x.reshape(n_1, n_2, *x.shape[1:])
    return np.concatenate([unshard(row, axis_2) for row in rows], axis=axis_1)


def repeat_shard(
    x: np.ndarray,
    n_repeats: int,
    n_shards: int,
    shard_axis: int,
    sharded_tensor: Literal["contiguous", "strided"] = "contiguous",
) -> np.ndarray:
    """Shards of `x`, repeated, on a leading axis of n_shards * n_repeats.

    Args:
        sharded_tensor: "contiguous" gives s0 s1 s0 s1, "strided" s0 s0 s1 s1.

    Raises:
        ValueError: another `sharded_tensor`.
    """
    shards = shard(x, n_shards, shard_axis)
    if sharded_tensor == "contiguous":
        return repeat_axis(shards, n_repeats, 0)
    if sharded_tensor == "strided":
        # (mended) Upstream interleaves wrongly unless both counts are equal.
        return np.repeat(shards, n_repeats, axis=0)
    raise ValueError(
        f"repeat_shard: sharded_tensor is 'contiguous' or 'strided', got {sharded_tensor!r}"
    )


def tensor_parallel_input(
    input_data: np.ndarray,
    tp: int,
    rf: int,
    repeat_fn: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> np.ndarray:
    """Host data for `rf` replicas, of which `tp` consecutive ones share a sample.

    Args:
        input_data: (n, *data), n samples.
        repeat_fn: called with the data (n, 1, *data) and the tensor-parallel rank.

    Returns:
        (n*tp/rf, rf, *data); each of the two leading axes is left out if its size is 1.

    Raises:
        ValueError: tp does not divide rf, or n*tp is no multiple of rf.
    """
    if tp < 1 or tp > rf or rf % tp != 0:
        raise ValueError(f"tensor_parallel_input: tp {tp} does not divide the {rf} replicas")
    x = np.expand_dims(np.asarray(input_data), 1)
    if repeat_fn is None:
        ranks = np.repeat(x, tp, axis=1)
    else:
        ranks = np.concatenate([repeat_fn(x.copy(), rank) for rank in range(tp)], axis=1)
    data_shape = x.shape[2:]
    transfers = x.shape[0] * tp // rf
    ranks = ranks.reshape(transfers, rf, *data_shape)
    return squeeze_safe(ranks, (0, 1))


def tensor_parallel_output(
    output_data: np.ndarray,
    num_host_transfers: int,
    tp: int,
    rf: int,
    data_shape: tuple[int, ...],
    tp_identical: bool = True,
    true_num_host_transfers: int | None = None,
) -> np.ndarray:
    """Session output as samples, the inverse of `tensor_parallel_input`.

    Args:
        data_shape: shape of one replica's output.
        tp_identical: the tensor-parallel replicas agree, so one of them is returned.
        true_num_host_transfers: how many of the transfers count.

    Returns:
        (samples, *data), or (samples, tp, *data) if the replicas differ.
    """
    out = output_data.reshape(num_host_transfers, rf // tp, tp, *data_shape)
    out = out[:true_num_host_transfers]
    out = out.reshape(-1, tp, *data_shape)
    return out[:, 0] if tp_identical else out


def pad_axis(x: np.ndarray, n: int, axis: int, value: int | float = 0) -> np.ndarray:
    """`x` with the end of `axis` padded to length `n` with `value`."""
    axis = handle_negative_axis(x, axis)
    assert x.shape[axis] <= n, f"axis {axis} has {x.shape[axis]} elements, more than {n}"
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, n - x.shape[axis])
    return np.pad(x, padding, constant_values=value)


def squeeze_safe(x: np.ndarray, axis: int | Sequence[int] | None = None) -> np.ndarray:
    """`x` without those of the given axes (default: all) that have size 1."""
    if axis is None:
        return np.squeeze(x)
    given = [axis] if isinstance(axis, int) else axis
    axes = {handle_negative_axis(x, a) for a in given}
    return np.squeeze(x, axis=tuple(a for a in axes if x.shape[a] == 1))
