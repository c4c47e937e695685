"""Drop nodes whose outputs nothing uses and that act on nothing."""

from __future__ import annotations

from popxl_torch.passes.ssa import Block, Functional, has_effect, used_outside


def drop_dead_nodes(functional: Functional) -> Functional:
    """Prune every block in place and return the program."""
    for block in functional.blocks():
        _prune(block, set())
    return functional


def _prune(block: Block, live: set[int]) -> None:
    live |= {id(val) for val in block.results}
    kept = []
    for node in reversed(block.nodes):
        idle = not has_effect(node) and not any(id(val) in live for val in node.outputs)
        if idle and node.kind != "Taken":  # the trace counts it
            continue
        for inner in node.blocks:
            _prune(inner, set())
        live |= {id(val) for val in used_outside(node)}
        kept.append(node)
    block.nodes = kept[::-1]
