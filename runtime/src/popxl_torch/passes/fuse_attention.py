"""Attention is one step: no matrix of queries by keys need exist.

    softmax(scale * q @ k^T, masked) @ v

The scale is a number that multiplies or divides scores, queries or keys. A mask replaces hidden
scores by a number so low that they weigh nothing (``where``), or is added to the scores. The axes
before the last two are the same for q, k and v: batch and heads, one of them, or none.

    Attention(q, k, v[, mask][, k_scales, v_scales])
        q (..., m, d), k (..., t, d), v (..., t, e), mask broadcast to (..., m, t),
        scales (..., t, 1)
        scale        the number
        mask         None, "visible" or "hidden", which is what True means, or "added"
        fill         what replaces hidden scores
        rows_first   whether the result is (b, m, n, e) and not (b, n, m, e)

Where a query sees no key all keys weigh the same, as they do in the separate ops.

Keys and values that are int8 codes times the scale of each row are read as codes: no wider copy of
them need exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from popxl_torch.ir.records import Spec
from popxl_torch.passes.fuse import Uses, number
from popxl_torch.passes.ssa import Block, Node, Val

HIDDEN_BELOW = -1e4
"""A score this low weighs nothing beside any that a model computes."""

_LAYOUTS = ("Reshape", "Transpose")
_BY_ROWS = (0, 2, 1, 3)


@dataclass(slots=True)
class _Scores:
    """q @ k^T, and what is done to it before the softmax."""

    product: Node
    scale: float = 1.0
    mask: Val | None = None
    meaning: str | None = None
    fill: float = 0.0


def fuse_attention(block: Block) -> None:
    """Rewrite one block in place."""
    uses = Uses(block)
    for node in list(block.nodes):
        if node.kind == "MatMul" and len(node.inputs) == 2:
            _fuse(block, node, uses)


def _fuse(block: Block, node: Node, uses: Uses) -> None:
    """``node`` may be the product of probabilities and values."""
    probabilities, v = node.inputs
    softmax = uses.own(probabilities, "Softmax")
    rank = len(probabilities.spec.shape)
    if softmax is None or softmax.attrs["axis"] != rank - 1:
        return
    scores = _masked(softmax.inputs[0], uses)
    if scores is None or len(scores.product.inputs) != 2:
        return
    q, columns = scores.product.inputs
    shapes = [val.spec.shape for val in (q, columns, v)]
    if any(len(shape) != rank or shape[:-2] != shapes[0][:-2] for shape in shapes):
        return
    scale = scores.scale * _unscale(scores.product, 0, uses) * _unscale(scores.product, 1, uses)
    q, columns = scores.product.inputs
    k = _transposed(block, columns, scores.product)
    node.inputs = [q, k, v, *([scores.mask] if scores.mask else [])]
    node.kind, node.attrs = (
        "Attention",
        {
            "scale": scale,
            "mask": scores.meaning,
            "fill": scores.fill,
            "rows_first": False,
        },
    )
    _take_transpose(node, uses)


def _masked(val: Val, uses: Uses) -> _Scores | None:
    """The scores that a value is, masked or not."""
    where = uses.own(val, "Where")
    if where is not None:
        condition, yes, no = where.inputs
        for source, low, meaning in ((yes, no, "visible"), (no, yes, "hidden")):
            fill = number(low)
            if fill is not None and fill <= HIDDEN_BELOW and source.spec == val.spec:
                scores = _scaled(source, uses)
                if scores is not None:
                    scores.mask, scores.meaning, scores.fill = condition, meaning, fill
                return scores
        return None
    add = uses.own(val, "Add")
    if add is None:
        return _scaled(val, uses)
    for source, mask in (add.inputs, add.inputs[::-1]):
        scores = _scaled(source, uses) if source.spec == val.spec else None
        if scores is not None:
            scores.mask, scores.meaning = mask, "added"
            return scores
    return None


def _scaled(val: Val, uses: Uses) -> _Scores | None:
    """The scores that a value is, not masked."""
    scale, source = _factor(val, uses)
    product = uses.own(source, "MatMul")
    return None if product is None else _Scores(product, scale)


def _factor(val: Val, uses: Uses) -> tuple[float, Val]:
    """A number and the value that it multiplies; 1 and the value itself if there is none."""
    node = uses.own(val, "Mul", "Div")
    if node is None:
        return 1.0, val
    left, right = node.inputs
    factor = number(right)
    if factor is not None and left.spec == val.spec:
        return (factor if node.kind == "Mul" else 1 / factor), left
    factor = number(left)
    if factor is not None and right.spec == val.spec and node.kind == "Mul":
        return factor, right
    return 1.0, val


def _unscale(consumer: Node, index: int, uses: Uses) -> float:
    """Take a number that multiplies an input, maybe before it was laid out anew, out of it."""
    while (layout := uses.own(consumer.inputs[index], *_LAYOUTS)) is not None:
        consumer, index = layout, 0
    scale, consumer.inputs[index] = _factor(consumer.inputs[index], uses)
    return scale


def _transposed(block: Block, val: Val, before: Node) -> Val:
    """A new value with the last two axes exchanged. (If they were already, fuse_views sees it.)"""
    *outer, rows, columns = val.spec.shape
    rank = len(outer) + 2
    spec = Spec((*outer, columns, rows), val.spec.dtype)
    result = Val(spec, f"{val.name}_t", val.varying)
    perm = (*range(rank - 2), rank - 1, rank - 2)
    node = Node("Transpose", [val], [result], {"perm": perm}, (), before.where, before.region)
    block.nodes.insert(block.nodes.index(before), node)
    return result


def _take_transpose(node: Node, uses: Uses) -> None:
    """Let the result be laid out by rows, if that is all that becomes of it."""
    after = uses.only_user(node.outputs[0], "Transpose")
    if after is not None and tuple(after.attrs["perm"]) == _BY_ROWS:
        after.kind, after.inputs, after.attrs = "Attention", node.inputs, node.attrs
        after.attrs["rows_first"] = True
        after.where = node.where


def take_codes(block: Block) -> None:
    """Let attention read codes and scales, where keys and values are their products. In place."""
    uses = Uses(block)
    for node in block.nodes:
        if node.kind == "Attention":
            rows = [_codes(val, uses) for val in node.inputs[1:3]]
            if None not in rows:
                codes, scales = zip(*(pair for pair in rows if pair), strict=True)
                node.inputs = [node.inputs[0], *codes, *node.inputs[3:], *scales]


def _codes(val: Val, uses: Uses) -> tuple[Val, Val] | None:
    """The int8 codes and the float32 scales of its rows that a value is the product of."""
    product = uses.own(val, "Mul")
    for wide, scales in () if product is None else (product.inputs, product.inputs[::-1]):
        widened = uses.maker(wide, "Cast")
        if widened is None or wide.spec != val.spec or widened.inputs[0].spec.dtype != "int8":
            continue
        rounded = uses.maker(scales, "Cast") if scales.spec.dtype == "float16" else None
        scales = scales if rounded is None else rounded.inputs[0]
        if scales.spec == Spec((*val.spec.shape[:-1], 1), "float32"):
            return widened.inputs[0], scales
    return None
