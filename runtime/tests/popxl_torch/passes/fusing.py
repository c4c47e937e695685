"""What tests of the fusion passes share: programs, what becomes of them, and what they compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import popxl
from popxl import ops
from popxl_torch.passes.mark_uniform import varying_sources
from popxl_torch.passes.pipeline import specialise, to_functional
from popxl_torch.passes.ssa import Node, walk

from runtime.tests.popxl_torch.programs import build

Body = Callable[..., popxl.Tensor | tuple[popxl.Tensor, ...]]
_AROUND = ("ReadState", "HostStore", "JoinColumns", "JoinRows")
TOLERANCE = {
    popxl.float32: {"rtol": 2e-5, "atol": 2e-6},
    # A few roundings to 11 bits of values of size 1.
    popxl.float16: {"rtol": 6e-3, "atol": 6e-3},
}


def inputs_of(
    ir: popxl.Ir, arrays: list[np.ndarray], dtype: popxl.dtype, own: tuple[int, ...] = ()
) -> list[popxl.Tensor]:
    """A variable for each array; those whose number is in ``own`` differ by replica."""
    each = ir.replica_grouping(group_size=1)
    return [
        popxl.variable(array.astype(dtype.as_numpy()), replica_grouping=each)
        if number in own
        else popxl.variable(array.astype(dtype.as_numpy()))
        for number, array in enumerate(arrays)
    ]


def store(*results: popxl.Tensor) -> list[popxl.DeviceToHostStream]:
    """Streams to the host that get the tensors."""
    streams = [popxl.d2h_stream(t.shape, t.dtype) for t in results]
    for stream, t in zip(streams, results, strict=True):
        ops.host_store(stream, t)
    return streams


def fused(
    body: Body,
    *arrays: np.ndarray,
    fusions: tuple[str, ...],
    replicas: int = 1,
    own: tuple[int, ...] = (),
    dtype: popxl.dtype = popxl.float32,
) -> list[Node]:
    """The nodes of ``body`` on variables of the arrays, after some fusions."""

    def fill(ir: popxl.Ir) -> None:
        results = body(*inputs_of(ir, list(arrays), dtype, own))
        store(*(results if isinstance(results, tuple) else (results,)))

    program = build(fill, replicas)
    variables = [v for v in program.main.values.values() if v.kind == "variable"]
    functional, _ = specialise(to_functional(program), varying_sources(variables), fusions=fusions)
    return [node for node in walk(functional.main) if node.kind not in _AROUND]


def kinds(nodes: list[Node]) -> list[str]:
    """Their kinds."""
    return [node.kind for node in nodes]


def computed(
    body: Body,
    *arrays: np.ndarray,
    replicas: int = 1,
    own: tuple[int, ...] = (),
    dtype: popxl.dtype = popxl.float32,
    **options: str,
) -> np.ndarray:
    """The result of ``body`` on variables of the arrays, with engine options."""
    ir = popxl.Ir(replication=replicas)
    for name, value in options.items():
        ir._pb_ir.getSessionOptions().engineOptions[f"popxl_torch.{name}"] = value
    with ir.main_graph, popxl.in_sequence():
        (stream,) = store(body(*inputs_of(ir, list(arrays), dtype, own)))
    with popxl.Session(ir, "ipu_hw") as session:
        return session.run()[stream]


def assert_fused_agrees(
    body: Body,
    *arrays: np.ndarray,
    replicas: int = 1,
    own: tuple[int, ...] = (),
    dtype: popxl.dtype = popxl.float32,
) -> None:
    """All fusions, in both arithmetics, give what the ops give one by one."""
    given = {"replicas": replicas, "own": own, "dtype": dtype}
    expected = computed(body, *arrays, **given, executor="interpreter")
    for arithmetic in ("exact", "fast"):
        found = computed(body, *arrays, **given, arithmetic=arithmetic)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, **TOLERANCE[dtype])
