"""Builders of small Irs that several tests look into."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import popxl
from popxl import ops
from popxl_torch.ir.records import Program
from popxl_torch.passes.ssa import Block, walk


def build(body: Callable[[popxl.Ir], None], replicas: int = 1) -> Program:
    """The program that ``body`` builds in a new main graph."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        body(ir)
    return ir._program


def kinds_of(block: Block) -> list[str]:
    """Kinds of all nodes, nested ones included."""
    return [node.kind for node in walk(block)]


def tensor_parallel_mlp(ir: popxl.Ir) -> None:
    """x -> all_reduce(relu(x @ w1) @ w2), cut Megatron-style over all replicas."""
    rng = np.random.default_rng(0)
    replicas = ir.replication_factor
    each = ir.replica_grouping(group_size=1)
    w1 = rng.normal(size=(replicas, 8, 4)).astype("float32")
    w2 = rng.normal(size=(replicas, 4, 8)).astype("float32")
    first = popxl.variable(w1, replica_grouping=each, name="w1")
    second = popxl.variable(w2, replica_grouping=each, name="w2")
    x = ops.host_load(popxl.h2d_stream((3, 8), popxl.float32, "x"))
    hidden = ops.relu(x @ first)
    y = ops.collectives.replicated_all_reduce(hidden @ second)
    ops.host_store(popxl.d2h_stream(y.shape, y.dtype, "y"), y)
