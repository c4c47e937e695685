"""Reading and writing elements by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from popxl_torch.kernels.registry import Site, kernel

_Run = Callable[..., Any]


def uniform(t: torch.Tensor) -> bool:
    """Whether the leading replica axis was made by expanding one value."""
    return t.shape[0] == 1 or t.stride(0) == 0


def per_replica(run: _Run) -> _Run:
    """``run`` for each element of the leading axes, or once if all inputs are uniform."""

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        if all(uniform(t) for t in tensors):
            result = run(*(t[0] for t in tensors))
            return result.expand(tensors[0].shape[0], *result.shape)
        return torch.stack([run(*parts) for parts in zip(*tensors, strict=True)])

    return call


_FEW = 64
"""Indices that are looked at one by one before they are used."""


def _take(t: torch.Tensor, indices: torch.Tensor, axis: int, zero_oor: bool) -> torch.Tensor:
    """Elements along ``axis``; out of range gives zeros, or the nearest element."""
    flat = indices.reshape(-1)
    size = t.shape[axis]
    shape = (*t.shape[:axis], *indices.shape, *t.shape[axis + 1 :])
    few = flat.dtype == torch.int32 and not flat.is_cuda and len(flat) <= _FEW
    if few and all(0 <= index < size for index in flat.tolist()):
        return t.index_select(axis, flat).view(shape)
    flat = flat.long()
    inside = flat.clamp(0, size - 1)
    result = t.index_select(axis, inside)
    if zero_oor:
        over_rows = [-1 if i == axis else 1 for i in range(t.dim())]
        result.masked_fill_((flat != inside).view(over_rows), 0)
    return result.view(shape)


def _take_shards(t: torch.Tensor, indices: torch.Tensor, zero_oor: bool) -> torch.Tensor:
    """Rows of each replica's part (r, rows, ...) of one table, as one lookup in it."""
    replicas, rows = t.shape[:2]
    inside = indices.long().clamp(0, rows - 1)
    starts = torch.arange(0, replicas * rows, rows, device=t.device)
    places = inside + starts.view(-1, *(1,) * (inside.dim() - 1))
    table = t.as_strided((replicas * rows, *t.shape[2:]), t.stride()[1:])
    result = table.index_select(0, places.view(-1)).view(*indices.shape, *t.shape[2:])
    if zero_oor:
        result.masked_fill_((inside != indices).view(*indices.shape, *(1,) * (t.dim() - 2)), 0)
    return result


def _one_of(site: Site, known: Sequence[torch.Tensor | None]) -> _Run | None:
    """:func:`gather` of one element of a known tensor: a view of it, if the index is inside."""
    (t, indices), axis = known, site.attrs["axis"]
    spec = site.ins[1]
    assert spec is not None
    alone = site.attrs["group_size"] == 1 and not any(site.varying_ins)
    if t is None or indices is not None or not alone or spec.nelms != 1 or t.is_cuda:
        return None
    zero_oor, size = site.attrs["zero_oor"], t.shape[axis]
    shape = (*t.shape[:axis], *spec.shape, *t.shape[axis + 1 :])

    def run(indices: torch.Tensor) -> torch.Tensor:
        index = int(indices)
        if 0 <= index < size:
            return t.narrow(axis, index, 1).view(shape)
        return _take(t, indices, axis, zero_oor)

    return run


