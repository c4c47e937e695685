"""Kernels of kinds that only passes make, for writes through aliases."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popxl_torch.kernels.registry import Site, kernel


@kernel("SliceUpdate")
def slice_update(site: Site, lead: int) -> Callable[..., torch.Tensor]:
    """A copy of the first input with a slice (attributes as of Slice) replaced by the second."""
    cut: list[slice] = [slice(None)] * lead
    flips = []
    bounds = zip(site.attrs["starts"], site.attrs["stops"], site.attrs["steps"], strict=True)
    for axis, (start, stop, step) in enumerate(bounds):
        if step < 0:  # elements start, start - 1, ..., stop + 1
            cut.append(slice(stop + 1, start + 1))
            flips.append(axis + lead)
        else:
            cut.append(slice(start, stop))
    where = tuple(cut)

    def run(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        result = whole.clone(memory_format=torch.contiguous_format)
        result[where] = part.flip(flips) if flips else part
        return result

    return run
