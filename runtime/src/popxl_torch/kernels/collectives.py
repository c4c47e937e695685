"""Communication between replicas, all of which live in one process: an axis of one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.kernels.registry import Site, kernel

_REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "add": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0) if x.is_floating_point() else x.sum(0) // x.shape[0],
    "min": lambda x: x.amin(0),
    "max": lambda x: x.amax(0),
    "and": lambda x: (x != 0).all(0),
    "or": lambda x: (x != 0).any(0),
    "square_add": lambda x: (x * x).sum(0),
}
"""(members, *shape) -> (*shape)."""


def _with_lead(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    """The input in float32 if it is half precision, with the replica axis."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if site.varying_ins[0]:
        return tensor
    return tensor.expand(site.replicas, *tensor.shape)


def _spread(
    parts: dict[int, torch.Tensor], site: Site, uniform: torch.Tensor | None
) -> torch.Tensor:
    """Results by replica as one tensor; just the common one if it is uniform."""
    if uniform is not None and not site.varying_outs[0]:
        return uniform
    return torch.stack([parts[replica] for replica in range(site.replicas)])


def reduce_members(
    tensor: torch.Tensor, groups: tuple[tuple[int, ...], ...], op: str
) -> dict[int, torch.Tensor]:
    """Reduction of each group's members, by replica. ``tensor`` has the replica axis."""
    results: dict[int, torch.Tensor] = {}
    for members in groups:
        whole = len(members) == tensor.shape[0]
        reduced = _REDUCTIONS[op](tensor if whole else torch.stack([tensor[m] for m in members]))
        results.update(dict.fromkeys(members, reduced))
    return results


@kernel("ReplicatedAllReduce", replicated=True)
def replicated_all_reduce(site: Site, lead: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Reduce over each group."""
    groups, op = site.attrs["groups"], site.attrs["op"]

    def run(x: torch.Tensor) -> torch.Tensor:
        parts = reduce_members(_with_lead(x, site), groups, op)
        return _spread(parts, site, parts[0])

    return run


@kernel("ReplicatedAllGather", replicated=True)
def replicated_all_gather(site: Site, lead: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Members' tensors side by side, or put together to the unsharded tensor."""
    groups, axis, mode = site.attrs["groups"], site.attrs["axis"], site.attrs["mode"]
    shape = site.outs[0].shape

    def gather(tensors: list[torch.Tensor]) -> torch.Tensor:
        if mode == "new_axis":
            return torch.stack(tensors)
        if mode == "concat":
            return torch.cat(tensors, dim=axis)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        return flat[: site.outs[0].nelms].reshape(shape)

    def run(x: torch.Tensor) -> torch.Tensor:
        if not site.varying_ins[0]:
            x = x.expand(site.replicas, *x.shape)
        parts: dict[int, torch.Tensor] = {}
        for members in groups:
            parts.update(dict.fromkeys(members, gather([x[m] for m in members])))
        return _spread(parts, site, parts[0])

    return run


@kernel("ReplicatedReduceScatter", replicated=True)
def replicated_reduce_scatter(site: Site, lead: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Piece k of the flattened, zero-padded reduction for the k-th member."""
    groups, op = site.attrs["groups"], site.attrs["op"]
    (length,) = site.outs[0].shape

    def run(x: torch.Tensor) -> torch.Tensor:
        lead_x = _with_lead(x, site)
        if op == "local":
            parts = {r: lead_x[r] for r in range(site.replicas)}
        else:
            parts = reduce_members(lead_x, groups, op)
        pieces: dict[int, torch.Tensor] = {}
        for members in groups:
            for k, member in enumerate(members):
                flat = parts[member].reshape(-1)
                flat = torch.nn.functional.pad(flat, (0, length * len(members) - flat.numel()))
                pieces[member] = flat[k * length : (k + 1) * length]
        return _spread(pieces, site, pieces[0])

    return run


@kernel("ReplicatedSlice", replicated=True)
def replicated_slice(site: Site, lead: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Part k along an axis for the k-th member."""
    groups, axis = site.attrs["groups"], site.attrs["axis"]
    shape = site.outs[0].shape

    def run(x: torch.Tensor) -> torch.Tensor:
        if not site.varying_ins[0]:
            x = x.expand(site.replicas, *x.shape)
        pieces = {
            member: x[member].chunk(len(members), dim=axis)[k].reshape(shape)
            for members in groups
            for k, member in enumerate(members)
        }
        return _spread(pieces, site, pieces[0])

    return run


@kernel("AllReduce")
def all_reduce(site: Site, lead: int) -> Callable[..., Any]:
    """Over tensors of one replica, one output for each."""
    if site.attrs["forward"] == "identity":
        return lambda *tensors: tensors if len(tensors) > 1 else tensors[0]
    reduce = _REDUCTIONS[site.attrs["op"]]

    def run(*tensors: torch.Tensor) -> Any:
        result = reduce(torch.stack(tensors))
        return (result,) * len(tensors) if len(tensors) > 1 else result

    return run
