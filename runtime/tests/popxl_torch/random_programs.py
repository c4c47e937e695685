"""Random programs, described apart from any Ir so that the same one can be built again.

A program is a list of instructions over a pool of tensors of shape (4, 4) and one dtype.
Instructions are drawn from a table: arithmetic, other dtypes on the way, aliases and writes through
them, calls by value and by reference, repeats, conditionals, instructions nested in each of these,
remote loads and stores, windows at run-time places, and collectives over groups of replicas.

No string annotations here: popxl recognises TensorByRef by identity.
"""

from collections.abc import Callable, Sequence
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


def draw_program(
    rng: np.random.Generator, length: int, replicas: int, names: Sequence[str] = ()
) -> Program:
    """A program of ``length`` instructions, of all or of some names."""
    names = names or sorted(INSTRUCTIONS)
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
    row = popxl.constant(np.linspace(-1, 1, SIDE), pool[0].dtype)
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
        target, popxl.constant(0.25, pool[0].dtype)
    )


def _write_alias(pool: Pool, n: tuple[int, ...]) -> None:
    """Writes a part of a tensor through a chain of aliases."""
    alias = _pick(pool, n[0])
    start = n[1] % (SIDE - 1)
    alias = ops.slice_(alias, [start], [start + 2], axis=[n[2] % 2])
    if n[3] % 2:
        alias = ops.transpose_(alias)
    elif n[4] % 2:
        alias = ops.reshape_(alias, (alias.nelms,))
    ops.add_(alias, popxl.constant(np.linspace(0, 1, alias.shape[-1]), pool[0].dtype))


def _write_joined(pool: Pool, n: tuple[int, ...]) -> None:
    """Writes two tensors at once through their concatenation."""
    a, b = _pick(pool, n[0]), _pick(pool, n[1])
    if a != b:
        ops.add_(ops.concat_([a, b]), popxl.constant(np.full((1, SIDE), 0.125), pool[0].dtype))


def _write_reversed(pool: Pool, n: tuple[int, ...]) -> None:
    """Writes through a view that torch does not have, and through a view of it; then its source."""
    t = _pick(pool, n[0])
    backwards = ops.slice_(t, None, None, -1, axis=n[1] % 2)
    ramp = popxl.constant(np.linspace(0, 0.5, SIDE * SIDE).reshape(SIDE, SIDE), t.dtype)
    ops.add_(backwards if n[2] % 2 else backwards.reshape_((SIDE, SIDE)), ramp)
    ops.add_(t, ramp)
    pool.append(backwards + 0.0)


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
    condition = ops.greater(ops.sum(x), popxl.constant(0.0, x.dtype))
    branches = ir.create_graph(first, x), ir.create_graph(second, x, y)
    pool.append(ops.conditional(condition, *branches, [x], [x, y])[0])


def _remote(pool: Pool, n: tuple[int, ...]) -> None:
    buffer = popxl.remote_buffer((SIDE, SIDE), pool[0].dtype, entries=2)
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


def _group(n: int) -> popxl.ReplicaGrouping:
    """One of the groupings of the Ir's replicas."""
    ir = popxl.gcg().ir
    replicas = ir.replication_factor
    shapes = [
        (stride, size)
        for size in range(1, replicas + 1)
        for stride in range(1, replicas + 1)
        if replicas % (stride * size) == 0
    ]
    stride, size = shapes[n % len(shapes)]
    return ir.replica_grouping(stride=stride, group_size=size)


def _scatter(pool: Pool, n: tuple[int, ...]) -> None:
    """Reduce-scatter or a piece of one's own, gathered again: of 16 elements, padded or not."""
    t, group, c = _pick(pool, n[0]), _group(n[1]), ops.collectives
    if n[2] % 2:
        shard = c.replicated_reduce_scatter(
            t, "mean", group, configure_output_for_replicated_tensor_sharding=True
        )
    else:
        shard = c.replica_sharded_slice(t, group)
    shard = _bounded(shard)
    whole = c.replicated_all_gather(shard, group=group)
    pool.append(whole.reshape((SIDE, SIDE)) + 0.0)


def _unary(pool: Pool, n: tuple[int, ...]) -> None:
    op = (ops.gelu, ops.relu, ops.swish, ops.tanh, ops.negate, ops.abs)[n[1] % 6]
    pool.append(op(_pick(pool, n[0])))


def _norm(pool: Pool, n: tuple[int, ...]) -> None:
    row = popxl.constant(np.linspace(0.5, 1, SIDE), pool[0].dtype)
    pool.append(_bounded(ops.layer_norm(_pick(pool, n[0]), row, row, eps=0.1)))


