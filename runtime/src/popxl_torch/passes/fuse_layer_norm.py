"""Layer norm is one step.

The op, which computes statistics for its gradient too, where nothing uses them; and written out,
    c = x - mean(x);  y = c / sqrt(mean(c * c) + eps)  [* weight [+ bias]]
with means over the last axis, a power instead of the square, a division or a product with the
inverse root.
"""

from __future__ import annotations

from popxl_torch.passes.fuse import Uses, number
from popxl_torch.passes.ssa import Block, Node, Val


def fuse_layer_norm(block: Block) -> None:
    """Rewrite one block in place."""
    uses = Uses(block)
    for node in block.nodes:
        if node.kind == "GroupNormalization":
            _from_op(node, uses)
        elif node.kind == "Div":
            _from_steps(node, uses)
        elif node.kind in ("Mul", "Add"):
            _take_affine(node, uses)


def _from_op(node: Node, uses: Uses) -> None:
    one_group = node.attrs["num_groups"] == 1 and len(node.inputs[0].spec.shape) == 2
    if one_group and not any(uses.is_used(val) for val in node.outputs[1:]):
        node.kind, node.outputs = "LayerNorm", node.outputs[:1]
        node.attrs = {"eps": node.attrs["eps"]}


def _from_steps(node: Node, uses: Uses) -> None:
    """``node`` divides by the root."""
    centred, root = node.inputs
    sqrt = uses.own(root, "Sqrt")
    total = sqrt and uses.own(sqrt.inputs[0], "Add")
    if not total:
        return
    for variance, eps in (total.inputs, total.inputs[::-1]):
        mean = uses.own(variance, "ReduceMean")
        epsilon = number(eps)
        if mean is None or epsilon is None or not _over_last_axis(mean):
            continue
        x = _centred(centred, uses)
        if x is not None and _is_square(mean.inputs[0], centred, uses):
            node.kind, node.inputs, node.attrs = "LayerNorm", [x], {"eps": epsilon}
            return


def _over_last_axis(mean: Node) -> bool:
    (source,), (result,) = mean.inputs, mean.outputs
    last = len(source.spec.shape) - 1
    return tuple(mean.attrs["axes"]) == (last,) and len(result.spec.shape) == last + 1


def _centred(val: Val, uses: Uses) -> Val | None:
    """x, if the value is x minus its mean."""
    sub = uses.maker(val, "Sub")
    mean = sub and uses.maker(sub.inputs[1], "ReduceMean")
    if not sub or not mean or not _over_last_axis(mean) or mean.inputs[0] is not sub.inputs[0]:
        return None
    return sub.inputs[0]


def _is_square(val: Val, of: Val, uses: Uses) -> bool:
    node = uses.own(val, "Mul", "Pow")
    if node is None or node.inputs[0] is not of:
        return False
    return number(node.inputs[1]) == 2 if node.kind == "Pow" else node.inputs[1] is of


def _take_affine(node: Node, uses: Uses) -> None:
    """A product with weights, then a sum with a bias, of the features' size."""
    wanted = 1 if node.kind == "Mul" else 2
    for norm_out, factor in (node.inputs, node.inputs[::-1]):
        norm = uses.own(norm_out, "LayerNorm")
        if (
            norm is not None
            and len(norm.inputs) == wanted
            and factor.spec.shape == norm_out.spec.shape[-1:]
            and node.outputs[0].spec == norm_out.spec
            and node.outputs[0].varying == norm_out.varying
        ):
            node.kind, node.inputs = "LayerNorm", [*norm.inputs, factor]
            node.attrs = norm.attrs
            return
