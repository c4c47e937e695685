"""Reductions, searches along an axis, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.kernels.registry import Site, kernel

Reduce = Callable[[torch.Tensor], Any]
"""Reduces the last axis of a tensor."""


def _l2(x: torch.Tensor) -> torch.Tensor:
    # Scaled by the largest element, so that squares neither overflow nor vanish.
    top = x.abs().amax(-1, keepdim=True)
    scale = torch.where((top == 0) | ~top.isfinite(), torch.ones_like(top), top)
    return (x / scale).square().sum(-1).sqrt() * scale.squeeze(-1)


# What keeps an integer's dtype, then what torch computes for floating-point types only.
_ANY_DTYPE: dict[str, Reduce] = {
    "ReduceL1": lambda x: x.abs().sum(-1, dtype=x.dtype),
    "ReduceMax": lambda x: x.amax(-1),
    "ReduceMin": lambda x: x.amin(-1),
    "ReduceProd": lambda x: x.prod(-1, dtype=x.dtype),
    "ReduceSum": lambda x: x.sum(-1, dtype=x.dtype),
    "ReduceSumSquare": lambda x: x.square().sum(-1, dtype=x.dtype),
}
_FLOAT: dict[str, Reduce] = {
    "ReduceL2": _l2,
    "ReduceLogSum": lambda x: x.sum(-1).log(),
    "ReduceLogSumExp": lambda x: x.logsumexp(-1),
    "ReduceMean": lambda x: x.mean(-1),
}


def _through_double(function: Reduce) -> Reduce:
    """Integers are reduced in float64 and truncated."""
    return lambda x: function(x) if x.is_floating_point() else function(x.double()).to(x.dtype)


def _median(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = x.median(-1)
    return values, indices.to(torch.int32)


def _over_axes(function: Reduce) -> Callable[[Site, int], Callable[..., Any]]:
    """A factory that brings the reduced axes together as the last one."""

    def factory(site: Site, lead: int) -> Callable[..., Any]:
        (spec,) = site.ins
        assert spec is not None
        rank = len(spec.shape) + lead
        axes = [axis + lead for axis in site.attrs["axes"]]
        kept = [axis for axis in range(rank) if axis not in axes]
        perm, shape = kept + axes, tuple(site.outs[0].shape)

        def run(x: torch.Tensor) -> Any:
            joined = x.permute(perm)
            joined = joined.reshape((*joined.shape[: len(kept)], -1))
            found = function(joined)
            wanted = (*x.shape[:lead], *shape)
            if isinstance(found, tuple):
                return tuple(part.reshape(wanted) for part in found)
            return found.reshape(wanted)

        return run

    return factory


for _kind, _function in _ANY_DTYPE.items():
    kernel(_kind)(_over_axes(_function))
for _kind, _function in _FLOAT.items():
    kernel(_kind)(_over_axes(_through_double(_function)))
kernel("ReduceMedian")(_over_axes(_median))


@kernel("Softmax")
def _softmax(site: Site, lead: int) -> Callable[..., Any]:
    axis = site.attrs["axis"] + lead
    return lambda x: torch.softmax(x, axis)


def _arg(search: Callable[..., torch.Tensor]) -> Callable[[Site, int], Callable[..., Any]]:
    def factory(site: Site, lead: int) -> Callable[..., Any]:
        axis, keepdims = site.attrs["axis"] + lead, site.attrs["keepdims"]
        return lambda x: search(x, axis, keepdims).to(torch.int32)

    return factory


kernel("ArgMax")(_arg(torch.argmax))
kernel("ArgMin")(_arg(torch.argmin))


@kernel("CumSum")
def _cumsum(site: Site, lead: int) -> Callable[..., Any]:
    axis = site.attrs["axis"] + lead
    return lambda x, dim: x.cumsum(axis, dtype=x.dtype)


@kernel("TopK")
def _topk(site: Site, lead: int) -> Callable[..., Any]:
    axis, k = site.attrs["axis"] + lead, site.attrs["k"]
    largest = site.attrs["largest"]

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # A stable sort, not torch.topk: of equal elements the first ones, whatever the batch.
        values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, k), indices.narrow(axis, 0, k).to(torch.int32)

    return run


@kernel("Histogram", batched=False, host=True)
def _histogram(site: Site, lead: int) -> Callable[..., Any]:
    levels, absolute = site.attrs["levels"], site.attrs["absolute_of_input"]

    def run(x: torch.Tensor) -> torch.Tensor:
        edges = torch.tensor(levels, dtype=x.dtype, device=x.device)
        values = (x.abs() if absolute else x).flatten().contiguous()
        bins = torch.bucketize(values, edges, right=True)
        return torch.bincount(bins, minlength=len(levels) + 1)

    return run
