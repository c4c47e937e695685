"""Kernels of the gradient ops that would be clumsy, slow or inexact as compositions of others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from popxl_torch.ir.records import Spec
from popxl_torch.ir.windows import window_pads
from popxl_torch.kernels.indexing import per_replica
from popxl_torch.kernels.loss import label_counts, smallest_probability
from popxl_torch.kernels.nn import flat_pads, operands
from popxl_torch.kernels.registry import Site, kernel
from popxl_torch.kernels.resample import axis_taps, region_matrices

_Run = Callable[..., Any]


def _spec(site: Site, index: int) -> Spec:
    spec = site.ins[index]
    assert spec is not None
    return spec


def _plain(function: _Run) -> Callable[[Site, int], _Run]:
    """A factory for functions that need neither attributes nor axes."""
    return lambda site, lead: function


# -- element-wise -------------------------------------------------------------------------------


def _gelu_grad(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    slope = math.sqrt(2 / math.pi)
    t = torch.tanh(slope * (x + 0.044715 * x**3))
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope * (1 + 3 * 0.044715 * x * x))


def _gelu_erf_grad(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return g * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density)


def _swish_grad(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(x)
    return g * s * (1 + x * (1 - s))


def _pow_base_grad(g: torch.Tensor, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return torch.where(e == 0, torch.zeros_like(g), g * e * torch.pow(x, e - 1))


def _pow_exponent_grad(g: torch.Tensor, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    slope = torch.pow(x, e) * torch.log(x)
    return g * torch.where((x == 0) & (e >= 0), torch.zeros_like(slope), slope)


_ELEMENTWISE: dict[str, _Run] = {
    "GeluGrad": _gelu_grad,
    "GeluErfGrad": _gelu_erf_grad,
    "SwishGrad": _swish_grad,
    "PowArg0Grad": _pow_base_grad,
    "PowArg1Grad": _pow_exponent_grad,
}
for _kind, _function in _ELEMENTWISE.items():
    kernel(_kind, broadcast=True)(_plain(_function))


# -- reductions ---------------------------------------------------------------------------------


@kernel("Unreduce")
def _unreduce(site: Site, lead: int) -> _Run:
    """Repeats a reduction's result along the reduced axes."""
    kept, shape = site.attrs["kept"], site.attrs["shape"]
    return lambda t: t.reshape(*t.shape[:lead], *kept).expand(*t.shape[:lead], *shape)


def _joined_axes(site: Site, shape: tuple[int, ...], lead: int) -> tuple[list[int], list[int]]:
    """(order of axes with the reduced ones last, its inverse), the replica axis first."""
    reduced = [axis + lead for axis in site.attrs["axes"]]
    order = [axis for axis in range(len(shape) + lead) if axis not in reduced] + reduced
    return order, [order.index(axis) for axis in range(len(order))]


