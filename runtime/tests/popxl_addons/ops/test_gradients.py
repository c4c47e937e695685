"""Gradients of addons' own ops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import popxl
import pytest
import torch
from popart import popart_exception
from popxl import ops
from popxl.transforms import autodiff
from popxl_addons.ops import replicated_all_reduce_TP as tensor_parallel
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed, trig_tables

from runtime.tests.popxl.ops.op_testing import main_graph
from runtime.tests.popxl.transforms.grad_testing import check_gradients, run, store

REPLICAS = 4
GROUPS = {None: [[0, 1, 2, 3]], 2: [[0, 1], [2, 3]]}


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize(
    ("function", "sums_forwards", "sums_backwards"),
    [
        (tensor_parallel.replicated_all_reduce, True, True),
        (tensor_parallel.replicated_all_reduce_identical_inputs, False, True),
        (tensor_parallel.replicated_all_reduce_identical_grad_inputs, True, False),
    ],
)
def test_all_reduces(
    function: Callable, sums_forwards: bool, sums_backwards: bool, group_size: int | None
):
    rng = np.random.default_rng(8)
    x, upstream = rng.normal(size=(2, REPLICAS, 3))
    with main_graph(REPLICAS) as main:
        group = None if group_size is None else main.ir.replica_grouping(group_size=group_size)
        loads = {popxl.h2d_stream((3,), popxl.float64): array for array in (x, upstream)}
        t, dy = (ops.host_load(stream) for stream in loads)
        graph = main.ir.create_graph(lambda t: function(t, group=group), t)
        info = autodiff(graph)
        call = ops.call_with_info(graph, t)
        (dt,) = ops.call(info.graph, dy, inputs_dict=info.inputs_dict(call))
        streams = [store(call.outputs[0]), store(dt)]
    found = run(main.ir, loads)
    for array, stream, sums in zip(
        (x, upstream), streams, (sums_forwards, sums_backwards), strict=True
    ):
        wanted = array.copy()
        for members in GROUPS[group_size] if sums else ():
            wanted[members] = array[members].sum(0)
        np.testing.assert_allclose(np.array(found[stream]), wanted, rtol=1e-12)


def test_a_tensor_parallel_layer_has_the_gradients_of_the_whole_one():
    """Columns, then rows of the weights over the replicas: Megatron's f and g."""
    rng = np.random.default_rng(9)
    x, first, second = rng.normal(size=(2, 4)), rng.normal(size=(4, 8)), rng.normal(size=(8, 3))
    parts = {
        "first": np.stack(np.split(first, REPLICAS, 1)),
        "second": np.stack(np.split(second, REPLICAS, 0)),
    }

    def layer(x: popxl.Tensor, first: popxl.Tensor, second: popxl.Tensor) -> popxl.Tensor:
        x = tensor_parallel.replicated_all_reduce_identical_inputs(x)
        partial = ops.tanh(x @ first) @ second
        return tensor_parallel.replicated_all_reduce_identical_grad_inputs(partial)

    with main_graph(REPLICAS) as main:
        loads = {}
        tensors = []
        for array in (np.stack([x] * REPLICAS), parts["first"], parts["second"]):
            stream = popxl.h2d_stream(array.shape[1:], popxl.float64)
            loads[stream] = array
            tensors.append(ops.host_load(stream))
        graph = main.ir.create_graph(layer, *tensors)
        info = autodiff(graph)
        call = ops.call_with_info(graph, *tensors)
        ones = [np.ones((2, 3))]
        grads = ops.call(info.graph, ones, inputs_dict=info.inputs_dict(call))
        streams = [store(t) for t in grads]
    found = run(main.ir, loads)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, first, second)]
    total = (torch.tanh(tensors[0] @ tensors[1]) @ tensors[2]).sum()
    wanted = [g.numpy() for g in torch.autograd.grad(total, tensors)]
    dx, dfirst, dsecond = (np.array(found[stream]) for stream in streams)
    for replica in range(REPLICAS):
        np.testing.assert_allclose(dx[replica], wanted[0], rtol=1e-9)
    np.testing.assert_allclose(np.concatenate(dfirst, 1), wanted[1], rtol=1e-9)
    np.testing.assert_allclose(np.concatenate(dsecond, 0), wanted[2], rtol=1e-9)


@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_rotary_pos_embed(rotary_dim: int):
    rng = np.random.default_rng(10)
    sin, cos = trig_tables(3, rotary_dim, np_dtype="float64")

    def reference(t: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        even, odd = t[..., 0:rotary_dim:2], t[..., 1:rotary_dim:2]
        sin, cos = sin[:, None, :], cos[:, None, :]
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
        return torch.cat([turned, t[..., rotary_dim:]], -1)

    check_gradients(
        lambda t, s, c: rotary_pos_embed(t, s, c, rotary_dim),
        reference, rng.normal(size=(2, 3, 2, 8)), sin, cos, wrt=[0],
    )  # fmt: skip


def test_tables_have_no_gradient():
    with main_graph() as main:
        t = ops.init((2, 3, 2, 8), popxl.float32)
        table = ops.init((3, 4), popxl.float32)
        graph = main.ir.create_graph(rotary_pos_embed, t, table, table)
        with pytest.raises(popart_exception, match="Unable to provide required"):
            autodiff(graph, grads_required=[graph.inputs[1]])
