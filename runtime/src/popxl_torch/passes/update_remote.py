"""Load an entry, replace a window of it, store it back: one write to the entry itself.

    c = RemoteLoad(n); c' = DynamicUpdate(c, index, window); RemoteStore(c', n)

becomes ``c' = RemoteUpdate(n, index, window)``, whose result is the entry's memory. This is how
programs keep keys and values: nothing but the new window is copied. The result is a view, so the
rewrite needs that nothing else in the block touches the buffer, that ``c`` has no other use, and
that neither ``c'`` nor a view of it outlives the block.

A load of an entry that nothing else in the run stores to is marked ``view``: it need not be copied.
Loads and updates of which only slices are used are marked with what these cover, ``reads``: a start
and a stop on each axis, for devices that have to bring entries from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from popxl_torch.ir.records import Buffer
from popxl_torch.passes.ssa import Block, Functional, Node, Val, used_outside, walk

_ACCESSES = frozenset({"RemoteLoad", "RemoteStore", "RemoteUpdate"})
_STORES = frozenset({"RemoteStore", "RemoteUpdate"})
_GIVES = frozenset({"RemoteLoad", "RemoteUpdate"})
_FRESH = frozenset({
    "Abs", "Add", "And", "ArgMax", "ArgMin", "Attention", "Conv", "Cos", "Div", "Equal", "Exp",
    "Gather", "Gelu", "GeluErf", "Greater", "GroupNormalization", "LayerNorm", "Linear", "MatMul",
    "MatMulColumns", "MatMulReduced", "Mul", "Neg", "Not", "Or", "Pow", "ReduceL2", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare", "Relu", "ScaledAdd", "Sin",
    "Softmax", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "Where",
})  # fmt: skip
"""Kinds whose kernels always return new memory. Others may return an input, or a view of it: a cast
to the same dtype, the maximum of one tensor, a reshape."""


def update_remote(functional: Functional) -> Functional:
    """Rewrite every block in place and return the program."""
    for block in functional.blocks():
        _rewrite(block)
        stores: dict[Node, set[Buffer]] = {}
        _find_stores(block, stores)
        _mark_views(block, set(), stores)
        _mark_reads(block)
    return functional


def _find_stores(block: Block, stores: dict[Node, set[Buffer]]) -> set[Buffer]:
    """Fill in the buffers that each node, or one nested in it, stores to; returns all of them."""
    inside: set[Buffer] = set()
    for node in block.nodes:
        found = {node.attrs["buffer"]} if node.kind in _STORES else set()
        found.update(*(_find_stores(inner, stores) for inner in node.blocks))
        if found:
            stores[node] = found
            inside |= found
    return inside


def _mark_views(block: Block, stored: set[Buffer], stores: dict[Node, set[Buffer]]) -> None:
    """``stored`` are the buffers that the rest of the run may store to."""
    own = [node for node in block.nodes if node in stores]
    for node in block.nodes:
        if node.kind != "RemoteLoad" and not node.blocks:
            continue
        others = stored.union(*(stores[other] for other in own if other is not node))
        if node.kind == "RemoteLoad" and node.attrs["buffer"] not in others:
            node.attrs = {**node.attrs, "view": True}
        # Of a conditional's branches one runs; a loop's body does again and again.
        if node.kind == "Loop":
            others |= stores.get(node, set())
        for inner in node.blocks:
            _mark_views(inner, others, stores)


def _mark_reads(block: Block) -> None:
    users: dict[Val, list[Node]] = {}
    leaving = set(block.results)
    for node in walk(block):
        for val in node.inputs:
            users.setdefault(val, []).append(node)
        leaving.update(val for inner in node.blocks for val in inner.results)
    for node in walk(block):
        if node.kind not in _GIVES or node.outputs[0] in leaving:
            continue
        found = users.get(node.outputs[0], [])
        if not found:
            node.attrs = {**node.attrs, "reads": ((0, 0),) * len(node.outputs[0].spec.shape)}
        elif all(user.kind == "Slice" for user in found) and (covered := _covered(found)):
            node.attrs = {**node.attrs, "reads": covered}


def _covered(slices: Sequence[Node]) -> tuple[tuple[int, int], ...]:
    """The least window that holds what slices take; no axes if they take nothing."""
    limits = [[node.attrs[key] for key in ("starts", "stops", "steps")] for node in slices]
    taken = [[range(*cut) for cut in zip(*each, strict=True)] for each in limits]
    taken = [cuts for cuts in taken if all(cuts)]
    return tuple(
        (min(min(cut[0], cut[-1]) for cut in cuts), max(max(cut[0], cut[-1]) for cut in cuts) + 1)
        for cuts in zip(*taken, strict=True)
    )


def _rewrite(block: Block) -> None:
    for node in block.nodes:
        for inner in node.blocks:
            _rewrite(inner)
    loads = [node for node in block.nodes if node.kind == "RemoteLoad"]
    accesses = _count_accesses(block) if loads else {}
    loads = [node for node in loads if accesses[node.attrs["buffer"]] == 2]
    if not loads:
        return
    uses: dict[int, list[Node]] = {}
    for node in block.nodes:
        for val in used_outside(node):
            uses.setdefault(id(val), []).append(node)
    leaving = {id(val) for val in block.results}
    for load in loads:
        _match(block, load, uses, leaving)


def _count_accesses(block: Block) -> dict[Buffer, int]:
    counts: dict[Buffer, int] = {}
    for node in walk(block):
        if node.kind in _ACCESSES:
            buffer = node.attrs["buffer"]
            counts[buffer] = counts.get(buffer, 0) + 1
    return counts


def _views(block: Block, root: int) -> set[int]:
    """The value and everything that may be a view of it."""
    views = {root}
    for node in block.nodes:
        if node.kind not in _FRESH and any(id(val) in views for val in used_outside(node)):
            views |= {id(val) for val in node.outputs}
    return views


def _match(block: Block, load: Node, uses: dict[int, list[Node]], leaving: set[int]) -> None:
    """Replace the three nodes that start with ``load``, if they have the form."""
    (offset,), (loaded,) = load.inputs, load.outputs
    users = uses.get(id(loaded), [])
    if len(users) != 1 or users[0].kind != "DynamicUpdate" or id(loaded) in leaving:
        return
    update = users[0]
    source, index, window = update.inputs
    (result,) = update.outputs
    stores = [node for node in uses.get(id(result), []) if node.kind == "RemoteStore"]
    if source is not loaded or len(stores) != 1 or _views(block, id(result)) & leaving:
        return
    (store,) = stores
    same_entry = store.attrs["buffer"] is load.attrs["buffer"] and store.inputs[1] is offset
    if not same_entry or offset.varying or index.varying or store not in block.nodes:
        return
    merged = Node(
        "RemoteUpdate",
        [offset, index, window],
        [result],
        {**update.attrs, "buffer": load.attrs["buffer"]},
        where=update.where,
        region=update.region,
    )
    block.nodes[block.nodes.index(update)] = merged
    block.nodes.remove(load)
    block.nodes.remove(store)
