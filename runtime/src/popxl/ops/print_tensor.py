"""Printing of values while a program runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from popxl.context import op_debug_context
from popxl.ops._families import unary
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.tensor import Tensor
from popxl_torch.ir.opdef import OpDef, define, same

FloatFormat = Literal["auto", "fixed", "scientific", "none"]
FLOAT_FORMAT_MAP = {"auto": "Auto", "fixed": "Fixed", "scientific": "Scientific", "none": "None"}


@dataclass(frozen=True)
class PrintTensorFmt:
    """How values are written; see :func:`print_tensor`."""

    summarise_threshold: int = 1000
    edge_items: int = 3
    max_line_width: int = 75
    digits: int = 8
    float_format: str = "Auto"
    separator: str = " "
    open_bracket: str = "["
    close_bracket: str = "]"


define(OpDef("PrintTensor", same, effect=True, moves_data=True))


@op_debug_context
def print_tensor(
    t: Tensor,
    title: str = None,  # type: ignore[assignment]
    print_self: bool = True,
    print_gradient: bool = False,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 75,
    digits: int = 8,
    float_format: FloatFormat = "auto",
    separator: str = " ",
    open_bracket: str = "[",
    close_bracket: str = "]",
) -> Tensor:
    """Prints ``<title>: <values>`` to stderr whenever it runs; use the returned copy of ``t``.

    Args:
        t: any shape.
        title: default ``print_<name of t>``.
        print_self: print the values.
        print_gradient: print the gradient, titled ``<title>_gradient``, where autodiff makes one.
        summarise_threshold: tensors with more elements are abbreviated.
        edge_items: how many elements an abbreviated axis shows at each end.
        max_line_width: characters per line.
        digits: digits after the point.
        float_format: how floats are written.
        separator: one character between elements.
        open_bracket: one character.
        close_bracket: one character.

    Raises:
        TypeError: ``t`` is not a Tensor.
        ValueError: ``t`` is not in the current graph, or one of the last three arguments is not
            one character.
        KeyError: unknown ``float_format``.
    """
    marks = {"separator": separator, "open_bracket": open_bracket, "close_bracket": close_bracket}
    for name, mark in marks.items():
        if len(mark) != 1:
            raise ValueError(f"`{name}` of print_tensor must be one character, not {mark!r}.")
    written = PrintTensorFmt(
        summarise_threshold,
        edge_items,
        max_line_width,
        digits,
        FLOAT_FORMAT_MAP[float_format],
        **marks,
    )
    attrs = {
        "title": f"print_{t.name}" if title is None else title,
        "print_self": print_self,
        "print_gradient": print_gradient,
        **asdict(written),
    }
    return unary("PrintTensor", t, "print_out", attrs)


@gradient("PrintTensor")
def _gradients(site: GradSite) -> Grads:
    def grad() -> Tensor:
        if not site.attrs["print_gradient"]:
            return site.grad()
        attrs = {**site.attrs, "title": f"{site.attrs['title']}_gradient", "print_self": True}
        return unary("PrintTensor", site.grad(), "print_out", attrs)

    return [grad]
