"""Matmuls over shards of one matrix become one matmul.

Needs marked values. Two forms, both of tensor parallelism:

- column shards: ``x @ w`` with x uniform and w varying is one product with the joined columns;
- row shards: ``all_reduce(x @ w)`` with both varying, over all replicas, is one product over the
  joined inner axis. ``all_reduce(a + b)`` of such partial sums is split into two first.

So a program cut over several replicas costs one process about what it costs uncut.
"""

from __future__ import annotations

from popxl_torch.passes.ssa import Block, Functional, Node, Val, used_outside


def join_shards(functional: Functional) -> Functional:
    """Rewrite every block in place and return the program."""
    if functional.replicas > 1:
        for block in functional.blocks():
            _join(block)
    return functional


def _join(block: Block) -> None:
    for node in block.nodes:
        for inner in node.blocks:
            _join(inner)
    if not any(_is_full_sum(node) or node.kind == "MatMul" for node in block.nodes):
        return
    uses = _count_uses(block)
    producers = {id(out): node for node in block.nodes for out in node.outputs}
    replaced: list[Node] = []
    for node in block.nodes:
        if _is_full_sum(node):
            replaced.extend(_reduce(node, producers, uses))
        else:
            if node.kind == "MatMul" and _is_column_shard(node):
                node.kind = "MatMulColumns"
            replaced.append(node)
    block.nodes = replaced
    _drop_unused(block)


def _count_uses(block: Block) -> dict[int, int]:
    uses: dict[int, int] = {}
    for val in [v for node in block.nodes for v in used_outside(node)] + block.results:
        uses[id(val)] = uses.get(id(val), 0) + 1
    return uses


def _is_full_sum(node: Node) -> bool:
    return (
        node.kind == "ReplicatedAllReduce"
        and node.attrs["op"] == "add"
        and len(node.attrs["groups"]) == 1
        and node.inputs[0].varying
    )


def _is_column_shard(node: Node) -> bool:
    if len(node.inputs) != 2:  # a third one scales a float8 product
        return False
    x, w = node.inputs
    return not x.varying and w.varying and len(x.spec.shape) == 2 and len(w.spec.shape) == 2


def _reduce(node: Node, producers: dict[int, Node], uses: dict[int, int]) -> list[Node]:
    """Nodes that compute the sum over all replicas of ``node``'s input."""
    (partial,) = node.inputs
    (out,) = node.outputs
    made_by = producers.get(id(partial))
    if made_by is None or uses[id(partial)] > 1 or not _leads_to_matmul(made_by, producers, uses):
        return [node]
    if made_by.kind != "Add":
        return [Node("MatMulReduced", list(made_by.inputs), [out], made_by.attrs, (),
                     made_by.where, node.region)]  # fmt: skip
    nodes: list[Node] = []
    sums = []
    for term in made_by.inputs:
        total = Val(term.spec, f"{term.name}_sum")
        sums.append(total)
        part = Node("ReplicatedAllReduce", [term], [total], node.attrs, (), node.where, node.region)
        nodes += _reduce(part, producers, uses)
    nodes.append(Node("Add", sums, [out], {}, (), node.where, node.region))
    return nodes


def _leads_to_matmul(node: Node, producers: dict[int, Node], uses: dict[int, int]) -> bool:
    """Whether a partial sum is a row-sharded product, or a sum with one on either side."""
    if node.kind in ("MatMul", "MatMulColumns"):
        return all(val.varying and len(val.spec.shape) == 2 for val in node.inputs)
    if node.kind != "Add" or any(val.spec != node.outputs[0].spec for val in node.inputs):
        return False
    sides = [producers.get(id(val)) for val in node.inputs if uses[id(val)] == 1 and val.varying]
    return all(val.varying for val in node.inputs) and any(
        side is not None and _leads_to_matmul(side, producers, uses) for side in sides
    )


def _drop_unused(block: Block) -> None:
    """The matmuls and sums that were taken over are dead now."""
    uses = _count_uses(block)
    kept: list[Node] = []
    for node in reversed(block.nodes):
        dead = node.kind in ("MatMul", "Add") and not any(uses.get(id(v)) for v in node.outputs)
        if dead:
            for val in node.inputs:
                uses[id(val)] -= 1
        else:
            kept.append(node)
    block.nodes = kept[::-1]
