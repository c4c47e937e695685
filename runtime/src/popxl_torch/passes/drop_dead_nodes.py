"""Drop nodes whose outputs nothing uses and that act on nothing."""

from __future__ import annotations

from popxl_torch.passes.ssa import EFFECTS, Block, Functional


def drop_dead_nodes(functional: Functional) -> Functional:
    """Prune every block in place and return the program."""
    for block in functional.blocks():
        acting: set[int] = set()
        _find_acting(block, acting)
        _prune(block, acting, set())
    return functional


def _find_acting(block: Block, acting: set[int]) -> bool:
    """Add the ids of nodes with effects, nested ones too; returns whether there are any."""
    before = len(acting)
    for node in block.nodes:
        inside = [_find_acting(inner, acting) for inner in node.blocks]
        if node.kind in EFFECTS or any(inside):
            acting.add(id(node))
    return len(acting) > before


def _prune(block: Block, acting: set[int], live: set[int]) -> None:
    """Drop the block's dead nodes.

    ``live``, to which the values that it uses are added, is one set for all blocks: what uses a
    value stands behind its only maker, or is nested in what does.
    """
    live.update(map(id, block.results))
    kept = []
    for node in reversed(block.nodes):
        idle = id(node) not in acting and live.isdisjoint(map(id, node.outputs))
        if idle and node.kind != "Taken":  # the trace counts it
            continue
        for inner in node.blocks:
            _prune(inner, acting, live)
        live.update(map(id, node.inputs))
        kept.append(node)
    block.nodes = kept[::-1]
