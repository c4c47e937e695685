"""Fewer steps that only say where elements lie.

What changes nothing is dropped: identities, whole slices, reshapes to the same shape. Chains of
reshapes, or of transposes, become one. A transpose that moves axes of one element only is a
reshape.
"""

from __future__ import annotations

from popxl_torch.passes.fuse import Uses
from popxl_torch.passes.ssa import Block, Node, Val

_SAME = ("Identity", "Detach", "IpuCopy", "IoTileCopy")


def fuse_views(block: Block) -> None:
    """Rewrite one block in place."""
    uses = Uses(block)
    same: dict[int, Val] = {}
    for node in block.nodes:
        if same:
            _rename(node, same)
        _simplify(node, uses)
        if _changes_nothing(node):
            same[id(node.outputs[0])] = node.inputs[0]
    block.results = [same.get(id(val), val) for val in block.results]


def _rename(node: Node, same: dict[int, Val]) -> None:
    node.inputs = [same.get(id(val), val) for val in node.inputs]
    for inner in node.blocks:
        for nested in inner.nodes:
            _rename(nested, same)
        inner.results = [same.get(id(val), val) for val in inner.results]


def _simplify(node: Node, uses: Uses) -> None:
    if node.kind == "Transpose":
        before = uses.maker(node.inputs[0], "Transpose")
        if before is not None:
            first, second = before.attrs["perm"], node.attrs["perm"]
            node.inputs = list(before.inputs)
            node.attrs = {"perm": tuple(first[axis] for axis in second)}
        if _moves_ones_only(node):
            node.kind, node.attrs = "Reshape", {"shape": node.outputs[0].spec.shape}
    if node.kind == "Reshape":
        before = uses.maker(node.inputs[0], "Reshape")
        if before is not None:
            node.inputs = list(before.inputs)


def _moves_ones_only(node: Node) -> bool:
    shape = node.inputs[0].spec.shape
    wide = [axis for axis in node.attrs["perm"] if shape[axis] != 1]
    return wide == sorted(wide)


def _changes_nothing(node: Node) -> bool:
    if len(node.inputs) != 1 or len(node.outputs) != 1:
        return False
    (source,), (result,) = node.inputs, node.outputs
    if source.spec != result.spec or source.varying != result.varying:
        return False
    if node.kind == "Slice":
        return all(step > 0 for step in node.attrs["steps"])
    if node.kind == "Transpose":
        return tuple(node.attrs["perm"]) == tuple(range(len(source.spec.shape)))
    return node.kind in (*_SAME, "Reshape")