def _total(pool: Pool, n: tuple[int, ...]) -> None:
    op = (ops.sum, ops.mean, ops.max)[n[1] % 3]
    t = _pick(pool, n[0])
    pool.append(_bounded(t - op(t, axis=n[2] % 2, keepdims=True)))


def _whole_numbers(pool: Pool, n: tuple[int, ...]) -> None:
    """Through an integer type and back. The detour rounds: results never lie near a step."""
    dtype = (popxl.int32, popxl.uint32, popxl.int8, popxl.bool)[n[1] % 4]
    there = ops.cast(ops.greater(_pick(pool, n[0]), popxl.constant(5.0, pool[0].dtype)), dtype)
    back = ops.cast(there, pool[0].dtype)
    pool.append(back + _pick(pool, n[2]))


def _mask(pool: Pool, n: tuple[int, ...]) -> None:
    pattern = popxl.constant(np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % (2 + n[2] % 3) == 0)
    pool.append(ops.where(pattern, _pick(pool, n[0]), _pick(pool, n[1])))


def _rows(pool: Pool, n: tuple[int, ...]) -> None:
    indices = popxl.constant([n[1] % SIDE, n[2] % SIDE, 9, 0], popxl.int32)
    pool.append(ops.gather(_pick(pool, n[0]), indices, axis=n[3] % 2, zero_OOR=True))


def _place(n: int) -> popxl.Tensor:
    """A run-time place, which differs by replica for some numbers."""
    place = popxl.constant([n % SIDE], popxl.int32)
    if n % 3 == 0:
        rank = ops.collectives.replicated_slice(
            popxl.constant(np.arange(popxl.gcg().ir.replication_factor), popxl.int32)
        )
        place = (place + rank.reshape((1,))) % SIDE
    return place


def _window(pool: Pool, n: tuple[int, ...]) -> None:
    t, axis = _pick(pool, n[0]), n[1] % 2
    row = ops.dynamic_slice(t, _place(n[2]), axes=[axis], sizes=[1], no_overlap=False)
    update = ops.dynamic_update_ if n[4] % 2 else ops.dynamic_update
    target = _pick(pool, n[5])
    pool.append(update(target, _place(n[3]), row, axes=[axis], sizes=[1], no_overlap=False) + 0.0)


def _cache(pool: Pool, n: tuple[int, ...]) -> None:
    """Rows written into an entry in a loop: the form that update_remote rewrites."""
    ir = popxl.gcg().ir
    buffer = popxl.remote_buffer((SIDE, SIDE), pool[0].dtype, entries=2)

    def body(place: popxl.Tensor, row: popxl.Tensor):
        entry = popxl.constant(n[2] % 2, popxl.int32)
        kept = ops.remote_load(buffer, entry)
        kept = ops.dynamic_update_(kept, place, row, axes=[0], sizes=[1], no_overlap=False)
        ops.remote_store(buffer, entry, kept)
        return place + 1, ops.sum(kept, axis=0, keepdims=True)

    row = ops.slice(_pick(pool, n[0]), 0, 1, axis=0)
    place = popxl.constant([0], popxl.int32)
    graph = ir.create_graph(body, place, row)
    ops.repeat(graph, 1 + n[4] % 3, place, row)
    pool.append(_bounded(ops.remote_load(buffer, n[3] % 2)))


def _remote_in_place(pool: Pool, n: tuple[int, ...]) -> None:
    """Each replica's own entry, and a load into a tensor that exists."""
    buffer = popxl.remote_buffer((SIDE, SIDE), pool[0].dtype, entries=SIDE)
    place = _place(n[1])
    ops.remote_store(buffer, place, _pick(pool, n[0]))
    ops.remote_load_(buffer, _place(n[2]), _pick(pool, n[3]))


def _update(pool: Pool, n: tuple[int, ...]) -> None:
    t, x = _pick(pool, n[0]), _pick(pool, n[1])
    if t == x:
        return
    v = ops.var_updates
    (
        lambda: v.accumulate_moving_average_(t, x, 0.5),
        lambda: v.accumulate_mean_(t, x, 3.0),
        lambda: v.accumulator_scale_(t, 0.5),
        lambda: v.copy_var_update_(t, x),
        lambda: ops.relu_(t),
        lambda: ops.collectives.replicated_all_reduce_(t, "mean", _group(n[3])),
    )[n[2] % 6]()


