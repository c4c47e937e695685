"""GELU in its tanh form, written out, is one step:

    0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3)))

with the factors in any order and the cube as a power or as products.
"""

from __future__ import annotations

import math

from popxl_torch.passes.fuse import Uses, number
from popxl_torch.passes.ssa import Block, Node, Val

RTOL = 2e-3
"""Of the numbers, which the program may hold in half precision."""


def fuse_gelu(block: Block) -> None:
    """Rewrite one block in place."""
    uses = Uses(block)
    for node in block.nodes:
        if node.kind == "Mul":
            x = _gelu(node, uses)
            if x is not None:
                node.kind, node.inputs, node.attrs = "Gelu", [x], {}


def _factors(val: Val, uses: Uses, keep: bool = False) -> tuple[float, list[Val]]:
    """(product of the numbers, other factors) of nested products."""
    constant = number(val)
    if constant is not None:
        return constant, []
    node = uses.maker(val, "Mul") if keep else uses.own(val, "Mul")
    if node is None:
        return 1.0, [val]
    left, right = (_factors(v, uses) for v in node.inputs)
    return left[0] * right[0], left[1] + right[1]


def _gelu(node: Node, uses: Uses) -> Val | None:
    """x, if the node is the last product of its GELU."""
    half, factors = _factors(node.outputs[0], uses, keep=True)
    if not math.isclose(half, 0.5, rel_tol=RTOL) or len(factors) != 2:
        return None
    for x, rest in (factors, factors[::-1]):
        plus_one = uses.own(rest, "Add")
        angle = plus_one and _plus(plus_one, 1.0, uses, "Tanh")
        if angle and x.spec == node.outputs[0].spec and _is_angle(angle.inputs[0], x, uses):
            return x
    return None


def _plus(add: Node, constant: float, uses: Uses, kind: str) -> Node | None:
    """The other term of a sum with a number."""
    for term, other in (add.inputs, add.inputs[::-1]):
        if number(other) == constant:
            return uses.own(term, kind)
    return None


def _is_angle(val: Val, x: Val, uses: Uses) -> bool:
    scale, factors = _factors(val, uses)
    if not math.isclose(scale, math.sqrt(2 / math.pi), rel_tol=RTOL) or len(factors) != 1:
        return False
    add = uses.own(factors[0], "Add")
    if add is None:
        return False
    return any(a is x and _is_cube(b, x, uses) for a, b in (add.inputs, add.inputs[::-1]))


def _is_cube(val: Val, x: Val, uses: Uses) -> bool:
    scale, factors = _factors(val, uses)
    if not math.isclose(scale, 0.044715, rel_tol=RTOL):
        return False
    if len(factors) == 1:
        power = uses.own(factors[0], "Pow")
        return power is not None and power.inputs[0] is x and number(power.inputs[1]) == 3
    return len(factors) == 3 and all(factor is x for factor in factors)
