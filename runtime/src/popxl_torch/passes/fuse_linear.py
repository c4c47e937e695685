"""A product with a matrix, sums with it, and an activation behind them are one step.

    Linear(x, w, *addends) = activation(x @ w + addends[0] + ...)

An addend has the product's shape or is a row of it: a bias, a residual, another product. The
attribute ``product`` is the kind of the product, which may be one of joined shards; ``activation``
is a kind or None. Sums without a product become one step too, their order kept.
"""

from __future__ import annotations

from popxl_torch.passes.fuse import Uses
from popxl_torch.passes.ssa import Block, Node, Val

_PRODUCTS = ("MatMul", "MatMulColumns", "MatMulReduced")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_ACTIVATIONS = ("Gelu", "GeluErf", "Relu")


def fuse_linear(block: Block) -> None:
    """Rewrite one block in place."""
    uses = Uses(block)
    for node in block.nodes:
        if node.kind == "Add":
            _add_to_product(node, uses)
        elif node.kind in _ACTIVATIONS:
            _activate(node, uses)


def fuse_sums(block: Block) -> None:
    """Rewrite one block in place: nested sums of equal shapes are one."""
    uses = Uses(block)
    for node in block.nodes:
        if node.kind != "Add":
            continue
        for first, other in (node.inputs, node.inputs[::-1]):
            inner = uses.own(first, "Add", "Sum")
            if inner is not None and _adds_to(first, other, node.outputs[0]):
                node.kind, node.inputs = "Sum", [*inner.inputs, other]
                break


def _is_linear(node: Node) -> bool:
    """Whether the node is a product with one matrix that nothing was applied to."""
    if node.kind == "Linear":
        return node.attrs["activation"] is None
    x, w = node.inputs[0].spec, node.inputs[1].spec
    return x.dtype == w.dtype in _FLOATS and len(x.shape) > 1 and len(w.shape) == 2


def _adds_to(base: Val, other: Val, result: Val) -> bool:
    """Whether the sum of both has the shape of the first, and varies only if that does."""
    if result.spec != base.spec or result.varying != base.varying:
        return False
    return other.spec.shape in (base.spec.shape, base.spec.shape[-1:])


def _add_to_product(node: Node, uses: Uses) -> None:
    for product_out, other in (node.inputs, node.inputs[::-1]):
        product = uses.own(product_out, "Linear", *_PRODUCTS)
        if product is None or not _is_linear(product):
            continue
        if _adds_to(product_out, other, node.outputs[0]):
            _become(node, product, [*product.inputs, other], None)
            return


def _activate(node: Node, uses: Uses) -> None:
    product = uses.own(node.inputs[0], "Linear", *_PRODUCTS)
    if product is not None and _is_linear(product):
        _become(node, product, product.inputs, node.kind)


def _become(node: Node, product: Node, inputs: list[Val], activation: str | None) -> None:
    kind = product.attrs["product"] if product.kind == "Linear" else product.kind
    node.kind, node.inputs = "Linear", list(inputs)
    node.attrs = {"product": kind, "activation": activation}
