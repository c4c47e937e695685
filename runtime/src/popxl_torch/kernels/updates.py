"""Updates of variables. Each kernel returns the new value; the engine stores it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from popxl_torch.ir.errors import popart_exception
from popxl_torch.kernels.registry import Site, kernel

_Run = Callable[..., torch.Tensor]

# New value of an accumulator t for an update x and a factor f.
_RULES: dict[str, Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]] = {
    "add": lambda t, x, f: t + x,
    "scaled": lambda t, x, f: t + f * x,
    "square": lambda t, x, f: t + f * x * x,
    "mean": lambda t, x, f: f / (f + 1) * t + x / (f + 1),
    "average": lambda t, x, f: f * t + (1 - f) * x,
    "average_square": lambda t, x, f: f * t + (1 - f) * x * x,
}


@kernel("Accumulate", broadcast=True)
def accumulate(site: Site, lead: int) -> _Run:
    """The accumulator after one more update."""
    rule, number = _RULES[site.attrs["rule"]], site.attrs["factor"]
    if site.attrs["rule"] == "scaled" and number == 0:
        raise popart_exception(f"{site.where}: accumulate_ with a constant factor of 0")
    if number is None:
        return rule
    return lambda t, x: rule(t, x, number)


@kernel("AccumulatorScale", broadcast=True)
def accumulator_scale(site: Site, lead: int) -> _Run:
    """The accumulator times a factor; a constant 0 clears it, infinities included."""
    number = site.attrs["factor"]
    if number is None:
        return torch.mul
    return torch.zeros_like if number == 0 else lambda t: t * number


@kernel("PopartSparseAccumulate", batched=False)
def sparse_accumulate(site: Site, lead: int) -> _Run:
    """The accumulator after slices were added at indices."""
    axis, number = site.attrs["axis"], site.attrs["factor"]

    def run(
        t: torch.Tensor, x: torch.Tensor, indices: torch.Tensor, factor: Any = number
    ) -> torch.Tensor:
        return t.index_add(axis, indices.long(), (x * factor).to(t.dtype))

    return run


@kernel("CopyVarUpdate", raw=True)
def copy_var_update(site: Site, lead: int) -> _Run:
    """The second input."""
    return lambda t, x: x


def _inputs(site: Site, names: tuple[str, ...]) -> list[str]:
    """Names of the inputs that are connected, in order."""
    connected = site.attrs.get("connected", (True,) * len(names))
    return [name for name, there in zip(names, connected, strict=True) if there]


_VAR_UPDATE = ("t", "x", "r1", "r2", "learning_rate", "max_weight_norm")


@kernel("AdamVarUpdate", broadcast=True)
def adam_var_update(site: Site, lead: int) -> _Run:
    """The weight after a step along the update, scaled by the ratio of both norms."""
    names = _inputs(site, _VAR_UPDATE)
    if "max_weight_norm" not in names and site.attrs["max_weight_norm"] is None:
        raise popart_exception(f"{site.where}: adam_var_update needs a max_weight_norm")

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = {**site.attrs, **dict(zip(names, tensors, strict=True))}
        weight_norm, update_norm = given["r1"].sqrt(), given["r2"].sqrt()
        limit = torch.as_tensor(given["max_weight_norm"]).to(weight_norm)
        ratio = torch.minimum(weight_norm, limit) / update_norm
        none = (weight_norm == 0) | (update_norm == 0)
        ratio = torch.where(none, torch.ones_like(ratio), ratio)
        return given["t"] - given["learning_rate"] * ratio * given["x"]

    return run


_UPDATER = ("m", "v", "weight", "time_step", "weight_decay", "beta1", "beta2", "epsilon")


@kernel("AdamUpdater", broadcast=True)
def adam_updater(site: Site, lead: int) -> _Run:
    """The update term; the time step has been incremented by an op before."""
    names, mode = _inputs(site, _UPDATER), site.attrs["mode"]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = {**site.attrs, **dict(zip(names, tensors, strict=True))}
        first, second = given["m"], given["v"]
        if "time_step" in names:
            first = first / (1 - given["beta1"] ** given["time_step"])
            if mode != "adamax":
                second = second / (1 - given["beta2"] ** given["time_step"])
        update = first / ((second if mode == "adamax" else second.sqrt()) + given["epsilon"])
        if given["weight_decay"] is not None and "weight" in names:
            update = update + given["weight_decay"] * given["weight"]
        return update

    return run
