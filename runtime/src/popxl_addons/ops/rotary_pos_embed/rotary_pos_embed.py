"""Rotary position embedding, interleaved: adjacent elements are a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import popxl
from popart import popart_exception
from popxl.context import get_current_context, op_debug_context
from popxl.ops.gradients import Grads, GradSite, gradient
from popxl.ops.utils import _create_op, check_in_graph, check_tensor_ipu_and_tile_set
from popxl_torch.ir.opdef import OpDef, define

__all__ = ["rotary_pos_embed", "trig_table_constants", "trig_tables"]


def _infer(specs: Sequence[Any], attrs: Mapping[str, Any]) -> list[Any]:
    x, sin, cos = specs
    rotary_dim = attrs["rotary_dim"]
    if len(x.shape) != 4:
        raise popart_exception(f"t is (batch, seq, heads, head_dim), got shape {x.shape}")
    batch, seq, _, head_dim = x.shape
    if rotary_dim % 2 != 0 or not 0 < rotary_dim <= head_dim:
        raise popart_exception(
            f"rotary_dim is even and at most head_dim {head_dim}, got {rotary_dim}"
        )
    table = (seq, rotary_dim // 2)
    allowed = [table, (1, *table), (batch, *table)]
    if attrs["halves"]:
        allowed += [(1, 1, rotary_dim // 2), (batch, 1, rotary_dim // 2)]
    for name, spec in (("sin", sin), ("cos", cos)):
        if spec.shape not in allowed:
            raise popart_exception(
                f"{name} has shape {spec.shape}, expected one of {tuple(allowed)}"
                " (seq, rotary_dim / 2)"
            )
        if spec.dtype != x.dtype:
            raise popart_exception(f"{name} has dtype {spec.dtype}, t {x.dtype}")
    return [x]


def _flops(ins: Sequence[Any], outs: Sequence[Any], attrs: Mapping[str, Any]) -> int:
    # Two products and a sum for each rotated element.
    return 3 * (outs[0].nelms // outs[0].shape[-1]) * attrs["rotary_dim"]


define(OpDef("RotaryPosEmbed", _infer, flops=_flops))


def trig_tables(
    seq_len: int, rotary_dim: int, base: int = 10000, np_dtype: Any = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Tables for `rotary_pos_embed`, computed in `np_dtype` throughout.

    In float16 the angles themselves are rounded; cast float32 tables instead for accuracy.

    Returns:
        (sin, cos), each (seq_len, rotary_dim / 2).
    """
    exponents = np.arange(0, rotary_dim, 2, dtype=np_dtype) / np.asarray(rotary_dim, np_dtype)
    theta = np.power(np.asarray(base, np_dtype), -exponents)
    phi = np.arange(seq_len, dtype=np_dtype)[:, None] * theta
    return np.sin(phi), np.cos(phi)


def trig_table_constants(
    seq_len: int,
    rotary_dim: int,
    base: int = 10000,
    dtype: popxl.dtypes.dtype = popxl.float32,
) -> tuple[popxl.Tensor, popxl.Tensor]:
    """`trig_tables` as constants (sin, cos) of the current graph."""
    sin, cos = trig_tables(seq_len, rotary_dim, base, dtype.as_numpy())
    return popxl.constant(sin, dtype, "sin"), popxl.constant(cos, dtype, "cos")


@op_debug_context
def rotary_pos_embed(
    t: popxl.Tensor, sin: popxl.Tensor, cos: popxl.Tensor, rotary_dim: int | None = None
) -> popxl.Tensor:
    """Rotate the pairs (x[2i], x[2i+1]) of the first `rotary_dim` elements of each head.

    Args:
        t: (batch, seq, heads, head_dim).
        sin: (seq, rotary_dim / 2), or the same with a leading axis of 1 or batch; dtype of `t`.
        cos: as `sin`.
        rotary_dim: even; default (and for 0) head_dim.

    Raises:
        popart_exception: a shape, dtype or `rotary_dim` that does not fit.
    """
    check_in_graph(get_current_context().graph, t=t, sin=sin, cos=cos)
    check_tensor_ipu_and_tile_set(t=t, sin=sin, cos=cos)
    attrs = {"rotary_dim": rotary_dim or t.shape[-1], "halves": False}
    return _create_op("RotaryPosEmbed", [t, sin, cos], attrs, [f"{t.name}_rotary_pos_embed"])[0]


@gradient("RotaryPosEmbed")
def _gradients(site: GradSite) -> Grads:
    def rotated_back() -> popxl.Tensor:
        inputs = [site.grad(), -site.input(1), site.input(2)]
        return _create_op("RotaryPosEmbed", inputs, site.attrs, ["rotary_pos_embed_grad"])[0]

    return [rotated_back, None, None]
