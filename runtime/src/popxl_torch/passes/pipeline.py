"""The passes in order, and what each may assume.

functionalise     the verified Ir; makes the functional program
drop_dead_nodes   nothing
mark_uniform      needs the sources of variation of the run at hand
join_shards       needs marks; keeps them right
fuse_*            need marks; keep them right; joined products are fused too (see FUSIONS)
join_weights      needs all products to be joined and fused
update_remote     needs marks; its results are views of remote memory, so it comes last
"""

from __future__ import annotations

from collections.abc import Collection

from popxl_torch.ir.records import Program
from popxl_torch.ir.verify import verify
from popxl_torch.passes.drop_dead_nodes import drop_dead_nodes
from popxl_torch.passes.functionalise import functionalise
from popxl_torch.passes.fuse import Rewrite, fuse
from popxl_torch.passes.fuse_attention import fuse_attention, take_codes
from popxl_torch.passes.fuse_gelu import fuse_gelu
from popxl_torch.passes.fuse_layer_norm import fuse_layer_norm
from popxl_torch.passes.fuse_linear import fuse_linear, fuse_sums
from popxl_torch.passes.fuse_rotary import fuse_rotary
from popxl_torch.passes.fuse_views import fuse_views
from popxl_torch.passes.join_shards import join_shards
from popxl_torch.passes.join_weights import join_weights
from popxl_torch.passes.mark_uniform import Varying, mark_uniform
from popxl_torch.passes.ssa import BLOCKS, Block, Functional, Node, Val
from popxl_torch.passes.update_remote import update_remote
from popxl_torch.settings import FUSIONS as FUSION_NAMES

FUSIONS: tuple[tuple[str, Rewrite], ...] = (
    ("views", fuse_views),
    ("gelu", fuse_gelu),
    ("layer_norm", fuse_layer_norm),
    ("attention", fuse_attention),
    ("rotary", fuse_rotary),
    ("linear", fuse_linear),
    ("sums", fuse_sums),
    ("views", fuse_views),  # again: attention takes its keys transposed back
    ("attention", take_codes),
)
"""In order: a pass sees what those before it made. The names are those of the setting ``fuse``."""


def to_functional(program: Program) -> Functional:
    """Verify a program and make its functional form."""
    verify(program)
    return drop_dead_nodes(functionalise(program))


def specialise(
    functional: Functional,
    sources: Varying,
    join: bool = True,
    fusions: Collection[str] = FUSION_NAMES,
) -> tuple[Functional, Varying]:
    """A copy marked and rewritten for runs in which ``sources`` differ by replica.

    Also returns the sources grown by what such runs make varying.
    """
    result = _copy(functional)
    grown = mark_uniform(result, sources.copy())
    if join:
        join_shards(result)
    fuse(result, [rewrite for name, rewrite in FUSIONS if name in fusions])
    return update_remote(join_weights(result)), grown


def _copy(functional: Functional) -> Functional:
    """Fresh nodes and values; constants, states, streams and buffers are shared."""
    new = {val: val for val in functional.constants}
    blocks = {name: _copied(getattr(functional, name), new) for name in BLOCKS}
    return Functional(functional.replicas, **blocks, constants=functional.constants)


def _copied(block: Block, new: dict[Val, Val]) -> Block:
    """A copy of a block; ``new`` are the copies of values."""
    params = _copied_vals(block.params, new)
    nodes = [
        Node(
            node.kind,
            _copied_vals(node.inputs, new),
            _copied_vals(node.outputs, new),
            node.attrs,
            tuple([_copied(inner, new) for inner in node.blocks]),
            node.where,
            node.region,
        )
        for node in block.nodes
    ]
    return Block(params, nodes, _copied_vals(block.results, new))


def _copied_vals(vals: list[Val], new: dict[Val, Val]) -> list[Val]:
    for val in vals:
        if val not in new:
            new[val] = Val(val.spec, val.name, val.varying, val.const)
    return [new[val] for val in vals]
