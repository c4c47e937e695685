"""Shards of one matrix, and of the bias behind it, are joined by steps of their own.

    JoinColumns(w (r, k, c)) -> (k, r·c)      JoinColumns(bias (r, c)) -> (r·c,)
    JoinRows(w (r, k, n)) -> (r·k, n)

Such a step makes a view, and of weights an executor makes it once, when a plan is bound. Where no
view can join a matrix its shards stay as they are: the product takes either.
"""

from __future__ import annotations

from popxl_torch.ir.records import Spec
from popxl_torch.passes.ssa import Block, Functional, Node, Val


def join_weights(functional: Functional) -> Functional:
    """Rewrite the joined products of every block in place and return the program."""
    for block in functional.blocks():
        _rewrite(block, functional.replicas)
    return functional


def _rewrite(block: Block, replicas: int) -> None:
    nodes: list[Node] = []
    for node in block.nodes:
        for inner in node.blocks:
            _rewrite(inner, replicas)
        product = node.attrs["product"] if node.kind == "Linear" else node.kind
        if product == "MatMulColumns":
            biases = (
                index
                for index, val in enumerate(node.inputs)
                if index > 1 and val.varying and len(val.spec.shape) == 1
            )
            for index in (1, *biases):
                nodes.append(_join("JoinColumns", node, index, -1, replicas))
        elif product == "MatMulReduced":
            nodes.append(_join("JoinRows", node, 1, 0, replicas))
        nodes.append(node)
    block.nodes = nodes


def _join(kind: str, user: Node, index: int, axis: int, replicas: int) -> Node:
    """A node that joins an input of ``user``, which then uses its result."""
    val = user.inputs[index]
    sizes = list(val.spec.shape)
    sizes[axis] *= replicas
    joined = Val(Spec(tuple(sizes), val.spec.dtype), f"{val.name}_joined")
    user.inputs[index] = joined
    return Node(kind, [val], [joined], {}, (), user.where, user.region)
