"""Printing of tensors while a program runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from popxl_torch.kernels.registry import Site, kernel

_FLOAT_FORMATS: dict[str, str] = {"Auto": "g", "Fixed": "f", "Scientific": "e"}


def format_tensor(x: torch.Tensor, attrs: Mapping[str, Any]) -> str:
    """``x`` as text, in the way that the attributes of a ``PrintTensor`` op ask for."""
    letter = _FLOAT_FORMATS.get(attrs["float_format"])
    write: Callable[[Any], str] = str
    if x.is_floating_point() and letter is not None:
        template = f"{{:.{attrs['digits']}{letter}}}"
        write = template.format
    text = np.array2string(
        x.detach().cpu().numpy(),
        max_line_width=attrs["max_line_width"],
        separator=attrs["separator"],
        threshold=attrs["summarise_threshold"],
        edgeitems=attrs["edge_items"],
        formatter={"all": write},
    )
    return text.translate(str.maketrans("[]", attrs["open_bracket"] + attrs["close_bracket"]))


@kernel("PrintTensor", batched=False, raw=True, host=True)
def _print(site: Site, lead: int) -> Callable[..., Any]:
    def run(x: torch.Tensor) -> torch.Tensor:
        if site.attrs["print_self"]:
            sys.stderr.write(f"{site.attrs['title']}: {format_tensor(x, site.attrs)}\n")
        return x

    return run
