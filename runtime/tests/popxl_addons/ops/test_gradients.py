"""Gradients of addons' own ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import popxl
import pytest
import torch
from popart import popart_exception
from popxl import ops
from popxl.transforms import autodiff
from popxl_addons.ops import replicated_all_reduce_TP as tensor_parallel
from popxl_addons.ops import replicated_strided_collectives as strided
from popxl_addons.ops.cross_entropy_sharded_loss import cross_entropy_sharded_loss
from popxl_addons.ops.layer_norm_distributed import layer_norm_distributed
from popxl_addons.ops.rotary_pos_embed import rotary_pos_embed, trig_tables

from runtime.tests.popxl.ops.op_testing import main_graph
from runtime.tests.popxl.transforms.grad_testing import check_gradients, load, run, store

REPLICAS = 4
SINGLE = 1e-5  # of an op that computes in float32
GROUPS = {None: [[0, 1, 2, 3]], 2: [[0, 1], [2, 3]]}


def replicated_gradients(
    build: Callable,
    arrays: Sequence[np.ndarray],
    upstream: np.ndarray,
    wrt: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """The output on each replica, then the gradients by the inputs ``wrt`` (default all)."""
    loads: dict = {}
    with main_graph(REPLICAS) as main:
        tensors = [load(array, loads) for array in arrays]
        dy = load(upstream, loads)
        graph = main.ir.create_graph(build, *tensors)
        required = None if wrt is None else [graph.inputs[i] for i in wrt]
        info = autodiff(graph, grads_required=required)
        call = ops.call_with_info(graph, *tensors)
        grads = ops.call(info.graph, dy, inputs_dict=info.inputs_dict(call))
        streams = [store(t) for t in (call.outputs[0], *grads)]
    found = run(main.ir, loads)
    return [np.array(found[stream]) for stream in streams]


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

    def build(t: popxl.Tensor) -> popxl.Tensor:
        ir = popxl.gir()
        group = None if group_size is None else ir.replica_grouping(group_size=group_size)
        return function(t, group=group)

    found = replicated_gradients(build, [x], upstream)
    for array, result, sums in zip(
        (x, upstream), found, (sums_forwards, sums_backwards), strict=True
    ):
        wanted = array.copy()
        for members in GROUPS[group_size] if sums else ():
            wanted[members] = array[members].sum(0)
        np.testing.assert_allclose(result, wanted, rtol=1e-12)


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

    arrays = [np.stack([x] * REPLICAS), parts["first"], parts["second"]]
    _, dx, dfirst, dsecond = replicated_gradients(layer, arrays, np.ones((REPLICAS, 2, 3)))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, first, second)]
    total = (torch.tanh(tensors[0] @ tensors[1]) @ tensors[2]).sum()
    wanted = [g.numpy() for g in torch.autograd.grad(total, tensors)]
    for replica in range(REPLICAS):
        np.testing.assert_allclose(dx[replica], wanted[0], rtol=1e-9)
    np.testing.assert_allclose(np.concatenate(list(dfirst), 1), wanted[1], rtol=1e-9)
    np.testing.assert_allclose(np.concatenate(list(dsecond), 0), wanted[2], rtol=1e-9)


@pytest.mark.parametrize("op", ["add", "mean"])
@pytest.mark.parametrize(
    ("function", "forwards", "backwards"),
    [
        (strided.replicated_all_reduce_strided, True, True),
        (strided.replicated_all_reduce_strided_identical_inputs, False, True),
        (strided.replicated_all_reduce_strided_identical_grad_inputs, True, False),
    ],
)
def test_strided_all_reduces(function: Callable, forwards: bool, backwards: bool, op: str):
    rng = np.random.default_rng(12)
    x, upstream = rng.normal(size=(2, REPLICAS, 3))
    y, dx = replicated_gradients(
        lambda t: function(t, op, popxl.gir().replica_grouping(stride=2)), [x], upstream
    )
    for array, found, reduces in ((x, y, forwards), (upstream, dx, backwards)):
        wanted = array.copy()
        for members in ([0, 2], [1, 3]) if reduces else ():
            total = array[members].sum(0)
            wanted[members] = total if op == "add" else total / 2
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_layer_norm_distributed():
    rng = np.random.default_rng(13)
    whole = {"t": rng.normal(size=(3, 8)), "w": rng.normal(size=8), "b": rng.normal(size=8)}
    upstream = rng.normal(size=(3, 8))

    def cut(array: np.ndarray) -> np.ndarray:
        return np.stack(np.split(array, REPLICAS, -1))

    y, *grads = replicated_gradients(
        layer_norm_distributed, [cut(array) for array in whole.values()], cut(upstream)
    )
    tensors = [torch.tensor(array, requires_grad=True) for array in whole.values()]
    wanted = torch.nn.functional.layer_norm(tensors[0], (8,), *tensors[1:])
    wanted_grads = torch.autograd.grad(wanted, tensors, torch.tensor(upstream))
    for found, expected in zip((y, *grads), (wanted.detach(), *wanted_grads), strict=True):
        joined = np.concatenate(list(found), -1)
        np.testing.assert_allclose(joined, expected.numpy(), rtol=SINGLE, atol=SINGLE)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [None, 3])
def test_cross_entropy_sharded_loss(reduction: str, ignored: int | None):
    rng = np.random.default_rng(14)
    classes = 8
    logits, labels = rng.normal(size=(5, classes)), np.array([0, 3, 7, 3, 5])
    offsets = np.arange(REPLICAS) * (classes // REPLICAS)
    shifted = (labels[None] - offsets[:, None]).astype(np.int32)
    shape = (5,) if reduction == "none" else ()
    upstream = rng.normal(size=shape)

    def build(t: popxl.Tensor, i: popxl.Tensor, ignore: popxl.Tensor) -> popxl.Tensor:
        ignore_index = None if ignored is None else ignore
        return cross_entropy_sharded_loss(t, i, ignore_index, reduction=reduction)

    parts = np.stack(np.split(logits, REPLICAS, 1))
    missing = ((ignored or 0) - offsets).astype(np.int32)
    loss, grads = replicated_gradients(
        build, [parts, shifted, missing], np.stack([upstream] * REPLICAS), wrt=[0]
    )
    t = torch.tensor(logits, requires_grad=True)
    index = -100 if ignored is None else ignored
    wanted = torch.nn.functional.cross_entropy(
        t, torch.tensor(labels), ignore_index=index, reduction=reduction
    )
    (grad,) = torch.autograd.grad(wanted, t, torch.tensor(upstream))
    for replica in range(REPLICAS):
        np.testing.assert_allclose(loss[replica], wanted.detach().numpy(), rtol=1e-9)
    np.testing.assert_allclose(np.concatenate(list(grads), 1), grad.numpy(), rtol=1e-9, atol=1e-12)


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
