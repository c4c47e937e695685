"""What a program is, as a digest: equal programs, built twice or in two processes, have the same.

It covers all that passes and plans depend on: graphs, ops with their attributes, order and places
in the source, specs, constants bit by bit, streams, remote buffers, how variables lie on replicas.
The values of variables are no part of it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from popxl_torch.ir.records import Buffer, Op, Program, Spec, Stream, VariableData


def content_digest(program: Program) -> str:
    """The digest, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    numbers: dict[Any, int] = {buffer: n for n, buffer in enumerate(program.buffers)}
    numbers |= {stream: n for n, stream in enumerate(program.streams)}
    digest.update(repr((program.replication, program.num_host_transfers)).encode())
    digest.update(repr([(_spec(b.spec), b.entries) for b in program.buffers]).encode())
    digest.update(repr([(s.id, _spec(s.spec), s.to_device) for s in program.streams]).encode())
    for graph in program.graphs.values():
        digest.update(repr((graph.id, _ids(graph.inputs), _ids(graph.outputs))).encode())
        for value in graph.values.values():
            digest.update(repr((value.id, _spec(value.spec), value.kind)).encode())
            if value.kind == "variable":
                digest.update(repr(_layout(value.data, numbers)).encode())
            elif value.kind == "constant":
                digest.update(np.ascontiguousarray(value.data).tobytes())
        for op in graph.ops:
            digest.update(repr(_op(op, numbers)).encode())
    return digest.hexdigest()


def _spec(spec: Spec) -> tuple[object, ...]:
    return spec.shape, spec.dtype, spec.meta_shape


def _ids(values: list[Any]) -> list[str | None]:
    return [None if value is None else f"{value.graph.id}/{value.id}" for value in values]


def _layout(data: VariableData, numbers: dict[Any, int]) -> tuple[object, ...]:
    place = None if data.buffer is None else (numbers[data.buffer], data.entry)
    return data.assignment, data.num_groups, place, data.shard_over, data.group_size, data.ranks


def _op(op: Op, numbers: dict[Any, int]) -> tuple[object, ...]:
    attrs = [
        (name, numbers[value] if isinstance(value, Buffer | Stream) else _ordered(value))
        for name, value in op.attrs.items()
    ]
    graphs = [graph.id for graph in op.graphs]
    return (
        op.kind,
        _ids(op.inputs),
        _ids(op.outputs),
        attrs,
        graphs,
        op.context,
        op.scopes,
        op.where(),
    )


def _ordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else value
