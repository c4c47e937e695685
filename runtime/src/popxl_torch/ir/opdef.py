"""What the engine knows of each kind of op, beside its kernel: one record per kind.

``popxl/ops/<op>.py`` declares the record next to the public function. To add an op: write that
file, add the kernel to ``kernels/<family>.py`` under the same kind, add its test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.records import Spec

Infer = Callable[[Sequence[Any], Mapping[str, Any]], Sequence[Spec]]
"""Input specs (None where unconnected) and attributes -> output specs; raises popart_exception."""


@dataclass(frozen=True, slots=True)
class OpDef:
    """Facts of one op kind.

    Attributes:
        kind: PopART's identifier, e.g. ``"MatMul"``.
        infer: shape and dtype rule.
        pure: kind that computes the same result out of place, for kinds that alias or write.
        writes: index of the input that the op updates in place; output 0 is its new value.
        view: True if the outputs alias all inputs without changing them (``reshape_``, ...).
        effect: True if the op must run even when nothing uses its outputs.
        moves_data: True if the op only moves elements, so that no dtype needs wider arithmetic.
        flops: floating-point operations for input specs, output specs and attributes.
    """

    kind: str
    infer: Infer
    pure: str | None = None
    writes: int | None = None
    view: bool = False
    effect: bool = False
    moves_data: bool = False
    flops: Callable[[Sequence[Any], Sequence[Spec], Mapping[str, Any]], int] | None = None


_TABLE: dict[str, OpDef] = {}


def define(opdef: OpDef) -> OpDef:
    """Add a record to the table; a kind may be declared once."""
    if opdef.kind in _TABLE:
        raise ValueError(f"op kind {opdef.kind} is declared twice")
    _TABLE[opdef.kind] = opdef
    return opdef


def opdef(kind: str) -> OpDef:
    """The record of ``kind``; KeyError if no module declared it."""
    return _TABLE[kind]


def kinds() -> tuple[str, ...]:
    """All declared kinds."""
    return tuple(_TABLE)


def same(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """Infer rule: one output like the first input."""
    return [specs[0]]


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's broadcasting rule; popart_exception if the shapes are not aligned."""
    rank = max((len(shape) for shape in shapes), default=0)
    result = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis}
        wide = sizes - {1}
        if len(wide) > 1 or (0 in sizes and len(shapes) > 1):
            text = " and ".join(str(list(shape)) for shape in shapes)
            raise popart_exception(f"np broadcasting failed, frames {text} are not aligned")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def join_meta_shapes(*specs: Spec) -> tuple[int, ...]:
    """The meta shape of an element-wise result; differing ones are an error."""
    found = {spec.meta_shape for spec in specs if spec.meta_shape}
    if len(found) > 1:
        raise popart_exception(f"Incompatible meta shapes: {sorted(found)}")
    return found.pop() if found else ()


def elementwise(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """Infer rule of element-wise ops: equal dtypes, broadcast shapes."""
    dtypes = [spec.dtype for spec in specs]
    if len(set(dtypes)) > 1:
        raise popart_exception(
            f"np broadcasting failed, incompatible types {' and '.join(dtypes)}"
            f" (shapes {' and '.join(str(spec.shape) for spec in specs)})"
        )
    shape = broadcast_shapes(*(spec.shape for spec in specs))
    return [Spec(shape, dtypes[0], join_meta_shapes(*specs))]


def comparison(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """Infer rule of comparisons and logical ops: as element-wise, bool result."""
    (result,) = elementwise(specs, attrs)
    return [Spec(result.shape, "bool", result.meta_shape)]
