"""Random programs, described apart from any Ir so that the same one can be built again.

A program is a list of instructions over a pool of float32 tensors of shape (4, 4). Instructions are
drawn from a table: arithmetic, aliases and writes through them, calls by value and by reference,
repeats, conditionals, remote loads and stores, and collectives over groups of replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import popxl
from popxl import ops

SIDE = 4
Pool = list[popxl.Tensor]


@dataclass(frozen=True)
class Program:
    """Instructions (name and random integers) and the numbers of replicas."""

    instructions: tuple[tuple[str, tuple[int, ...]], ...]
    replicas: int


def draw_program(rng: np.random.Generator, length: int, replicas: int) -> Program:
    """A program of ``length`` instructions."""
    names = sorted(INSTRUCTIONS)
    return Program(
        tuple(
            (names[rng.integers(len(names))], tuple(int(i) for i in rng.integers(0, 1000, size=6)))
            for _ in range(length)
        ),
        replicas,
    )


def _pick(pool: Pool, index: int) -> popxl.Tensor:
    return pool[index % len(pool)]


def _bounded(t: popxl.Tensor) -> popxl.Tensor:
    """Keeps values within [-1, 1], so that long programs neither overflow nor vanish."""
    return ops.sin(t)


def _binary(pool: Pool, n: tuple[int, ...]) -> None:
    op = (ops.add, ops.sub, ops.mul, ops.maximum)[n[2] % 4]
    pool.append(op(_pick(pool, n[0]), _pick(pool, n[1])))


def _matmul(pool: Pool, n: tuple[int, ...]) -> None:
    pool.append(_bounded(_pick(pool, n[0]) @ _pick(pool, n[1])))


def _bias(pool: Pool, n: tuple[int, ...]) -> None:
    row = popxl.constant(np.linspace(-1, 1, SIDE), popxl.float32)
    pool.append(_pick(pool, n[0]) + row)


def _softmax(pool: Pool, n: tuple[int, ...]) -> None:
    pool.append(ops.softmax(_pick(pool, n[0]), axis=n[1] % 2))


def _layout(pool: Pool, n: tuple[int, ...]) -> None:
    t = _pick(pool, n[0])
    halves = ops.split(t, 2, axis=n[1] % 2)
    pool.append(ops.concat([halves[1], halves[0]], axis=n[1] % 2).T)


def _write(pool: Pool, n: tuple[int, ...]) -> None:
    target = _pick(pool, n[0])
    ops.scaled_add_(target, _pick(pool, n[1]), b=0.5) if n[2] % 2 else ops.add_(
        target, popxl.constant(0.25, popxl.float32)
    )


def _write_alias(pool: Pool, n: tuple[int, ...]) -> None:
    """Writes a part of a tensor through a chain of aliases."""
    alias = _pick(pool, n[0])
    start = n[1] % (SIDE - 1)
    alias = ops.slice_(alias, [start], [start + 2], axis=[n[2] % 2])
    if n[3] % 2:
        alias = ops.transpose_(alias)
    elif n[4] % 2 and n[2] % 2 == 0:  # torch has no flat view of columns, which the oracle needs
        alias = ops.reshape_(alias, (alias.nelms,))
    ops.add_(alias, popxl.constant(np.linspace(0, 1, alias.shape[-1]), popxl.float32))


def _write_joined(pool: Pool, n: tuple[int, ...]) -> None:
    """Writes two tensors at once through their concatenation."""
    a, b = _pick(pool, n[0]), _pick(pool, n[1])
    if a != b:
        ops.add_(ops.concat_([a, b]), popxl.constant(np.full((1, SIDE), 0.125), popxl.float32))


def _call(pool: Pool, n: tuple[int, ...]) -> None:
    def body(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        ops.add_(x, y)  # by value: the caller's tensor keeps its value
        return _bounded(x * y)

    graph = popxl.gcg().ir.create_graph(body, *(_pick(pool, i) for i in n[:2]))
    info = ops.call_with_info(graph, _pick(pool, n[0]), _pick(pool, n[1]))
    if n[2] % 2 and _pick(pool, n[0]) != _pick(pool, n[1]):
        info.set_parent_input_modified(_pick(pool, n[0]))
    pool.append(info.outputs[0])


def _repeat(pool: Pool, n: tuple[int, ...]) -> None:
    def body(x: popxl.Tensor, y, z: popxl.TensorByRef) -> popxl.Tensor:
        ops.add_(z, _bounded(x))
        return _bounded(x @ y)

    x, y, z = (_pick(pool, i) for i in n[:3])
    if z in (x, y):
        return
    graph = popxl.gcg().ir.create_graph(body, x, y, z)
    pool.append(ops.repeat(graph, n[3] % 4, x, y, z)[0])


def _conditional(pool: Pool, n: tuple[int, ...]) -> None:
    def first(x: popxl.Tensor) -> popxl.Tensor:
        return x * 2.0

    def second(x: popxl.Tensor, y: popxl.Tensor) -> popxl.Tensor:
        return _bounded(x - y)

    ir = popxl.gcg().ir
    x, y = _pick(pool, n[0]), _pick(pool, n[1])
    condition = ops.greater(ops.sum(x), popxl.constant(0.0))
    branches = ir.create_graph(first, x), ir.create_graph(second, x, y)
    pool.append(ops.conditional(condition, *branches, [x], [x, y])[0])


def _remote(pool: Pool, n: tuple[int, ...]) -> None:
    buffer = popxl.remote_buffer((SIDE, SIDE), popxl.float32, entries=2)
    ops.remote_store(buffer, n[2] % 2, _pick(pool, n[0]))
    pool.append(ops.remote_load(buffer, popxl.constant(n[3] % 2, popxl.int32)))


def _reduce(pool: Pool, n: tuple[int, ...]) -> None:
    ir = popxl.gcg().ir
    size = (1, 2, ir.replication_factor)[n[1] % 3]
    if ir.replication_factor % size:
        return
    stride = 1 if n[2] % 2 else ir.replication_factor // size
    group = ir.replica_grouping(stride=stride, group_size=size)
    reduce = ops.collectives.replicated_all_reduce
    how = ("add", "mean", "max")[n[3] % 3]
    pool.append(_bounded(reduce(_pick(pool, n[0]), how, group)))


def _row_shards(pool: Pool, n: tuple[int, ...]) -> None:
    """The form that join_shards rewrites: sums of products, reduced over all replicas."""
    a, b, c = (_pick(pool, i) for i in n[:3])
    partial = a @ b
    if n[3] % 2:
        partial = partial + b @ c
    pool.append(_bounded(ops.collectives.replicated_all_reduce(partial)))


def _gather(pool: Pool, n: tuple[int, ...]) -> None:
    t = _pick(pool, n[0])
    whole = ops.collectives.replicated_all_gather(t, axis=n[1] % 2)
    pool.append(ops.collectives.replicated_slice(whole, axis=n[1] % 2))


INSTRUCTIONS: dict[str, Callable[[Pool, tuple[int, ...]], None]] = {
    "binary": _binary,
    "bias": _bias,
    "call": _call,
    "conditional": _conditional,
    "gather": _gather,
    "layout": _layout,
    "matmul": _matmul,
    "reduce": _reduce,
    "remote": _remote,
    "repeat": _repeat,
    "row_shards": _row_shards,
    "softmax": _softmax,
    "write": _write,
    "write_alias": _write_alias,
}
ALIAS_OF_SEVERAL = {**INSTRUCTIONS, "write_joined": _write_joined}


def run_program(
    program: Program, arrays: dict[str, np.ndarray], options: dict[str, str], runs: int = 2
) -> list[np.ndarray]:
    """Values of the whole pool after ``runs`` runs, then the variables.

    Args:
        program: what to build.
        arrays: ``stream`` (replicas, 4, 4); ``shared`` (4, 4); ``own`` (replicas, 4, 4).
        options: engine options without their prefix.
        runs: how often the session runs; variables carry state from run to run.
    """
    ir = popxl.Ir(replication=program.replicas)
    for name, value in options.items():
        ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = value
    several = program.replicas > 1
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((SIDE, SIDE), popxl.float32)
        shared = popxl.variable(arrays["shared"])
        own = popxl.variable(
            arrays["own"] if several else arrays["own"][0],
            replica_grouping=ir.replica_grouping(group_size=1),
        )
        pool: Pool = [ops.host_load(stream), shared, own]
        for name, numbers in program.instructions:
            INSTRUCTIONS[name](pool, numbers)
        outputs = []
        for t in pool:
            outputs.append(popxl.d2h_stream(t.shape, t.dtype))
            ops.host_store(outputs[-1], t)
    with popxl.Session(ir, "ipu_hw") as session:
        for _ in range(runs):
            results = session.run({stream: arrays["stream"] if several else arrays["stream"][0]})
        variables = [np.array(session.get_tensor_data(v)) for v in (shared, own)]
    return [results[output] for output in outputs] + variables
