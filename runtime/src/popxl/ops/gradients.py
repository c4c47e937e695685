"""The table of gradients: for each kind of op, how gradients of its outputs become those of its
inputs.

A rule stands beside the op's forward rule::

    @gradient("Mul")
    def _gradients(site: GradSite) -> Grads:
        return [lambda: site.grad() * site.input(1), lambda: site.grad() * site.input(0)]

It builds ordinary ops in the current (gradient) graph. Only the functions of inputs that need a
gradient are called, so a forward value is asked for only where it is used. What comes out may have
the broadcast shape and another float dtype: autodiff sums and casts it to those of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from popxl.ops.init import init_attrs
from popxl.ops.utils import _create_op
from popxl.tensor import Tensor
from popxl_torch.ir import records
from popxl_torch.ir.errors import popart_exception
from popxl_torch.ir.records import Spec

Grads = Sequence[Callable[[], Tensor] | None]
"""One function per input of the op, None where no gradient flows."""


class GradSite:
    """One op of a forward graph, as its gradient rule sees it.

    Args:
        op: the forward op.
        grads: gradients of its outputs in the current graph, None where there is none.
        forward: the tensor of the current graph that holds a value of the forward graph.
    """

    def __init__(
        self,
        op: records.Op,
        grads: Sequence[Tensor | None],
        forward: Callable[[records.Value], Tensor],
    ) -> None:
        self.op = op
        self.attrs = op.attrs
        self._grads = grads
        self._forward = forward

    def grad(self, index: int = 0) -> Tensor:
        """Gradient of an output; zeros if nothing that matters uses it."""
        found = self._grads[index]
        return zeros(self.out_spec(index)) if found is None else found

    def input(self, index: int = 0) -> Tensor:
        """The forward value of an input."""
        value = self.op.inputs[index]
        assert value is not None
        return self._forward(value)

    def output(self, index: int = 0) -> Tensor:
        """The forward value of an output."""
        return self._forward(self.op.outputs[index])

    def in_spec(self, index: int = 0) -> Spec:
        """Shape and dtype of an input."""
        value = self.op.inputs[index]
        assert value is not None
        return value.spec

    def out_spec(self, index: int = 0) -> Spec:
        """Shape and dtype of an output."""
        return self.op.outputs[index].spec

    def refusal(self, reason: str) -> popart_exception:
        """The error of an op that cannot be differentiated."""
        return popart_exception(
            f"Unable to provide required gradient output: {reason} ({self.op.where()})"
        )


Rule = Callable[[GradSite], Grads]

_TABLE: dict[str, Rule] = {}


def gradient(*kinds: str) -> Callable[[Rule], Rule]:
    """Register the rule of some op kinds; each may have one."""

    def register(rule: Rule) -> Rule:
        for kind in kinds:
            if kind in _TABLE:
                raise ValueError(f"the gradient of {kind} is declared twice")
            _TABLE[kind] = rule
        return rule

    return register


def gradient_rule(kind: str) -> Rule | None:
    """The rule of ``kind``, None if the op has no gradient."""
    return _TABLE.get(kind)


def differentiable_kinds() -> tuple[str, ...]:
    """All kinds that have a rule."""
    return tuple(_TABLE)


def zeros(spec: Spec, name: str = "zeros") -> Tensor:
    """A new tensor of zeros."""
    return _create_op("Init", [], init_attrs(spec, zero=True), [name])[0]


def gradient_op(kind: str, *inputs: Tensor, **attrs: Any) -> Tensor:
    """An op of a gradient kind with one output; see the infer rules below."""
    return _create_op(kind, inputs, attrs, [f"{kind}_out"])[0]


def like_last(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """Infer rule: one output like the last input."""
    return [specs[-1]]


def to_shape(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Spec]:
    """Infer rule: one output of attribute ``shape`` and the first input's dtype."""
    return [Spec(tuple(attrs["shape"]), specs[0].dtype)]


def sum_to(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``t`` summed over the axes along which ``shape`` was broadcast."""
    from popxl.ops.reshape import reshape
    from popxl.ops.sum import sum

    if t.shape == shape:
        return t
    leading = t.rank - len(shape)
    wide = [a for a in range(t.rank) if a < leading or shape[a - leading] != t.shape[a]]
    return reshape(sum(t, wide) if wide else t, shape)


def select(mask: Tensor, t: Tensor) -> Tensor:
    """``t`` where ``mask`` holds, else 0."""
    from popxl.ops.where import where
    from popxl.tensor import constant

    return where(mask, t, constant(0, t.dtype, "zero"))


def unreduced(site: GradSite, t: Tensor) -> Tensor:
    """``t``, of the shape of a reduction's result, repeated along the axes that it lacks."""
    shape, axes = site.in_spec().shape, site.attrs["axes"]
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return gradient_op("Unreduce", t, kept=kept, shape=shape)