@kernel("Gather", "PopartTiedGather", prepare=_one_of)
def gather(site: Site, lead: int) -> _Run:
    """Elements of the first input along an axis at the second."""
    axis, zero_oor = site.attrs["axis"], site.attrs["zero_oor"]

    def single(t: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return _take(t, indices, axis, zero_oor)

    def grouped(t: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        pairs = zip(t, indices, strict=True)
        return torch.stack([_take(part, rows, axis - 1, zero_oor) for part, rows in pairs])

    if site.attrs["group_size"] != 1:
        return per_replica(grouped) if lead else grouped
    each = per_replica(single)

    def shards(t: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        # One after the other in memory, as parts of one table are.
        if axis == 0 and t.stride(0) == t.shape[1] * t.stride(1):
            return _take_shards(t, indices, zero_oor)
        return each(t, indices)

    return _where_the_table_lies(shards if lead else single)


def _where_the_table_lies(run: _Run) -> _Run:
    """``run`` on the host if the table is there: only the rows go to the device."""

    def call(t: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if t.is_cuda is indices.is_cuda:
            return run(t, indices)
        return run(t, indices.to(t.device)).to(indices.device)

    return call


def read_window(
    t: torch.Tensor, axes: Sequence[int], sizes: Sequence[int], starts: torch.Tensor
) -> torch.Tensor:
    """A copy of the window at ``starts``, moved inside where it sticks out. Axes are counted from
    the end."""
    if not t.is_cuda:
        return _window(t, axes, sizes, starts).clone()
    for axis, positions in zip(axes, _positions(t, axes, sizes, starts), strict=True):
        t = t.index_select(axis, positions)
    return t


def write_window(
    t: torch.Tensor, axes: Sequence[int], starts: torch.Tensor, window: torch.Tensor
) -> None:
    """Replace the window at ``starts``, moved inside where it sticks out, in place.

    Axes are counted from the end. ``window`` may lack axes of ``t`` in front.
    """
    shape, sizes = list(t.shape), [window.shape[axis] for axis in axes]
    if not t.is_cuda:
        if window.is_cuda:  # fewer bytes come from there
            window = window.to(t.dtype)
        _window(t, axes, sizes, starts).copy_(window)
        return
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    window = window.to(t.dtype).expand(shape)
    _put(t, list(zip(axes, _positions(t, axes, sizes, starts), strict=True)), window)


def _window(
    t: torch.Tensor, axes: Sequence[int], sizes: Sequence[int], starts: torch.Tensor
) -> torch.Tensor:
    for start, axis, size in zip(starts.reshape(-1).tolist(), axes, sizes, strict=True):
        t = t.narrow(axis, min(max(start, 0), t.shape[axis] - size), size)
    return t


def _positions(
    t: torch.Tensor, axes: Sequence[int], sizes: Sequence[int], starts: torch.Tensor
) -> list[torch.Tensor]:
    """Along each axis those of a window, found where ``starts`` lie: a GPU is not waited for."""
    firsts = starts.reshape(-1).long().unbind()
    return [
        first.clamp(0, t.shape[axis] - size) + torch.arange(size, device=t.device)
        for axis, size, first in zip(axes, sizes, firsts, strict=True)
    ]


def _put(t: torch.Tensor, places: Sequence[tuple[int, torch.Tensor]], window: torch.Tensor) -> None:
    (axis, positions), *others = places
    if others:
        part = t.index_select(axis, positions)
        _put(part, others, window)
        window = part
    t.index_copy_(axis, positions, window)


def _axes(site: Site) -> list[int]:
    """From the end: the replica axis may be in front."""
    return [axis - len(site.outs[0].shape) for axis in site.attrs["axes"]]


@kernel("DynamicSlice")
def dynamic_slice(site: Site, lead: int) -> _Run:
    """The window of the first input at the second."""
    axes, sizes = _axes(site), site.attrs["sizes"]

    def run(t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return read_window(t, axes, sizes, index)

    each = per_replica(run)

    def run_replicated(t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return run(t, index[0]) if uniform(index) else each(t, index)

    return run_replicated if lead else run


@kernel("DynamicUpdate")
def dynamic_update(site: Site, lead: int) -> _Run:
    """A copy of the first input with its window at the second replaced by the third."""
    axes = _axes(site)

    def run(t: torch.Tensor, index: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        result = t.clone(memory_format=torch.contiguous_format)
        write_window(result, axes, index, update)
        return result

    each = per_replica(run)

    def run_replicated(t: torch.Tensor, index: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        return run(t, index[0], update) if uniform(index) else each(t, index, update)

    return run_replicated if lead else run


@kernel("Scatter")
def scatter(site: Site, lead: int) -> _Run:
    """A copy of the first input with the third written at the second."""
    axis = site.attrs["axis"] + lead
    return lambda t, indices, values: t.scatter(axis, indices.long(), values.to(t.dtype))


_REDUCTIONS = {"sum": "sum", "min": "amin", "max": "amax"}


@kernel("ScatterReduce", batched=False)
def scatter_reduce(site: Site, lead: int) -> _Run:
    """Elements of the first input reduced into the positions that the second names."""
    axis, reduction = site.attrs["axis"], site.attrs["reduction"]
    shape = site.outs[0].shape

    def run(
        data: torch.Tensor, indices: torch.Tensor, initial: torch.Tensor | None = None
    ) -> torch.Tensor:
        if indices.dim() < data.dim():
            line = [1] * data.dim()
            line[axis] = data.shape[axis]
            if site.attrs["group_size"] > 1:
                line[0] = data.shape[0]
            indices = indices.reshape(line).expand(data.shape)
        start = data.new_zeros(shape) if initial is None else initial
        if reduction == "none":
            return start.scatter(axis, indices.long(), data)
        return start.scatter_reduce(
            axis, indices.long(), data, _REDUCTIONS[reduction], include_self=initial is not None
        )

    return run


@kernel("OneHot")
def onehot(site: Site, lead: int) -> _Run:
    """The second value of the third input at the class that the first names, else its first."""
    axis, classes = site.attrs["axis"] + lead, site.attrs["num_classes"]
    rank = len(site.outs[0].shape)

    def run(t: torch.Tensor, _: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        line = [1] * (rank + lead)
        line[axis] = classes
        hit = t.unsqueeze(axis) == torch.arange(classes, device=t.device).reshape(line)
        off, on = (values[..., i].reshape(-1, *[1] * rank) for i in (0, 1))
        return torch.where(hit, on if lead else on[0], off if lead else off[0])

    return run
