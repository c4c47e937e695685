"""Between a variable's host array and the tensors on the device.

A host array has one slice per replica group, (groups, \\*shape), or just \\*shape for one group; a
device tensor has one per replica if replicas differ. Replica-sharded variables are whole on the
host and cut into flat, zero-padded pieces on the device.
"""

from __future__ import annotations

import math

import numpy as np

from popxl_torch.ir.records import Spec, VariableData


def to_device_layout(data: VariableData, spec: Spec) -> np.ndarray:
    """The array of a device tensor: (replicas, \\*local shape), or (\\*local shape) if equal.

    A view of the host array where groups are single replicas in order, or there is one group.
    """
    host = data.host
    in_order = data.assignment == tuple(range(data.num_groups))
    if data.shard_over == 1 and (data.num_groups == 1 or in_order):
        return host
    host = np.asarray(host)
    if data.shard_over > 1:
        groups = host if data.num_groups > 1 else host[np.newaxis]
        pieces = [_shards(group, data.shard_over) for group in groups]
        return np.stack(
            [pieces[g][rank] for g, rank in zip(data.assignment, data.ranks, strict=True)]
        )
    return host[list(data.assignment)]


def _shards(array: np.ndarray, count: int) -> np.ndarray:
    """(count, ceil(elements / count)), the last ones padded with zeros."""
    length = -(-array.size // count)
    flat = np.zeros(count * length, array.dtype)
    flat[: array.size] = array.reshape(-1)
    return flat.reshape(count, length)


def from_replicas(replicas: np.ndarray, data: VariableData, spec: Spec) -> np.ndarray:
    """The host array of a variable from all replicas' values, (replicas, \\*local shape)."""
    if data.shard_over > 1:
        groups = []
        for group in range(data.num_groups):
            members = [r for r, g in enumerate(data.assignment) if g == group][: data.shard_over]
            flat = np.concatenate([replicas[m].reshape(-1) for m in members])
            groups.append(flat[: math.prod(spec.shape)].reshape(spec.shape))
        return np.stack(groups) if data.num_groups > 1 else groups[0]
    firsts = [data.assignment.index(group) for group in range(data.num_groups)]
    return replicas[firsts] if data.num_groups > 1 else replicas[0]


def retrieved(data: VariableData, shape: tuple[int, ...]) -> np.ndarray:
    """What reading the variable returns: one slice per group, or per replica if so asked."""
    if data.retrieved is not None:
        return data.retrieved
    host = np.asanyarray(data.host)  # memory maps stay what they are
    if not data.all_replicas or data.group_size == 1 or data.shard_over > 1:
        return host
    groups = host if data.num_groups > 1 else host[np.newaxis]
    return groups[list(data.assignment)]