def _inner(n: tuple[int, ...]) -> Callable[[Pool], None]:
    """One or two further instructions, for a nested graph."""
    names = [name for name in sorted(INSTRUCTIONS) if name not in _LONG]
    first, second = names[n[4] % len(names)], names[n[5] % len(names)]

    def build(pool: Pool) -> None:
        INSTRUCTIONS[first](pool, n[::-1])
        if n[3] % 2:
            INSTRUCTIONS[second](pool, n)

    return build


def _nested_call(pool: Pool, n: tuple[int, ...]) -> None:
    def body(x: popxl.Tensor, y: popxl.TensorByRef):
        inside: Pool = [x, y]
        _inner(n)(inside)
        return inside[-1], x

    x, y = _pick(pool, n[0]), _pick(pool, n[1])
    if x != y:
        pool.extend(ops.call(popxl.gcg().ir.create_graph(body, x, y), x, y))


def _nested_repeat(pool: Pool, n: tuple[int, ...]) -> None:
    def body(x: popxl.Tensor, y: popxl.TensorByRef, z: popxl.TensorByRef):
        inside: Pool = [x, y, z]
        _inner(n)(inside)
        return _bounded(inside[-1]), _bounded(inside[-1] + y)

    x, y, z = (_pick(pool, i) for i in n[:3])
    if x != y and z not in (x, y):
        graph = popxl.gcg().ir.create_graph(body, x, y, z)
        pool.extend(ops.repeat(graph, n[3] % 4, x, y, z))


def _nested_conditional(pool: Pool, n: tuple[int, ...]) -> None:
    def branch(x: popxl.Tensor, y: popxl.Tensor, flip: bool):
        inside: Pool = [x, y]
        _inner(n[::-1] if flip else n)(inside)
        return inside[-1], y

    ir = popxl.gcg().ir
    x, y = _pick(pool, n[0]), _pick(pool, n[1])
    # The same everywhere: collectives may be inside.
    total = ops.collectives.replicated_all_reduce(ops.sum(x), "max")
    branches = ir.create_graph(branch, x, y, False), ir.create_graph(branch, x, y, True)
    condition = ops.greater(total, popxl.constant(0.1, x.dtype))
    pool.extend(ops.conditional(condition, *branches, [x, y], [y, x]))


def _choice(pool: Pool, n: tuple[int, ...]) -> None:
    """Branches that a number of the host picks, one choice within the other, at times in a loop."""
    ir = popxl.gcg().ir
    kind = ops.host_load(popxl.h2d_stream((), popxl.int32, "kind"))

    def leaf(x: popxl.Tensor, y: popxl.Tensor, kind: popxl.Tensor, way: int):
        inside: Pool = [x, y]
        _inner(n[way:] + n[:way])(inside)
        return inside[-1], y, kind

    def inner(x: popxl.Tensor, y: popxl.Tensor, kind: popxl.Tensor):
        given = [x, y, kind]
        branches = ir.create_graph(leaf, *given, 1), ir.create_graph(leaf, *given, 2)
        above = ops.greater(kind + 1, popxl.constant(n[4] % 4, popxl.int32))
        return ops.conditional(above, *branches, given, given)

    x, y = _pick(pool, n[0]), _pick(pool, n[1])
    given = [x, y, kind]
    branches = ir.create_graph(inner, *given), ir.create_graph(leaf, *given, 0)
    odd = ops.equal(kind % 2, popxl.constant(n[5] % 2, popxl.int32))
    x, y, kind = ops.conditional(odd, *branches, given, given)
    if n[3] % 3 == 0:
        x, y, kind = ops.repeat(ir.create_graph(inner, x, y, kind), 2, x, y, kind)
    pool.extend([x, y])


_LONG = ("choice", "nested_call", "nested_repeat", "nested_conditional")


def _gather(pool: Pool, n: tuple[int, ...]) -> None:
    t = _pick(pool, n[0])
    whole = ops.collectives.replicated_all_gather(t, axis=n[1] % 2)
    pool.append(ops.collectives.replicated_slice(whole, axis=n[1] % 2))


# -- what the fusion passes look for