@kernel("ReduceProdGrad")
def _prod_grad(site: Site, lead: int) -> _Run:
    """Each element's gradient is the product of the others, also where some are 0."""
    order, inverse = _joined_axes(site, _spec(site, 1).shape, lead)
    kept = len(order) - len(site.attrs["axes"])

    def run(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ordered = x.permute(order)
        flat = ordered.reshape(*ordered.shape[:kept], -1)
        ones = torch.ones_like(flat[..., :1])
        before = torch.cumprod(torch.cat([ones, flat[..., :-1]], -1), -1)
        after = torch.cumprod(torch.cat([ones, flat.flip(-1)[..., :-1]], -1), -1).flip(-1)
        result = before * after * g.reshape(*ordered.shape[:kept], 1)
        return result.reshape(ordered.shape).permute(inverse)

    return run


@kernel("ReduceMedianGrad")
def _median_grad(site: Site, lead: int) -> _Run:
    """The gradient goes to the element that was chosen."""
    shape = site.attrs["shape"]
    order, inverse = _joined_axes(site, shape, lead)
    kept = len(order) - len(site.attrs["axes"])

    def run(g: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        full = (*g.shape[:lead], *shape)
        ordered = [full[axis] for axis in order]
        flat = g.new_zeros(*ordered[:kept], math.prod(ordered[kept:]))
        at = indices.long().reshape(*ordered[:kept], 1)
        flat.scatter_(-1, at, g.reshape(*ordered[:kept], 1))
        return flat.reshape(ordered).permute(inverse)

    return run


@kernel("SoftmaxGrad")
def _softmax_grad(site: Site, lead: int) -> _Run:
    axis = site.attrs["axis"] + lead
    return lambda g, y: y * (g - (g * y).sum(axis, keepdim=True))


# -- movement of elements -----------------------------------------------------------------------


@kernel("SliceGrad")
def _slice_grad(site: Site, lead: int) -> _Run:
    """Zeros with the gradient where the slice was taken."""
    ranges = list(zip(*(site.attrs[key] for key in ("starts", "stops", "steps")), strict=True))
    flipped = [axis + lead for axis, (_, _, step) in enumerate(ranges) if step < 0]
    window: list[Any] = [slice(None)] * lead
    for bounds in ranges:
        taken = range(*bounds)
        taken = taken if taken.step > 0 else taken[::-1]
        window.append(slice(taken.start, taken.stop, taken.step) if taken else slice(0, 0))

    def run(g: torch.Tensor) -> torch.Tensor:
        result = g.new_zeros(*g.shape[:lead], *site.attrs["shape"])
        result[tuple(window)] = g.flip(flipped) if flipped else g
        return result

    return run


@kernel("SubsampleGrad")
def _subsample_grad(site: Site, lead: int) -> _Run:
    every = tuple(slice(None, None, step) for step in site.attrs["strides"])

    def run(g: torch.Tensor) -> torch.Tensor:
        result = g.new_zeros(*g.shape[:lead], *site.attrs["shape"])
        result[((slice(None),) * lead + every)] = g
        return result

    return run


def _add_rows(
    g: torch.Tensor, indices: torch.Tensor, axis: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Zeros of ``shape`` to which the rows of ``g`` were added; rows out of range are dropped."""
    flat = indices.reshape(-1).long()
    rows = g.reshape(*shape[:axis], flat.numel(), *shape[axis + 1 :])
    inside = (flat >= 0) & (flat < shape[axis])
    line = [-1 if i == axis else 1 for i in range(len(shape))]
    rows = torch.where(inside.view(line), rows, torch.zeros_like(rows))
    return g.new_zeros(shape).index_add_(axis, torch.where(inside, flat, 0), rows)


@kernel("GatherGrad")
def _gather_grad(site: Site, lead: int) -> _Run:
    axis, shape = site.attrs["axis"], site.attrs["shape"]

    def single(g: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return _add_rows(g, indices, axis, shape)

    def grouped(g: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        pairs = zip(g, indices, strict=True)
        return torch.stack([_add_rows(part, rows, axis - 1, shape[1:]) for part, rows in pairs])

    run = single if site.attrs["group_size"] == 1 else grouped
    return per_replica(run) if lead else run


@kernel("GatherElements")
def _gather_elements(site: Site, lead: int) -> _Run:
    axis = site.attrs["axis"] + lead
    return lambda t, indices: t.gather(axis, indices.long())


@kernel("ScatterReduceGrad", batched=False)
def _scatter_reduce_grad(site: Site, lead: int) -> _Run:
    """The element of the first input that each element of the data was reduced into."""
    axis, shape = site.attrs["axis"], site.attrs["shape"]

    def run(t: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if indices.dim() < len(shape):
            line = [1] * len(shape)
            line[axis] = shape[axis]
            if site.attrs["group_size"] > 1:
                line[0] = shape[0]
            indices = indices.reshape(line)
        return t.gather(axis, indices.expand(shape).long())

    return run


@kernel("OnehotGrad", batched=False)
def _onehot_grad(site: Site, lead: int) -> _Run:
    """Gradients of the two values: [off, on]."""
    axis = site.attrs["axis"]

    def run(g: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        g = g.movedim(axis, -1)
        hit = t.unsqueeze(-1) == torch.arange(g.shape[-1], device=g.device)
        on = torch.where(hit, g, torch.zeros_like(g)).sum()
        return torch.stack([g.sum() - on, on])

    return run


# -- convolution, pooling, normalisation --------------------------------------------------------


def _convolution_backward(
    site: Site, data: tuple[int, ...], weight: tuple[int, ...], of_data: bool
) -> _Run:
    """The library's gradient of a convolution by its data or its weight; padding is explicit."""
    attrs, rank = site.attrs, len(data) - 2
    pads = window_pads(data[2:], _spec(site, 0).shape[2:], weight[2:], attrs)
    flat = flat_pads(pads)
    undo = [-size for size in flat]
    padded = [*data[:2], *(n + sum(pair) for n, pair in zip(data[2:], pads, strict=True))]
    settings = (attrs["strides"], (0,) * rank, attrs["dilations"], False, (0,) * rank)

    def run(g: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        g, other = operands(g, other)
        if of_data:
            x, w = g.new_empty(padded), other
        else:
            x, w = torch.nn.functional.pad(other, flat), g.new_empty(weight)
        mask = (of_data, not of_data, False)
        found = torch.ops.aten.convolution_backward(g, x, w, None, *settings, attrs["groups"], mask)
        return torch.nn.functional.pad(found[0], undo) if of_data else found[1]

    return run


@kernel("ConvDataGrad", batched=False, raw=True)
def _conv_data_grad(site: Site, lead: int) -> _Run:
    return _convolution_backward(site, site.attrs["shape"], _spec(site, 1).shape, True)


@kernel("ConvWeightsGrad", batched=False, raw=True)
def _conv_weights_grad(site: Site, lead: int) -> _Run:
    return _convolution_backward(site, _spec(site, 1).shape, site.attrs["shape"], False)


class _Pooling:
    """Geometry of a pooling: which elements of the padded, spread input each window sees."""

    def __init__(self, site: Site, data: tuple[int, ...]) -> None:
        attrs, rank = site.attrs, len(data) - 2
        self.attrs, self.data = attrs, data
        out_pads, results = attrs["out_pads"], _spec(site, 0).shape[2:]
        self.counts = [n - out_pads[i] - out_pads[rank + i] for i, n in enumerate(results)]
        spread = [d * (n - 1) + 1 for n, d in zip(data[2:], attrs["in_dilations"], strict=True)]
        pads = window_pads(spread, self.counts, attrs["kernel_size"], attrs)
        # Ends below 0 cut elements off that no window sees; here they stay, unseen.
        self.begins = [begin for begin, _ in pads]
        self.sizes = [n + b + max(e, 0) for n, (b, e) in zip(spread, pads, strict=True)]
        around = [(-out_pads[i], -out_pads[rank + i]) for i in range(rank)]
        self.trim = flat_pads(around)

    def inner(self, g: torch.Tensor) -> torch.Tensor:
        """Without the zeros around the result."""
        return torch.nn.functional.pad(g, self.trim)

    def _places(self) -> tuple[Any, ...]:
        """Where the input's elements lie in the padded, spread one."""
        lists = zip(self.begins, self.data[2:], self.attrs["in_dilations"], strict=True)
        return (..., *(slice(b, b + d * (n - 1) + 1, d) for b, n, d in lists))

    def padded(self, x: torch.Tensor, fill: float) -> torch.Tensor:
        """The input among ``fill``."""
        result = x.new_full((*x.shape[:2], *self.sizes), fill)
        result[self._places()] = x
        return result

    def unpadded(self, x: torch.Tensor) -> torch.Tensor:
        """The input's elements only."""
        return x[self._places()]

    def offsets(self) -> Iterator[tuple[Any, ...]]:
        """For each position in the window: what all windows see there."""
        for position in itertools.product(*(range(k) for k in self.attrs["kernel_size"])):
            lists = zip(
                position, self.attrs["dilations"], self.attrs["strides"], self.counts, strict=True
            )
            yield (..., *(slice(p * d, p * d + s * (n - 1) + 1, s) for p, d, s, n in lists))


@kernel("AveragePoolGrad", batched=False)
def _average_pool_grad(site: Site, lead: int) -> _Run:
    pool = _Pooling(site, site.attrs["shape"])

    def run(g: torch.Tensor) -> torch.Tensor:
        g = pool.inner(g)
        present = pool.padded(g.new_ones(1, 1, *pool.data[2:]), 0.0)
        count = torch.stack([present[seen] for seen in pool.offsets()]).sum(0)
        share = g / count.clamp(min=1)
        result = g.new_zeros(*g.shape[:2], *pool.sizes)
        for seen in pool.offsets():
            result[seen] += share
        return pool.unpadded(result)

    return run


@kernel("MaxPoolGrad", batched=False)
def _max_pool_grad(site: Site, lead: int) -> _Run:
    """Of equal elements in a window the first gets the gradient."""
    pool = _Pooling(site, _spec(site, 2).shape)

    def run(g: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        left, y = pool.inner(g), pool.inner(y)
        x = pool.padded(x, float("-inf"))
        result = torch.zeros_like(x)
        for seen in pool.offsets():
            share = torch.where(x[seen] == y, left, torch.zeros_like(left))
            result[seen] += share
            left = left - share
        return pool.unpadded(result)

    return run


@kernel("GroupNormalizationGrad")
def _group_norm_grad(site: Site, lead: int) -> _Run:
    """Gradients of input, weight and bias; the statistics are computed again, in full precision."""
    t = _spec(site, 1)
    rows, channels = t.shape[0] * site.attrs["num_groups"], t.shape[1]
    size, eps = t.nelms // rows, site.attrs["eps"]
    affine = (1, channels, *[1] * (len(t.shape) - 2))
    others = [axis + lead for axis in range(len(t.shape)) if axis != 1]

    def run(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ends = x.shape[:lead]
        x = x.reshape(*ends, rows, size)
        centred = x - x.mean(-1, keepdim=True)
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
        normal = centred * inverse
        scaled = (g * w.reshape(*ends, *affine)).reshape(*ends, rows, size)
        along = (scaled * normal).mean(-1, keepdim=True)
        dx = inverse * (scaled - scaled.mean(-1, keepdim=True) - normal * along)
        normal = normal.reshape(g.shape)
        return dx.reshape(g.shape), (g * normal).sum(others), g.sum(others)

    return run


# -- loss ---------------------------------------------------------------------------------------


def _shares(
    attrs: Mapping[str, Any], g: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of each label's loss, class of each label), with an axis for the classes."""
    counts = label_counts(attrs, labels)
    share = torch.where(counts, g, torch.zeros_like(g))
    if attrs["reduction"] == "mean":
        share = share / counts.sum().clamp(min=1)
    return share.unsqueeze(-1), torch.where(counts, labels, 0).long().unsqueeze(-1)


@kernel("NllGrad", batched=False)
def _nll_grad(site: Site, lead: int) -> _Run:
    """Inputs: gradient of the loss, labels, probabilities or their logarithms."""
    low = smallest_probability(_spec(site, 2))

    def run(g: torch.Tensor, labels: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        share, index = _shares(site.attrs, g, labels)
        if not site.attrs["log_prob"]:
            share = share / probs.gather(-1, index).clamp(min=low)
        return torch.zeros_like(probs).scatter_(-1, index, -share)

    return run


@kernel("SoftmaxGradDirect", batched=False)
def _softmax_grad_direct(site: Site, lead: int) -> _Run:
    """As NllGrad, but by the input of the softmax that made the probabilities."""

    def run(g: torch.Tensor, labels: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        share, index = _shares(site.attrs, g, labels)
        return (probs * share).scatter_add_(-1, index, -share)

    return run


# -- resampling ---------------------------------------------------------------------------------


@kernel("ResizeGrad", host=True)
def _resize_grad(site: Site, lead: int) -> _Run:
    """The transposed resizing, one axis after the other."""
    shape = site.attrs["shape"]
    taps = [
        axis_taps(site.attrs, axis, *sizes)
        for axis, sizes in enumerate(zip(shape, _spec(site, 0).shape, strict=True))
    ]

    def run(g: torch.Tensor) -> torch.Tensor:
        for axis, found in enumerate(taps):
            if found is not None:
                g = _spread_taps(g, axis - len(shape), shape[axis], found)
        return g

    return run


def _spread_taps(
    g: torch.Tensor, axis: int, size: int, taps: list[tuple[np.ndarray, np.ndarray]]
) -> torch.Tensor:
    axis += g.dim()
    result = g.new_zeros(*g.shape[:axis], size, *g.shape[axis + 1 :])
    line = [-1 if i == axis else 1 for i in range(g.dim())]
    for at, weight in taps:
        share = g * torch.from_numpy(weight).to(g).reshape(line)
        result.index_add_(axis, torch.from_numpy(at).to(g.device), share)
    return result


@kernel("RoiAlignGrad", batched=False, host=True)
def _roi_align_grad(site: Site, lead: int) -> _Run:
    shape = site.attrs["shape"]

    def run(g: torch.Tensor, rois: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        result = g.new_zeros(shape)
        for part, roi, batch in zip(g, rois.tolist(), index.tolist(), strict=True):
            down, across = region_matrices(site.attrs, roi, shape[2:], g)
            result[batch] += down.t() @ part @ across
        return result

    return run
