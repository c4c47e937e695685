"""The passes in order, and what each may assume.

functionalise     the verified Ir; makes the functional program
drop_dead_nodes   nothing
mark_uniform      needs the sources of variation of the run at hand
join_shards       needs marks; keeps them right
update_remote     needs marks; its results are views of remote memory, so it comes last
"""

from __future__ import annotations

import copy

from popxl_torch.ir.records import Program
from popxl_torch.ir.verify import verify
from popxl_torch.passes.drop_dead_nodes import drop_dead_nodes
from popxl_torch.passes.functionalise import functionalise
from popxl_torch.passes.join_shards import join_shards
from popxl_torch.passes.mark_uniform import Varying, mark_uniform
from popxl_torch.passes.ssa import Block, Functional, Node, Val
from popxl_torch.passes.update_remote import update_remote


def to_functional(program: Program) -> Functional:
    """Verify a program and make its functional form."""
    verify(program)
    return drop_dead_nodes(functionalise(program))


def specialise(
    functional: Functional, sources: Varying, join: bool = True
) -> tuple[Functional, Varying]:
    """A copy marked and rewritten for runs in which ``sources`` differ by replica.

    Also returns the sources grown by what such runs make varying.
    """
    result = _copy(functional)
    grown = mark_uniform(result, sources.copy())
    if join:
        join_shards(result)
    return update_remote(result), grown


def _copy(functional: Functional) -> Functional:
    """Fresh nodes and values; constants, states, streams and buffers are shared."""
    new: dict[int, Val] = {id(val): val for val in functional.constants}

    def val_of(val: Val) -> Val:
        if id(val) not in new:
            new[id(val)] = copy.copy(val)
        return new[id(val)]

    def block_of(block: Block) -> Block:
        return Block(
            [val_of(v) for v in block.params],
            [
                Node(
                    node.kind,
                    [val_of(v) for v in node.inputs],
                    [val_of(v) for v in node.outputs],
                    node.attrs,
                    tuple(block_of(inner) for inner in node.blocks),
                    node.where,
                    node.region,
                )
                for node in block.nodes
            ],
            [val_of(v) for v in block.results],
        )

    return Functional(
        functional.replicas,
        block_of(functional.main),
        block_of(functional.from_host),
        block_of(functional.to_host),
        functional.constants,
    )