def _attend(pool: Pool, n: tuple[int, ...]) -> None:
    q, k, v = (_pick(pool, i) for i in n[:3])
    dtype = q.dtype
    scores = (q * 0.5) @ k.T if n[3] % 2 else (q @ k.T) * 0.5
    if n[4] % 3 == 1:
        low = popxl.constant(np.finfo(dtype.as_numpy()).min, dtype)
        # The first row sees nothing for some numbers.
        seen = popxl.constant(np.tril(np.ones((SIDE, SIDE), bool), -(n[5] % 2)))
        scores = ops.where(seen, scores, low)
    elif n[4] % 3 == 2:
        scores = scores + popxl.constant(np.triu(np.full((SIDE, SIDE), -3e4), 1), dtype)
    pool.append(ops.softmax(scores, axis=-1) @ v)


def _linear(pool: Pool, n: tuple[int, ...]) -> None:
    """A product, sums with rows and whole tensors, an activation; used once or twice."""
    row = popxl.constant(np.linspace(-1, 1, SIDE), pool[0].dtype)
    product = _pick(pool, n[0]) @ _pick(pool, n[1])
    y = product + row if n[2] % 2 else row + product
    if n[3] % 2:
        y = _pick(pool, n[3]) + y
    pool.append(_bounded((ops.gelu, ops.relu, ops.tanh)[n[4] % 3](y)))
    if n[5] % 3 == 0:
        pool.append(_bounded((product, y)[n[5] % 2]))


def _long_sum(pool: Pool, n: tuple[int, ...]) -> None:
    total = _pick(pool, n[0]) + _pick(pool, n[1])
    total = _pick(pool, n[2]) + total
    total = total + (_pick(pool, n[3]) + _pick(pool, n[4]))
    pool.append(_bounded(total + popxl.constant(np.linspace(-1, 1, SIDE), total.dtype)))


def _written_out(pool: Pool, n: tuple[int, ...]) -> None:
    """GELU or layer norm as arithmetic."""
    x = _pick(pool, n[0])
    if n[1] % 2:
        inner = ops.tanh(0.7978845608 * (x + 0.044715 * x * x * x))
        pool.append(0.5 * x * (1.0 + inner))
        return
    row = popxl.constant(np.linspace(0.5, 1, SIDE), x.dtype)
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    spread = ops.sqrt(ops.mean(centred * centred, axis=-1, keepdims=True) + 0.1)
    pool.append(_bounded(centred / spread * row + row))


INSTRUCTIONS: dict[str, Callable[[Pool, tuple[int, ...]], None]] = {
    "attend": _attend,
    "binary": _binary,
    "bias": _bias,
    "cache": _cache,
    "call": _call,
    "choice": _choice,
    "conditional": _conditional,
    "gather": _gather,
    "layout": _layout,
    "linear": _linear,
    "long_sum": _long_sum,
    "mask": _mask,
    "matmul": _matmul,
    "nested_call": _nested_call,
    "nested_conditional": _nested_conditional,
    "nested_repeat": _nested_repeat,
    "norm": _norm,
    "reduce": _reduce,
    "remote": _remote,
    "remote_in_place": _remote_in_place,
    "repeat": _repeat,
    "row_shards": _row_shards,
    "rows": _rows,
    "scatter": _scatter,
    "softmax": _softmax,
    "total": _total,
    "unary": _unary,
    "update": _update,
    "whole_numbers": _whole_numbers,
    "window": _window,
    "write": _write,
    "write_alias": _write_alias,
    "write_joined": _write_joined,
    "write_reversed": _write_reversed,
    "written_out": _written_out,
}


def run_program(
    program: Program,
    arrays: dict[str, np.ndarray],
    options: dict[str, str],
    runs: int = 2,
    dtype: popxl.dtype = popxl.float32,
) -> list[np.ndarray]:
    """Values of the whole pool after ``runs`` runs, then the variables.

    Args:
        program: what to build.
        arrays: ``stream`` (replicas, 4, 4); ``shared`` (4, 4); ``own`` (replicas, 4, 4).
        options: engine options without their prefix.
        dtype: of all tensors of the pool; the arrays are converted.
        runs: how often the session runs; variables carry state from run to run.
    """
    ir = popxl.Ir(replication=program.replicas)
    for name, value in options.items():
        ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = value
    several = program.replicas > 1
    arrays = {name: array.astype(dtype.as_numpy()) for name, array in arrays.items()}
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((SIDE, SIDE), dtype)
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
        inputs = {stream: arrays["stream"] if several else arrays["stream"][0]}
        kinds = session.expected_inputs() - {stream}
        for run in range(runs):
            number = np.full(program.replicas, run, "int32") if several else np.int32(run)
            results = session.run(inputs | dict.fromkeys(kinds, number))
        variables = [np.array(session.get_tensor_data(v)) for v in (shared, own)]
    return [results[output] for output in outputs] + variables
